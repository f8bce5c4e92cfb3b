"""The first fifteen minutes with a GPU: everything is tried, whatever fails, and each result is kept as it comes.

    python benchmarks/gpu/first_minutes.py $OUT --part 1     checks, then dolly-v2-12b over the whole table: < 10 min
    python benchmarks/gpu/first_minutes.py $OUT --part 2     3b, products, 8 bits, padded `generate`, other checks
    python benchmarks/gpu/first_minutes.py out --tiny --device cpu      that it runs

Each task runs in a child process (`child.py`) with a limit of its own. A child that crashes, hangs or fails is
replaced, and a check that crashed or failed is run once more with CUDA_LAUNCH_BLOCKING=1. Every result is a line of
`results.jsonl` in the folder, on disk before the next task starts; what children print is in `children.log`. The most
dangerous checks are last. Nothing of this has run on a real GPU yet.
"""

import argparse
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_CHILD = Path(__file__).with_name("child.py")
_LEAST_S = 5.0  # of the budget, to start a task


@dataclass(frozen=True, slots=True)
class Task:
    """A check's name, or `time` and the arguments of `main.py`; and its limit in seconds, with the child's start."""

    name: str
    limit_s: float = 60.0

    @property
    def is_check(self) -> bool:
        return not self.name.startswith("time ")


_FIRST_CHECKS = (
    *("the fast engine", "greedy, heads of 128, bfloat16", "greedy, heads of 80, bfloat16"),
    *("alone and among others, bfloat16", "prefixes in common", "spoilt rows", "sampled, top-p"),
)
_OTHER_CHECKS = (
    *("greedy, heads of 80, float32", "greedy, heads of 128, float32", "alone and among others, float32"),
    *("little memory", "sampled, small top-p", "sampled, top-k", "scores", "the small model", "a model's folder"),
    *("keys in int8, bfloat16", "keys in int8, float32", "keys in fp8, bfloat16", "keys in fp8, float32"),
    *("fp8 layers", "fp8 in CUDA graphs", "fp8 near float32", "fp8 in the engine"),
    *("int8 layers", "int8 in CUDA graphs", "int8 near float32", "int8 in the engine", "int8 from the files"),
)
_DANGEROUS = ("int8 kernels", "memory runs out")
_WHOLE = "--rows 14968 --ending --no-padded --minutes"
PARTS = {
    1: (
        Task(_FIRST_CHECKS[0], 120.0),  # kernels are built
        *(Task(name) for name in _FIRST_CHECKS[1:]),
        Task(f"time --models 12b {_WHOLE} 3.7 --profile", 240.0),
    ),
    2: (
        Task(f"time --models 3b {_WHOLE} 1.3", 90.0),
        Task("time --models 12b --products --minutes 0.6", 45.0),
        Task("time --models 12b --rows 4000 --ending --no-padded --kv-dtype int8 --minutes 1.0", 75.0),
        Task("time --models 12b --rows 3000 --ending --no-padded --int8 --only-8-bits --minutes 1.0", 75.0),
        Task("time --models 12b --rows 3000 --ending --no-padded --fp8 --only-8-bits --minutes 1.0", 75.0),
        Task("time --models 12b --rows 600 --padded-rows 256 --minutes 0.9", 75.0),
        *(Task(name, 40.0) for name in _OTHER_CHECKS),
        *(Task(name, 60.0) for name in _DANGEROUS),
    ),
}
_TINY = "--models smoke --dtype float32 --rows 6 --minutes 1"
TINY = (
    *(Task(name, 120.0) for name in (*_FIRST_CHECKS, *_OTHER_CHECKS)),
    *(
        Task(f"time {_TINY} {rest}", 120.0)
        for rest in ("--ending", "--padded-rows 2", "--no-padded --int8 --only-8-bits")
    ),
    *(Task(name, 60.0) for name in _DANGEROUS),
)


