"""The command, which signals itself at one exact step: a kill between any two file operations of the driver.

    python tests/crash/stepped.py run job.yaml ...

The environment says where. `STEP` is `SIGNAL before|after OPERATION GLOB`, for example
`SIGKILL before rename */staging/wave=2`: the first time the driver's file system is about to rename something to such
a path, the process kills itself. SIGINT goes to the whole process group, as a terminal sends it. `WITHOUT` switches a
guard off, for the inverse tests.
"""

import fnmatch
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from dolly_batch.cli import main
from dolly_batch.spark.files import Files, LocalFiles
from dolly_batch.spark.plan.manifest import Plan, PlanFolder
from dolly_batch.spark.tables import parquet
from dolly_batch.spark.tables.output import OutputTable


def signal_at(name: str, when: str, operation: str, pattern: str) -> None:
    """Have the first `operation` on a path like `pattern` send this process a signal, before or after it is done."""
    number = signal.Signals[name]
    done: Callable[..., Any] = getattr(LocalFiles, operation)
    sent = []

    def stepped(files: LocalFiles, *arguments: str) -> Any:
        path = arguments[1] if operation == "rename" else arguments[0]
        hit = not sent and fnmatch.fnmatch(path, pattern)
        if hit:
            sent.append(path)
        if hit and when == "before":
            send(number)
        result = done(files, *arguments)
        if hit and when == "after":
            send(number)
        return result

    setattr(LocalFiles, operation, stepped)


def send(number: signal.Signals) -> None:
    if number == signal.SIGINT:
        os.killpg(0, number)
    else:
        os.kill(os.getpid(), number)


def append_without_looking(
    target: OutputTable, files: Files, path: str, folder: PlanFolder, plan: Plan, rows: Any
) -> None:
    """The commit of Parquet's append without its guard: whoever comes twice writes twice."""
    rows.write.mode("append").parquet(f"{path}/plan_id={plan.plan_id}")


if __name__ == "__main__":
    if step := os.environ.get("STEP"):
        signal_at(*step.split(" ", 3))
    if os.environ.get("WITHOUT") == "the commit's guard":
        parquet._add_folder = append_without_looking
    sys.exit(main(sys.argv[1:]))
