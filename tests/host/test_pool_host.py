"""The fast engine behind the host: its processes answer for the host, and go with it."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dolly_batch.engine.load import load_engine
from dolly_batch.engine.protocol import generate
from dolly_batch.errors import EngineError
from dolly_batch.host.address import HostAddress
from dolly_batch.host.client import EngineClient
from dolly_batch.prompt import PromptEncoder
from dolly_batch.records import EngineSpec, GenerationParams, PromptRow, Request

SAMPLED = GenerationParams(max_new_tokens=12, repetition_penalty=1.1)
ROWS = [PromptRow(f"row {row}", f"Name the city, {row}.", "Ada lives in Paris.", SAMPLED, row) for row in range(50)]


def below(pid: int) -> list[int]:
    """The processes under this one."""
    listing = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    found = [int(line) for line in listing.stdout.split()]
    return [*found, *(deeper for child in found for deeper in below(child))]


def test_a_host_of_two_processes_answers_as_the_engine_and_none_outlives_it(
    echo: EngineSpec, address: HostAddress, ends: Callable[[int], bool], tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    spec = replace(echo, kind="auto", dtype="float32", processes=2, kv_bytes=2**27, metrics_dir=str(tmp_path))
    on_cpu = replace(address, device="cpu")
    engine = load_engine(replace(spec, processes=1), "cpu")
    assert isinstance(engine.encoder, PromptEncoder)
    requests = [Request(r.key, tuple(engine.encoder.encode(r.instruction, r.context)), SAMPLED, r.seed) for r in ROWS]
    with EngineClient.connect(spec, on_cpu) as client, EngineClient.connect(spec, on_cpu) as other:
        answers = {completion.key: completion for completion in client.generate(iter(ROWS))}
        assert answers == {completion.key: completion for completion in generate(engine, requests)}
        assert client.incarnation == other.incarnation == 1
        (counts,) = tmp_path.glob("*.prom")  # the host has asked its processes for theirs
        assert "\ndolly_batch_kv_peak_bytes{" in counts.read_text()
        processes = below(client.host_pid)
        assert len(processes) == 2  # the leader, and the one that it forked
        more = (replace(row, key=f"{row.key} {copy}", seed=copy) for row in ROWS for copy in range(1_000))
        unanswered = client.generate(more)
        next(unanswered)
        os.kill(processes[-1], signal.SIGKILL)
        with pytest.raises(EngineError, match="ended by itself"):
            list(unanswered)
    assert all(ends(pid) for pid in [*processes, client.host_pid])


def test_a_frozen_process_ends_the_host_though_the_other_goes_on_and_rows_keep_coming(
    echo: EngineSpec, address: HostAddress, ends: Callable[[int], bool]
) -> None:
    pytest.importorskip("torch")
    spec = replace(echo, kind="auto", dtype="float32", processes=2, kv_bytes=2**27, step_timeout_s=3.0)
    with EngineClient.connect(spec, replace(address, device="cpu")) as client:
        processes = below(client.host_pid)
        rows = (replace(row, key=f"{row.key} {copy}", seed=copy) for row in ROWS for copy in range(100_000))
        answers = client.generate(rows)
        next(answers)
        os.kill(processes[-1], signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(EngineError, match=r"Timeout \(0:00:03"):
            list(answers)
        assert 2.0 <= time.monotonic() - began < 3.0 + 20
    assert all(ends(pid) for pid in [*processes, client.host_pid])
