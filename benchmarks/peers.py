"""This engine and its peers on the same work, in one run: `make bench`.

    python benchmarks/peers.py [--rows 1000] [--minutes 60] [--engines naive ctranslate2 ...]

The work: rows of databricks-dolly-15k (a synthetic table of the same lengths where the data is absent), random weights
of pythia-160m's shape, greedy, each row stopped at its own response's length, at most 256 tokens. Every engine gets the
prompts' token ids and gives ids back. Loading and converting are left out; the time is from the first request to the
last answer. Memory is the peak of the PSS of all the engine's processes, for those inside Spark its JVM too.

First each engine's best setting is chosen on fewer rows: 1 process x 2 threads or 2 processes x 1 thread, and what else
its documentation leaves to be chosen. Then ours and the other run in turn on the same rows, A/B/A/B, with a matrix
product timed before and after every run on one core and on two; a run beside which that took more than 1.15 times its
best is thrown away and made again, at most `--tries` times in all. What is too slow for all rows gets a sample with the
same lengths of prompts and answers, and so does ours; beside what goes row by row, where few rows are no
disadvantage, ours runs all rows too. Texts are compared on the first 64 rows of each engine.

Prints three tables (engines; growth with rows and prompts; prefix sharing) and, last, one line of JSON.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.contest import environment, growth, sharing, tables  # noqa: E402
from benchmarks.contest.contest import Course, Duel, choose, duel, rows_for, say  # noqa: E402
from benchmarks.contest.engines import Engine, Options, ours, peers  # noqa: E402
from benchmarks.contest.launch import EngineFailed, Run  # noqa: E402
from benchmarks.contest.model import convert_all, write_model  # noqa: E402
from benchmarks.contest.probe import Probe  # noqa: E402
from benchmarks.contest.work import load_work  # noqa: E402
from dolly_batch.engine.model import resolve_dtype  # noqa: E402
from dolly_batch.prompt import PromptEncoder  # noqa: E402

_FULL_MINUTES = 60
_KV_BYTES = 2_000_000_000
_SHARE_OF_PEERS = 0.3  # of the minutes
_COMPARED_ROWS = 64  # of each engine, whose texts are compared with ours in float32


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000)
    parser.add_argument("--minutes", type=float, default=_FULL_MINUTES, help="about, on a quiet machine")
    parser.add_argument("--rounds", type=int, default=2, help="pairs of runs of ours and another engine")
    parser.add_argument("--tries", type=int, default=3, help="of a run while the machine is busy")
    parser.add_argument("--engines", nargs="+", default=None, help="only these peers (ours always runs)")
    parser.add_argument("--without", nargs="+", default=[], choices=["growth", "sharing"], help="leave out tables")
    parser.add_argument("--peers-python", type=Path, default=None, help="an interpreter that has ctranslate2, vllm")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="peers-") as name:
        return compare(arguments, Path(name))


def compare(arguments: argparse.Namespace, folder: Path) -> int:
    """Prepare, choose, run the pairs, print."""
    python = arguments.peers_python or environment.peers_python()
    model = folder / "model"
    said = write_model(model)
    converted = convert_all(model, folder, python)
    dtype = str(resolve_dtype("auto", torch.device("cpu"))).removeprefix("torch.")
    work = load_work(model, arguments.rows)
    probe = Probe()
    course = Course(work, probe, python, folder, min(1.0, arguments.minutes / _FULL_MINUTES), arguments.tries)
    entrants = [engine for engine in peers(model, converted, dtype, python) if _wanted(engine, arguments.engines)]
    say(f"{said}; {work.source}")
    try:
        contest = Contest(course, model, dtype)
        contest.run(entrants, arguments)
        if "growth" not in arguments.without:
            contest.growth = growth.measure(course, *contest.main, num_prompts=max(16, round(96 * course.scale)))
        if "sharing" not in arguments.without:
            contest.sharing = sharing.measure(course, *contest.main, arguments.rows, arguments.rounds)
    finally:
        probe.close()
    contest.print_all(f"{said}; {work.source}; {dtype} where not said; {arguments.rounds} rounds")
    return 0


class Contest:
    """What has been found so far. `main` is the faster one of ours, with its setting: it meets all others."""

    def __init__(self, course: Course, model: Path, dtype: str) -> None:
        self.growth: growth.Growth | None = None
        self.sharing: list[sharing.Sharing] = []
        self.left_out: dict[str, str] = {}
        self.duels: dict[str, Duel] = {}
        self._course, self._model = course, model
        say("Choosing settings")
        plain = ours("ours_bf16" if dtype == "bfloat16" else "ours_fp32", model, dtype=dtype, kv_bytes=_KV_BYTES)
        int8 = ours("ours_int8", model, dtype=dtype, quantization="int8", kv_bytes=_KV_BYTES)
        chosen = [(plain, *choose(course, plain))]
        try:
            chosen.append((int8, *choose(course, int8)))
        except EngineFailed as error:  # on a CPU without exact integer products
            self.left_out[int8.name] = str(error).splitlines()[0]
        chosen.sort(key=lambda choice: choice[2])
        *self._others, self.main = [(engine, options) for engine, options, _ in chosen]
        self._reference: dict[str, str] = {}

    def run(self, entrants: list[Engine], arguments: argparse.Namespace) -> None:
        """Choose each entrant's setting and run it against ours."""
        chosen: list[tuple[Engine, Options, float]] = []
        for engine in entrants:
            try:
                chosen.append((engine, *choose(self._course, engine)))
            except EngineFailed as error:
                self.left_out[engine.name] = str(error).splitlines()[0]
        say("In turn with ours")
        seconds = 60 * arguments.minutes * _SHARE_OF_PEERS / max(1, len(chosen) * arguments.rounds)
        pairs = [(engine, options, self._course.work.rows) for engine, options in self._others]
        pairs += [
            (engine, options, rows_for(self._course, engine, speed, seconds)) for engine, options, speed in chosen
        ]
        for engine, options, rows in pairs:
            try:
                self.duels[engine.name] = duel(self._course, self.main, engine, options, rows, arguments.rounds)
            except EngineFailed as error:
                say(str(error))
                self.left_out[engine.name] = str(error).splitlines()[0]
        self._reference = self._answer_exactly()

    def print_all(self, heading: str) -> None:
        """The tables and the JSON line."""
        standings = self._standings()
        course = self._course
        noise = {"runs": len(course.kept), "noisy_runs": course.num_noisy, "discarded_runs": course.num_discarded}
        print(f"\n{heading}.\n{noise['runs']} runs were kept; beside {noise['noisy_runs']} of them the machine was")
        print(f"busy each time they were tried; {noise['discarded_runs']} were thrown away because it was.\n")
        print(tables.engines_table(standings, self.duels, self.left_out))
        if self.growth:
            print(f"\nGrowth of {self.main[0].name}:\n\n{tables.growth_table(self.growth)}")
        if self.sharing:
            print(f"\n200 tokens in common, 50 of the row's own, {self.main[0].name}:\n")
            print(tables.sharing_table(self.sharing))
        notes = {"work": heading, **noise}
        print(tables.json_line(standings, self.duels, self.left_out, self.growth, self.sharing, notes))

    def _answer_exactly(self) -> dict[str, str]:
        """The texts that ours gives in float32, of some rows of each engine."""
        exact = ours("ours_fp32", self._model, dtype="float32", kv_bytes=2 * _KV_BYTES)
        say("  ours_fp32, for its texts")
        compared = {row.key: row for met in self.duels.values() for row in met.rows[:_COMPARED_ROWS]}
        with self._course.start(exact, self.main[1]) as started:
            return self._texts(started.run(list(compared.values())))

    def _standings(self) -> list[tables.Standing]:
        ours_runs = [run for met in self.duels.values() for run in (*met.ours, *met.ours_on_all)]
        most = max(run.num_rows for run in ours_runs)  # all rows, unless every peer had a sample of them
        found = [self._standing(*self.main, [run for run in ours_runs if run.num_rows == most])]
        found += [self._standing(met.engine, met.options, met.theirs) for met in self.duels.values()]
        return found

    def _standing(self, engine: Engine, options: Options, runs: list[Run]) -> tables.Standing:
        texts = {key: text for key, text in self._texts(runs[-1]).items() if key in self._reference}
        same = sum(text == self._reference[key] for key, text in texts.items()) / len(texts)
        return tables.Standing(engine, options, runs, same)

    def _texts(self, run: Run) -> dict[str, str]:
        encoder = PromptEncoder.from_folder(self._model)
        return {key: encoder.decode(ids) for key, ids in run.answers.items()}


def _wanted(engine: Engine, names: list[str] | None) -> bool:
    return names is None or engine.name in names


if __name__ == "__main__":
    sys.exit(main())