@dataclass
class Runner:
    """Runs tasks in children and appends what comes of them to `results.jsonl`. `also` is a file with more checks."""

    folder: Path
    device: str
    also: str = ""
    budget_s: float = 570.0
    started: float = field(default_factory=time.monotonic)

    def run(self, tasks: Sequence[Task]) -> list[dict[str, Any]]:
        """Run all of them, in order; return their last results. What there is no time for is said to be skipped."""
        self.folder.mkdir(parents=True, exist_ok=True)
        child: _Child | None = None
        found = []
        for task in tasks:
            result, child = self._try(task, child)
            if result["outcome"] in ("failed", "crashed") and task.is_check:
                self._write(result)
                result, child = self._try(task, None, blocking=True)
            found.append(result)
            self._write(result)
        if child is not None:
            child.end()
        return found

    def _try(
        self, task: Task, child: "_Child | None", *, blocking: bool = False
    ) -> tuple[dict[str, Any], "_Child | None"]:
        left = self.budget_s - (time.monotonic() - self.started)
        result: dict[str, Any] = {"task": task.name, "blocking": blocking}
        if left < _LEAST_S:
            return {**result, "outcome": "skipped"}, child
        began = time.monotonic()
        child = child or _Child(self.device, self.also, self.folder / "children.log", blocking)
        outcome: dict[str, Any] = {"outcome": "crashed"}
        child.ask(task.name)
        for line in child.lines(began + min(task.limit_s, left)):
            if line is None:
                outcome = {"outcome": "hung"}
            elif "said" in line:
                self._write({"task": task.name, **line})
            else:
                outcome = {"outcome": "ok" if "told" in line else "failed", **line}
                break
        result |= {**outcome, "seconds": round(time.monotonic() - began, 1)}
        if outcome["outcome"] == "ok" and not blocking:
            return result, child
        result["exit"] = child.end()
        return result, None

    def _write(self, result: dict[str, Any]) -> None:
        """Append a line, and wait until it is on the disk; show its beginning."""
        line = json.dumps(result, default=str)
        with (self.folder / "results.jsonl").open("a", encoding="utf-8") as results:
            results.write(line + "\n")
            results.flush()
            os.fsync(results.fileno())
        print(f"[{time.monotonic() - self.started:5.0f} s] {line[:600]}", flush=True)


class _Child:
    """A process that runs tasks by their names."""

    def __init__(self, device: str, also: str, log: Path, blocking: bool) -> None:
        reading, writing = os.pipe()
        environment = {**os.environ, "PYTHONFAULTHANDLER": "1", **({"CUDA_LAUNCH_BLOCKING": "1"} if blocking else {})}
        environment.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, str(_CHILD), str(writing), device, also],
                stdin=subprocess.PIPE, stdout=output, stderr=output, pass_fds=[writing], env=environment,
            )  # fmt: skip
        os.close(writing)
        self._results = os.fdopen(reading, "rb", buffering=0)
        self._rest = b""

    def ask(self, name: str) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: its results end too
            self._process.stdin.write(f"{name}\n".encode())
            self._process.stdin.flush()

    def lines(self, ends: float) -> Iterator[dict[str, Any] | None]:
        """What it sends, until it has ended; None, and no more, once the time is over."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._results, selectors.EVENT_READ)
            while True:
                *complete, self._rest = self._rest.split(b"\n")
                for text in complete:
                    yield json.loads(text)
                if not selector.select(max(0.0, ends - time.monotonic())):
                    yield None
                    return
                data = self._results.read(2**16)
                if not data:
                    return
                self._rest += data

    def end(self) -> int:
        """End it; return its exit code, negative for a signal."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            return self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
        finally:
            self._results.close()


def main() -> int:
    """Run a part; 1 where a task came to no good end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--part", type=int, choices=sorted(PARTS), default=1)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--minutes", type=float, default=9.5, help="what does not begin within them is skipped")
    parser.add_argument("--tiny", action="store_true", help="all of it with the smallest sizes, on any device")
    given = parser.parse_args()
    runner = Runner(given.folder, given.device, budget_s=60 * given.minutes)
    found = runner.run(TINY if given.tiny else PARTS[given.part])
    bad = [result["task"] for result in found if result["outcome"] != "ok"]
    print(json.dumps({"tasks": len(found), "not ok": bad}), flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
