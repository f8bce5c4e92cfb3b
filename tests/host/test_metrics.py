"""Counts of a host for Prometheus: off by default, nothing of a row, and no harm where they cannot be written."""

import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dolly_batch.host import metrics as metrics_module
from dolly_batch.host.address import HostAddress
from dolly_batch.host.client import EngineClient
from dolly_batch.host.metrics import Metrics
from dolly_batch.records import Completion, EngineSpec, Failure, GenerationParams, PromptRow, Scores
from tests.host.conftest import EXIT_S

SAMPLE = re.compile(r'dolly_batch_(\w+)\{engine="([^"]*)",device="([^"]*)"(?:,status="(\w+)")?\} ([\d.e+]+)')


def samples(text: str) -> dict[str, float]:
    """The metrics by name, or by status; every line is a comment or a sample."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        if not line.startswith(("# HELP dolly_batch_", "# TYPE dolly_batch_")):
            match = SAMPLE.fullmatch(line)
            assert match is not None, line
            found[match[4] or match[1]] = float(match[5])
    return found


def test_answers_are_counted_by_how_they_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics(str(tmp_path / "new"), 'host "1"/cuda', "cuda:0")
    failure = Failure("out_of_memory", "SECRET")
    metrics.count(
        [Completion("k", "SECRET", (1, 2, 3), "stop", 10, num_partial_tokens=1), Scores("s", (0.1,), None, 7)]
    )
    metrics.count([Completion("k2", "", (), None, 5, failure)])
    metrics.write(4, lambda: {"kv_bytes": 1e6, "num_out_of_memory": 2.0, "slot_steps": 9})
    (path,) = (tmp_path / "new").iterdir()
    text = path.read_text()
    assert path.name == "dolly_batch_host__1__cuda.prom"
    found = samples(text)
    assert found.pop("written_time_seconds") == pytest.approx(time.time(), abs=60)
    assert found == {
        **{"generated_tokens_total": 2, "prompt_tokens_total": 22, "rows_in_work": 4, "kv_bytes": 1e6},
        **{"out_of_memory_steps_total": 2, "answered": 2, "out_of_memory": 1},
    }
    assert "SECRET" not in text
    metrics.write(3)
    assert path.read_text() == text  # not twice within ten seconds ...
    metrics.write(0)
    assert path.read_text() == text
    monkeypatch.setattr(metrics_module, "IDLE_EVERY_S", 0.0)
    metrics.write(0)
    assert samples(path.read_text())["rows_in_work"] == 0  # ... but within a second of the end of work


def test_an_engine_that_is_idle_again_and_again_is_asked_once_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, asked = [100.0], []
    monkeypatch.setattr(metrics_module.time, "monotonic", lambda: now[0])
    metrics = Metrics(str(tmp_path), "host", None)
    assert metrics.idle_s == 0.0

    def stats() -> dict[str, float]:
        asked.append(now[0])
        return {}

    for _ in range(32):  # a row each eighth of a second, alone each time
        metrics.count([Scores("s", (0.1,), None, 7)])
        metrics.write(0, stats)
        now[0] += 0.125
    assert asked == [100.0, 101.0, 102.0, 103.0]
    assert metrics.idle_s == 0.0  # so long the host waits for rows, and then says that it is idle
    metrics.write(0, stats)
    assert metrics.idle_s is None
    now[0] += 60
    metrics.write(0, stats)
    assert len(asked) == 5
    metrics.write(1, stats)
    assert len(asked) == 6
    assert metrics.idle_s == 1.0


def test_no_folder_and_one_that_cannot_be_written_do_no_harm(tmp_path: Path) -> None:
    off = Metrics(None, "host", None)
    off.count([Scores("s", (0.1,), None, 7)])
    off.write(0, lambda: pytest.fail("the engine was asked"))
    (tmp_path / "file").write_text("")
    Metrics(str(tmp_path / "file"), "host", None).write(0)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_host_writes_its_counts(echo: EngineSpec, address: HostAddress, tmp_path: Path) -> None:
    spec = replace(echo, metrics_dir=str(tmp_path))
    rows = [PromptRow(f"k{n}", f"Say {n}.", None, GenerationParams(do_sample=False)) for n in range(3)]
    with EngineClient.connect(spec, address) as client:
        tokens = sum(answer.num_completion_tokens for answer in client.generate(iter(rows)))
        until = time.monotonic() + EXIT_S  # answers are passed on first
        found: dict[str, float] = {}
        while (found.get("answered"), found.get("rows_in_work")) != (3, 0) and time.monotonic() < until:
            time.sleep(0.01)
            found = next((samples(path.read_text()) for path in tmp_path.glob("*.prom")), {})
    assert (found["generated_tokens_total"], found["answered"], found["rows_in_work"]) == (tokens, 3, 0)
