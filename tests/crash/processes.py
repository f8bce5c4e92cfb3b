"""The processes of a run as /proc shows them: the driver's JVM, executors, Python workers, engine hosts."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest

Found = TypeVar("Found")


class Process(NamedTuple):
    """One line of the process table."""

    pid: int
    parent: int
    words: tuple[str, ...]


def processes() -> Iterator[Process]:
    """All processes that run now, without zombies."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            yield Process(int(folder.name), int(parent), tuple(words))


def below(root: int) -> list[Process]:
    """All descendants of a process, parents first."""
    every = list(processes())
    found = [process for process in every if process.parent == root]
    for process in found:  # grows while it is walked
        found += [child for child in every if child.parent == process.pid]
    return found


def environ(process: Process) -> bytes:
    """Its environment as it was when it started; empty for one that is gone."""
    try:
        return Path(f"/proc/{process.pid}/environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""


def state_of(pid: int) -> str:
    """One letter, as ps has it: R, S, T for suspended, Z; empty for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def jvm_of(driver: int) -> int | None:
    """The driver's JVM, and not one of those that only look for Java or make up Spark's command line."""
    return next((p.pid for p in below(driver) if "org.apache.spark.deploy.SparkSubmit" in p.words), None)


def executors_of(driver: int) -> list[int]:
    """The executor JVMs of a local-cluster run."""
    return [p.pid for p in below(driver) if any("CoarseGrainedExecutorBackend" in word for word in p.words)]


def workers_of(root: int) -> list[int]:
    """The Python workers below a driver or an executor: the children of Spark's forking daemon."""
    found = [process for process in below(root) if "pyspark.daemon" in process.words]
    daemons = {process.pid for process in found}
    return [process.pid for process in found if process.parent in daemons]


def hosts_of(owner: int) -> dict[int, Path]:
    """The engine hosts that belong to a JVM, each with its folder, whose name starts with the owner's pid."""
    return {
        p.pid: Path(p.words[i + 1])
        for p in processes()
        for i, word in enumerate(p.words)
        if word == "dolly_batch.host.server" and Path(p.words[i + 1]).name.startswith(f"{owner}-")
    }


def kill(pid: int) -> None:
    """kill -9; a process that has just gone by itself is no error."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def suspend(pid: int) -> None:
    """SIGSTOP, and waits until it has come to rest."""
    os.kill(pid, signal.SIGSTOP)
    wait_for(f"process {pid} at rest", lambda: state_of(pid) in ("T", "Z", ""))


def resume(pid: int) -> None:
    """SIGCONT."""
    os.kill(pid, signal.SIGCONT)


def wait_for(what: str, look: Callable[[], Found], timeout_s: float = 240.0) -> Found:
    """The first true result of `look`. Fails the test when there is none in time."""
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        if time.monotonic() > deadline:
            pytest.fail(f"not seen within {timeout_s:g} s: {what}")
        time.sleep(0.02)
    return found
