"""What safety costs: the share of a run's time that goes into locks, heartbeats, syncs, counts and the audit.

    python -m benchmarks.safety [--rows 6000] [--new-tokens 32] [--format delta] [--mode append]

One run of `tiny` on made-up questions, in local[2], sized to take minutes. The functions that would not be there if
nothing ever went wrong are timed where they are called: in all threads, each second once, however they call each other.
So the share is a ratio within one run. Spark is started before, as its seconds are no safety's.
"""

import argparse
import json
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dolly_batch import check_job, run_job
from dolly_batch.spark import local_files, lock, publish, run
from dolly_batch.spark.generate import limits
from dolly_batch.spark.plan import planner
from dolly_batch.spark.session.session import open_session
from dolly_batch.spark.tables import delta, delta_commit

BAR = 0.03
SAFETY: dict[str, list[tuple[Any, list[str]]]] = {
    "lock and heartbeats": [(lock.JobLock, ["__enter__", "__exit__", "check", "beat"])],
    "markers, written and synced": [(local_files.LocalFiles, ["write", "create", "rename"])],
    "refusals before any work": [
        (run, ["try_output", "check_shared", "check_predicates"]),
        (planner, ["check_ids", "check_row_keys", "check_rows"]),
    ],
    "sweep of what killed starts left": [(run, ["sweep"])],
    "counts of staged answers": [(publish, ["_check_answers"]), (limits.Limits, ["check"])],
    "which commit was whose": [
        (delta, ["see", "own_version", "versions_since"]),
        (delta_commit, ["log_of", "versions_since", "seen_by"]),
    ],
    "audit": [(run, ["audit"])],
}
"""By what it is for: the functions, where their callers find them."""


class Clock:
    """Seconds inside of functions; one that is called inside of another is part of that."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside = threading.local()

    def time(self, kind: str, place: Any, name: str) -> None:
        """Time a function from now on."""
        done: Callable[..., Any] = getattr(place, name)

        def timed(*arguments: Any, **named: Any) -> Any:
            if getattr(self._inside, "kind", None):
                return done(*arguments, **named)
            self._inside.kind, began = kind, time.perf_counter()
            try:
                return done(*arguments, **named)
            finally:
                self._inside.kind = None
                self.seconds[kind] += time.perf_counter() - began

        setattr(place, name, timed)


def seconds_of_a_sign() -> float:
    """What a task's sign of life takes, which it gives once a second."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        for _ in range(200):
            (Path(folder) / ".draft").write_text(json.dumps([1, 2, 3, 4, 5.0, "host"]), encoding="ascii")
            (Path(folder) / ".draft").replace(Path(folder) / "0")
        return (time.perf_counter() - began) / 200


def document(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The job."""
    return {
        "name": "safety",
        "model": {"path": "tiny", "dtype": "float32"},
        "engine": {"kind": "fast"},
        "input": {"path": str(folder / "input.jsonl"), "format": "json", "id": "id"},
        "output": {"path": str(folder / "out"), "format": arguments.format, "mode": arguments.mode},
        "generation": {"max_new_tokens": arguments.new_tokens, "do_sample": False},
        "work_dir": str(folder / "work"),
        "spark": {"master": "local[2]"},
    }


def main() -> None:
    """Run once, and print the seconds of each kind and their share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--format", choices=["parquet", "delta"], default="delta")
    parser.add_argument("--mode", choices=["append", "merge", "overwrite"], default="append")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = ({"id": f"r{i:07d}", "instruction": f"Tell me what comes after {i}."} for i in range(arguments.rows))
        (folder / "input.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        job = check_job(document(folder, arguments), "the job")
        open_session(job)
        clock = Clock()
        for kind, places in SAFETY.items():
            for place, functions in places:
                for function in functions:
                    clock.time(kind, place, function)
        began = time.perf_counter()
        report = run_job(job)
        wall = time.perf_counter() - began
    clock.seconds["tasks' signs of life"] = seconds_of_a_sign() * report.seconds["generate"]
    for kind, seconds in sorted(clock.seconds.items(), key=lambda item: -item[1]):
        print(f"{kind:34} {seconds:8.2f} s {seconds / wall:8.2%}")
    total = sum(clock.seconds.values())
    steps = ", ".join(f"{step} {seconds:.0f}" for step, seconds in report.seconds.items())
    print(f"{'all together':34} {total:8.2f} s {total / wall:8.2%} of {wall:.0f} s ({steps}); bar {BAR:.0%}")
    print(json.dumps({"share": round(total / wall, 4), "wall_s": round(wall, 1), **clock.seconds}))


if __name__ == "__main__":
    main()
