"""An engine of several processes: the same answers as one, an end for all when one ends, and none left behind."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dolly_batch.engine.load import load_engine
from dolly_batch.engine.processes.pool import WorkerPool
from dolly_batch.engine.protocol import Engine
from dolly_batch.engine.protocol import answer as stream_answers
from dolly_batch.errors import ConfigError, EngineError, ModelError
from dolly_batch.records import EngineSpec, GenerationParams, Request, ScoreRequest, Scores
from tests.engine.engines import answer
from tests.engine.questions import mixed_requests

LONG = GenerationParams(max_new_tokens=1_500)


@pytest.fixture
def spec(neox_folder: Path) -> EngineSpec:
    return EngineSpec("auto", str(neox_folder), dtype="float32", processes=2, kv_bytes=2**27)


@pytest.fixture
def pool(spec: EngineSpec) -> Iterator[WorkerPool]:
    engine = load_engine(spec, "cpu")
    assert isinstance(engine, WorkerPool)
    yield engine
    engine.close()


def children(pid: int) -> list[int]:
    listing = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in listing.stdout.split()]


def processes_of(engine: Engine) -> list[int]:
    """The leader, and those that it has forked."""
    assert isinstance(engine, WorkerPool)
    return [engine._leader.pid, *children(engine._leader.pid)]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def run_until_it_ends(engine: Engine) -> None:
    for _ in range(10_000):
        engine.step()


def test_two_processes_answer_as_one(pool: WorkerPool, spec: EngineSpec) -> None:
    one = load_engine(replace(spec, processes=1), "cpu")
    requests = mixed_requests(one.encoder, 150)  # type: ignore[arg-type]
    greedy = mixed_requests(one.encoder, 10, do_sample=False)  # type: ignore[arg-type]
    requests += [replace(row, key=f"{row.key} again {copy}") for row in greedy for copy in range(3)]
    requests += [Request("empty", (), LONG), Request("long", (5,) * 600, LONG)]
    assert answer(pool, requests) == answer(one, requests)
    assert pool.num_unfinished == 0
    continuations = [[5, 6, 7], [9], []]
    assert pool.score([8, 9], continuations) == one.score([8, 9], continuations)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="0 tokens"):
        pool.score([], [[5]])
    stats = pool.stats()
    assert stats["num_answer_tokens"] > 100
    assert 0 <= stats["occupancy"] <= 1
    pids = processes_of(pool)
    assert len(pids) == 2
    pool.close()
    assert within(10, lambda: not any(map(is_running, pids)))


def test_large_requests_and_large_answers_do_not_wait_for_each_other(pool: WorkerPool) -> None:
    """Both sides' sockets fill up: 80 requests of 5 kB wait for a process that has 45 answers of 16 kB to send."""

    def give_up(*_: object) -> None:
        raise TimeoutError("the pool and a process wait for each other")

    continuations = ((300,),) * 800
    requests = [
        ScoreRequest(str(row), (*range(5, 93), 5 + row % 300, 5 + row // 300), continuations) for row in range(600)
    ]
    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    try:
        found = list(stream_answers(pool, requests))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert {answer.key for answer in found} == {request.key for request in requests}
    assert {len(answer.log_probs) for answer in found if isinstance(answer, Scores)} == {800}


@pytest.mark.parametrize("which", [pytest.param(0, marks=pytest.mark.chaos), 1])
def test_a_process_that_dies_ends_the_engine(pool: WorkerPool, which: int) -> None:
    pids = processes_of(pool)
    for row in range(8):
        pool.submit(Request(str(row), (5, 6, 7 + row), LONG))
    pool.step()
    os.kill(pids[which], signal.SIGKILL)
    with pytest.raises(EngineError, match="ended by itself"):
        run_until_it_ends(pool)
    assert within(10, lambda: not any(map(is_running, pids)))


@pytest.mark.parametrize("which", [pytest.param(0, marks=pytest.mark.chaos), 1])
def test_no_heartbeat_comes_from_a_stuck_process(spec: EngineSpec, which: int) -> None:
    beats: list[float] = []
    engine = load_engine(spec, "cpu", lambda: beats.append(time.monotonic()))
    pids = processes_of(engine)
    for row in range(8):
        engine.submit(Request(str(row), (5, 6, 7 + row), LONG))
    while len(beats) < 2:
        engine.step()
    os.kill(pids[which], signal.SIGSTOP)
    stopped = time.monotonic()
    while time.monotonic() < stopped + 2.5:
        engine.step()
    # The other one goes on; the stopped one's last word may have been on its way.
    assert all(beat < stopped + 1.0 for beat in beats)
    engine.close()
    assert within(10, lambda: not any(map(is_running, pids)))


def test_a_stuck_step_leaves_its_stack_and_ends_the_engine(spec: EngineSpec, capfd: pytest.CaptureFixture[str]) -> None:
    engine = load_engine(replace(spec, step_timeout_s=0.02), "cpu")
    for row in range(60):
        engine.submit(Request(str(row), tuple([5] * (500 + row)), LONG))
    with pytest.raises(EngineError, match="ended by itself"):
        run_until_it_ends(engine)
    assert "Timeout (0:00:00.02" in capfd.readouterr().err


def test_none_outlives_a_killed_parent_which_has_no_torch(spec: EngineSpec) -> None:
    program = f"""
        import sys, time
        from dolly_batch.engine.load import load_engine
        from dolly_batch.records import EngineSpec
        engine = load_engine({spec!r}, "cpu")
        assert not {{"torch", "transformers"}} & set(sys.modules)
        print(engine._leader.pid, flush=True)
        time.sleep(600)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    leader = int(parent.stdout.readline())
    pids = [leader, *children(leader)]
    assert len(pids) == 2
    os.kill(pids[1], signal.SIGSTOP)  # even one that can do nothing itself
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert within(10, lambda: not any(map(is_running, pids)))


def test_what_cannot_be_loaded_is_told_by_its_name(spec: EngineSpec) -> None:
    with pytest.raises(ModelError, match="the plan was made with"):
        load_engine(replace(spec, model_sha256="0" * 64), "cpu")


@pytest.mark.parametrize(
    ("changes", "folder", "message"),
    [
        ({"kind": "fast"}, "gptj_folder", r"engine\.kind is 'fast', which does not run a GPT-J model"),
        ({"quantization": "int8"}, "gptj_folder", r"model\.quantization is 'int8', which a GPT-J model cannot have"),
        ({"quantization": "int8", "kind": "plain"}, "neox_folder", "which engine.kind plain cannot have"),
        ({"quantization": "int4"}, "neox_folder", "expected none, int8 or fp8"),
    ],
)
def test_what_the_fast_engine_cannot_do_is_refused(
    request: pytest.FixtureRequest, spec: EngineSpec, changes: dict[str, str], folder: str, message: str
) -> None:
    model_folder = str(request.getfixturevalue(folder))
    with pytest.raises(ConfigError, match=message):
        load_engine(replace(spec, model_folder=model_folder, processes=1, **changes), "cpu")  # type: ignore[arg-type]
