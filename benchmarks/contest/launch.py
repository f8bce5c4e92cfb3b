"""An engine at work in its own processes: started once, given rows again and again, its memory watched."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.contest.engines import Engine, Options
from benchmarks.contest.usage import Usage
from benchmarks.contest.work import Row, is_whole, until_stop

_ROOT = Path(__file__).resolve().parents[2]


class EngineFailed(Exception):
    """An engine ended or said that it cannot."""


class TooSlow(EngineFailed):
    """An engine was stopped because it took longer than it was given."""


@dataclass
class Run:
    """One list of rows through one engine."""

    num_rows: int
    num_tokens: int
    seconds: float
    cpu_s: float
    peak_bytes: int
    occupancy: float | None
    stats: dict[str, float]
    answers: dict[str, list[int]]
    probes: tuple[list[float], list[float]] | None = None

    @property
    def tokens_per_s(self) -> float:
        """Answer tokens a second, from the first request to the last answer; what ends an answer is not counted."""
        return self.num_tokens / self.seconds

    @property
    def rows_per_s(self) -> float:
        """Answers a second."""
        return self.num_rows / self.seconds


class Started:
    """A started engine; a context manager that ends it."""

    def __init__(self, engine: Engine, options: Options, python: Path, folder: Path) -> None:
        self.engine, self.options = engine, options
        self._folder = Path(tempfile.mkdtemp(prefix=f"{engine.name}-", dir=folder))
        count = options["processes"] if engine.splits else 1
        setup = {**engine.options, **options, **({"processes": 1} if engine.splits else {})}
        interpreter = python if engine.in_peers_environment else Path(sys.executable)
        self._children = [self._start(i, interpreter, {**setup, "index": i, "of": count}) for i in range(count)]
        try:
            for index in range(count):
                self._hear(index)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Started":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End its processes: they do when they are told nothing more, and are killed when they don't."""
        for child in self._children:
            assert child.stdin
            child.stdin.close()
        for child in self._children:
            with suppress(subprocess.TimeoutExpired):
                child.wait(timeout=20)
        self._kill()
        for child in self._children:
            child.wait()

    def run(self, rows: list[Row], limit_s: float | None = None) -> Run:
        """Answer the rows, and check that each answer is as long as it may be; TooSlow after `limit_s` seconds."""
        hands = _deal(rows, len(self._children))
        files = [(self._folder / f"rows-{i}.json", self._folder / f"answers-{i}.json") for i in range(len(hands))]
        for hand, (asked, _) in zip(hands, files, strict=True):
            asked.write_text(json.dumps([(row.key, row.prompt_ids, row.num_new_tokens) for row in hand]))
        with Usage([child.pid for child in self._children]) as usage, self._killed_after(limit_s):
            for child, (asked, answers) in zip(self._children, files, strict=True):
                _tell(child, {"rows": str(asked), "answers": str(answers)})
            said = [self._hear(index) for index in range(len(self._children))]
        found = self._read([answers for _, answers in files])
        stop_ids = self.engine.options["stop_ids"]
        wrong = [row.key for row in rows if row.key not in found or not is_whole(row, found[row.key], stop_ids)]
        if wrong or len(found) != len(rows):
            raise EngineFailed(
                f"{self.engine.name}: {len(wrong)} of {len(rows)} answers of a wrong length, {wrong[:3]}"
            )
        # CLOCK_MONOTONIC is one clock for all processes.
        seconds = max(reply["ended"] for reply in said) - min(reply["started"] for reply in said)
        stats = said[0]["stats"]
        return Run(
            num_rows=len(rows),
            num_tokens=sum(map(len, found.values())),
            seconds=seconds,
            cpu_s=usage.cpu_s,
            peak_bytes=usage.peak_bytes,
            occupancy=stats.get("occupancy"),
            stats=stats,
            answers=found,
        )

    def _read(self, files: list[Path]) -> dict[str, list[int]]:
        """The answers by key, without what ended them."""
        stop_ids = self.engine.options["stop_ids"]
        answers = [item for file in files for item in json.loads(file.read_text()).items()]
        return {key: until_stop(ids, stop_ids) for key, ids in answers}

    @contextmanager
    def _killed_after(self, limit_s: float | None) -> Iterator[None]:
        """Whoever listens to the engine hears its end when the time is over."""
        if limit_s is None:
            yield
            return
        ends = time.monotonic() + limit_s
        timer = threading.Timer(limit_s, self._kill)
        timer.start()
        try:
            yield
        except EngineFailed:
            if time.monotonic() >= ends:
                raise TooSlow(f"not done in {limit_s:.0f} s") from None
            raise
        finally:
            timer.cancel()

    def _kill(self) -> None:
        """What is left of it, with the processes that it has started: some outlive their parent."""
        for child in self._children:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)

    def _start(self, index: int, python: Path, setup: Options) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(_ROOT), "TOKENIZERS_PARALLELISM": "false"}
        environment["OMP_NUM_THREADS"] = environment["MKL_NUM_THREADS"] = str(setup["threads"])
        environment |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        with (self._folder / f"log-{index}.txt").open("w") as log:
            child = subprocess.Popen(
                [str(python), "-m", "benchmarks.contest.child", self.engine.runner],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
                cwd=_ROOT,
                start_new_session=True,
            )
        _tell(child, setup)
        return child

    def _hear(self, index: int) -> dict[str, Any]:
        pipe = self._children[index].stdout
        assert pipe
        line = pipe.readline()
        reply: dict[str, Any] = json.loads(line) if line else {"error": "it ended without a word"}
        if "error" in reply:
            log = (self._folder / f"log-{index}.txt").read_text(errors="replace")
            raise EngineFailed(f"{self.engine.name} {self.options}: {reply['error']}\n{log[-1_500:]}")
        return reply


def _tell(child: subprocess.Popen[str], message: object) -> None:
    assert child.stdin
    try:
        child.stdin.write(json.dumps(message) + "\n")
        child.stdin.flush()
    except BrokenPipeError:
        pass  # what it says, or that it says nothing, comes out of `_hear`


def _deal(rows: list[Row], num_hands: int) -> list[list[Row]]:
    """The rows in equal shares: longest first, dealt to and fro."""
    if num_hands == 1:
        return [rows]
    ordered = sorted(rows, key=lambda row: -(len(row.prompt_ids) + row.num_new_tokens))
    hands: list[list[Row]] = [[] for _ in range(num_hands)]
    for place, row in enumerate(ordered):
        lap, seat = divmod(place, num_hands)
        hands[seat if lap % 2 == 0 else num_hands - 1 - seat].append(row)
    return hands
