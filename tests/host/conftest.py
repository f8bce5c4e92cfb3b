"""An address for engine hosts with an owner that a test can kill, and ways to watch the host's process."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import dolly_batch
from dolly_batch.errors import EngineError
from dolly_batch.host.address import HostAddress
from dolly_batch.records import EngineSpec, GenerationParams, PromptRow
from dolly_batch.system.process import ProcessId

TINY = Path(dolly_batch.__file__).parent / "tiny" / "model"
EXIT_S = 20.0


@pytest.fixture
def owner_process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that stands for the executor's JVM."""
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def address(owner_process: subprocess.Popen[bytes]) -> Iterator[HostAddress]:
    """A fresh address. Its hosts end within a second or two of its owner, which ends with the test."""
    top = Path(tempfile.mkdtemp(prefix="dbt"))
    yield HostAddress(ProcessId.of(owner_process.pid), None, top / "hosts")
    owner_process.kill()
    shutil.rmtree(top, ignore_errors=True)


@pytest.fixture
def echo() -> EngineSpec:
    """An engine that answers with the instruction itself, with the tokenizer of the package's small model."""
    if not (TINY / "tokenizer.json").exists():
        pytest.skip(f"the small model has not been trained: {TINY}")
    return EngineSpec(kind="echo", model_folder=str(TINY))


@pytest.fixture
def prompts() -> Callable[..., Iterator[PromptRow]]:
    """Rows `row 0`, `row 1` ... under the keys `key-0`, `key-1` ..."""

    def rows(num_rows: int) -> Iterator[PromptRow]:
        params = GenerationParams(max_new_tokens=256, do_sample=False)
        return (PromptRow(f"key-{i}", f"row {i}", None, params, i) for i in range(num_rows))

    return rows


@pytest.fixture
def ends() -> Callable[[int], bool]:
    """Waits for a process to be gone; false when it is not within the time a dying host may take."""
    return lambda pid: wait_until(lambda: not is_running(pid))


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], bool]:
    """Waits for a condition; false when it is not met in time."""
    return wait_until


def wait_until(condition: Callable[[], bool], timeout_s: float = EXIT_S) -> bool:
    deadline = time.monotonic() + timeout_s
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return met


def is_running(pid: int) -> bool:
    try:
        return ProcessId.of(pid).is_alive()
    except EngineError:
        return False
