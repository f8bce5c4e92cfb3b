"""This engine and its peers on the same work, in one run: `make bench`.

    python benchmarks/peers.py [--model smollm2] [--rows 1000] [--minutes 60] [--engines naive ctranslate2 ...]

The work: rows of databricks-dolly-15k (a synthetic table of the same lengths where the data is absent), random weights
of pythia-160m's shape, greedy, each row stopped at its own response's length, at most 256 tokens. With `--model
smollm2` a real model (and real data) instead, whose answers end by themselves, after 128 tokens at most: then engines'
answers have lengths of their own, and tokens a second and rows a second are two numbers. Every engine gets the prompts'
token ids and gives ids back. Loading and converting are left out; the time is from the first request to the
last answer. Memory is the peak of the PSS of all the engine's processes, for those inside Spark its JVM too.

First each engine's best setting is chosen on fewer rows: 1 process x 2 threads or 2 processes x 1 thread, and what else
its documentation leaves to be chosen; a setting that is hopelessly slower than the best one so far is stopped. Then
come rounds: ours on all rows, then every other engine, each run in processes of its own; a ratio is of two runs of one
round. What is too slow for all rows gets a sample with the same lengths of prompts and answers, and ours the same one
just before it; beside what goes row by row, or in batches of its own size, ours counts with its run on all rows. A
matrix product is timed before and after every run on one core and on two; a run beside which that took more than 1.15
times its best is thrown away and made again, at most `--tries` times in all. Texts are compared on the first 64 rows of
each engine.

Prints three tables (engines; growth with rows and prompts; prefix sharing: the latter two of random weights alone) and,
last, one line of JSON. That line, in a
file, can be given as `--settings` to another run, which then need not choose.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.contest import environment, growth, sharing, tables  # noqa: E402
from benchmarks.contest.contest import Course, Duel, choose, play_round, rows_for, say  # noqa: E402
from benchmarks.contest.engines import Engine, Models, Options, ours, peers  # noqa: E402
from benchmarks.contest.launch import EngineFailed, Run  # noqa: E402
from benchmarks.contest.model import (  # noqa: E402
    convert_all,
    convert_for_llama_cpp,
    write_int8_for_vllm,
    write_model,
    write_smollm2,
)
from benchmarks.contest.probe import Probe  # noqa: E402
from benchmarks.contest.usage import cpu_features  # noqa: E402
from benchmarks.contest.work import Work, load_open_work, load_work  # noqa: E402
from dolly_batch.engine.weights.loading import resolve_dtype  # noqa: E402
from dolly_batch.prompt import PromptEncoder  # noqa: E402

_FULL_MINUTES = 60
_KV_NUMBERS = 1_000_000_000  # of keys and values: what an engine holds at most, whatever a number's width is
_SHARE_OF_PEERS = 0.2  # of the minutes
_COMPARED_ROWS = 64  # of each engine, whose texts are compared with ours in float32

Choice = tuple[Engine, Options, float]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["pythia-160m", "smollm2"], default="pythia-160m")
    parser.add_argument("--rows", type=int, default=1_000)
    parser.add_argument("--minutes", type=float, default=_FULL_MINUTES, help="about, on a fast and quiet machine")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tries", type=int, default=2, help="of a run while the machine is busy")
    parser.add_argument("--engines", nargs="+", default=None, help="only these peers (ours always runs)")
    parser.add_argument("--without", nargs="+", default=[], choices=["growth", "sharing"], help="leave out tables")
    parser.add_argument("--settings", type=Path, default=None, help="the last line of an earlier run, in a file")
    parser.add_argument("--peers-python", type=Path, default=None, help="an interpreter that has ctranslate2, vllm")
    arguments = parser.parse_args()
    if arguments.model == "smollm2":
        arguments.without = ["growth", "sharing"]
    with tempfile.TemporaryDirectory(prefix="peers-") as name:
        return compare(arguments, Path(name))


def compare(arguments: argparse.Namespace, folder: Path) -> int:
    """Prepare, choose, run the rounds, print."""
    python = arguments.peers_python or environment.peers_python()
    models, work = prepare(arguments, folder, python)
    dtype = str(resolve_dtype("auto", torch.device("cpu"))).removeprefix("torch.")
    probe = Probe()
    course = Course(work, probe, python, folder, min(1.0, arguments.minutes / _FULL_MINUTES), arguments.tries)
    known_peers = peers(models, dtype, _kv_bytes(dtype), python)
    entrants = [engine for engine in known_peers if arguments.engines is None or engine.name in arguments.engines]
    known = json.loads(arguments.settings.read_text())["engines"] if arguments.settings else {}
    heading = f"{models.said}; {work.source}; {dtype} where not said; {arguments.rounds} rounds; {cpu_features()}"
    say(heading)
    try:
        contest = Contest(course, models, dtype, known)
        contest.run(entrants, arguments)
        contest.print_engines(heading)
        if "growth" not in arguments.without:
            num_prompts = max(16, round(48 * course.scale))
            contest.growth = growth.measure(course, *contest.main, contest.runs[0], num_prompts)
            show(f"Growth of {contest.main[0].name}", tables.growth_table(contest.growth))
        if "sharing" not in arguments.without:
            contest.sharing = sharing.measure(course, *contest.main, arguments.rows, arguments.rounds)
            heading = f"200 tokens in common, 50 of the row's own, {contest.main[0].name}"
            show(heading, tables.sharing_table(contest.sharing))
    finally:
        probe.close()
    print(contest.json_line(), flush=True)
    return 0


def prepare(arguments: argparse.Namespace, folder: Path, python: Path) -> tuple[Models, Work]:
    """The model as every engine wants it, and the rows."""
    model, is_real = folder / "model", arguments.model == "smollm2"
    said = write_smollm2(model) if is_real else write_model(model)
    work = (load_open_work if is_real else load_work)(model, arguments.rows)
    llama_cpp = {}
    if arguments.engines is None or "llama_cpp" in arguments.engines:
        llama_cpp = convert_for_llama_cpp(model, folder / "q8_0.gguf", environment.llama_cpp_source(), python)
    int8 = write_int8_for_vllm(model, folder / "vllm-int8")
    return Models(model, said, int8, convert_all(model, folder, python), llama_cpp, work.stop_ids), work


def show(heading: str, table: str) -> None:
    """Print a table as soon as it is known: the run is long."""
    print(f"\n{heading}:\n\n{table}\n", flush=True)


class Contest:
    """What has been found so far. `main` is the faster one of ours, with its setting: it meets all others."""

    def __init__(self, course: Course, models: Models, dtype: str, known: dict[str, Any]) -> None:
        self.growth: growth.Growth | None = None
        self.sharing: list[sharing.Sharing] = []
        self.left_out: dict[str, str] = {}
        self.runs: list[Run] = []
        self.duels: list[Duel] = []
        self._course, self._models, self._known = course, models, known
        say("Settings")
        plain = ours(
            "ours_bf16" if dtype == "bfloat16" else "ours_fp32", models, dtype=dtype, kv_bytes=_kv_bytes(dtype)
        )
        int8 = ours("ours_int8", models, dtype=dtype, quantization="int8", kv_bytes=_kv_bytes(dtype))
        *self._others, (engine, options, _) = sorted(self._choose([plain, int8]), key=lambda choice: choice[2])
        self.main = (engine, options)
        self._standings: list[tables.Standing] = []
        self._heading = ""

    def run(self, entrants: list[Engine], arguments: argparse.Namespace) -> None:
        """Choose each entrant's setting, then all in turn."""
        chosen = [*self._choose(entrants), *self._others]
        say("Rounds")
        seconds = 60 * arguments.minutes * _SHARE_OF_PEERS / (len(chosen) * arguments.rounds)
        for engine, options, speed in chosen:
            self.duels.append(Duel(engine, options, rows_for(self._course, engine, speed, seconds)))
        for _ in range(arguments.rounds):
            on_all, failed = play_round(self._course, self.main, self.duels)
            self.runs.append(on_all)
            self.left_out |= failed
            self.duels = [duel for duel in self.duels if duel.engine.name not in failed]
        reference = self._answer_exactly()
        self._standings = [self._standing(*self.main, self.runs, reference)]
        self._standings += [self._standing(duel.engine, duel.options, duel.theirs, reference) for duel in self.duels]

    def print_engines(self, heading: str) -> None:
        """The first table, and how quiet the machine was."""
        self._heading = heading
        noise = self._noise()
        print(f"\n{heading}.\n{noise['runs']} runs were kept; beside {noise['noisy_runs']} of them the machine was")
        print(f"busy each time they were tried; {noise['discarded_runs']} were thrown away because it was.")
        show("Engines", tables.engines_table(self._standings, self._by_name(), self.left_out))

    def json_line(self) -> str:
        """All of it in one line."""
        notes = {"work": self._heading, **self._noise()}
        return tables.json_line(self._standings, self._by_name(), self.left_out, self.growth, self.sharing, notes)

    def _by_name(self) -> dict[str, Duel]:
        return {duel.engine.name: duel for duel in self.duels}

    def _noise(self) -> dict[str, int]:
        course = self._course
        return {"runs": len(course.kept), "noisy_runs": course.num_noisy, "discarded_runs": course.num_discarded}

    def _choose(self, engines: list[Engine]) -> list[Choice]:
        """The best setting of each that runs here, as it is known or after trials."""
        chosen: list[Choice] = []
        for engine in engines:
            if engine.name in self._known:
                found = self._known[engine.name]
                chosen.append((engine, found["setting"], found["rows_per_s"]))
                continue
            try:
                chosen.append((engine, *choose(self._course, engine)))
            except EngineFailed as error:
                self.left_out[engine.name] = str(error).splitlines()[0]
        return chosen

    def _answer_exactly(self) -> dict[str, str]:
        """The texts that ours gives in float32, of some rows of each engine."""
        exact = ours("ours_fp32", self._models, dtype="float32", kv_bytes=_kv_bytes("float32"))
        say("  ours_fp32, for its texts")
        compared = {row.key: row for duel in self.duels for row in duel.rows[:_COMPARED_ROWS]}
        compared |= {row.key: row for row in self._course.work.rows[:_COMPARED_ROWS]}
        return self._texts(self._course.run_alone(exact, self.main[1], list(compared.values())))

    def _standing(
        self, engine: Engine, options: Options, runs: list[Run], reference: dict[str, str]
    ) -> tables.Standing:
        texts = {key: text for key, text in self._texts(runs[-1]).items() if key in reference}
        same = sum(text == reference[key] for key, text in texts.items()) / len(texts)
        return tables.Standing(engine, options, runs, same)

    def _texts(self, run: Run) -> dict[str, str]:
        encoder = PromptEncoder.from_folder(self._models.folder)
        return {key: encoder.decode(ids) for key, ids in run.answers.items()}


def _kv_bytes(dtype: str) -> int:
    return _KV_NUMBERS * torch.finfo(getattr(torch, dtype)).bits // 8


if __name__ == "__main__":
    sys.exit(main())
