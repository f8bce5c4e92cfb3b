"""The runner for the first minutes with a GPU: every failure is survived, and every result is kept as it comes."""

import json
from pathlib import Path

import pytest

from benchmarks.gpu.checks import CHECKS
from benchmarks.gpu.eight_bits_checks import EIGHT_BITS_CHECKS
from benchmarks.gpu.first_minutes import PARTS, TINY, Runner, Task
from benchmarks.gpu.int8_checks import INT8_CHECKS
from benchmarks.gpu.main import arguments

PLANTED = """
import os, time

def crash(device):
    os.abort()

def hang(device):
    time.sleep(600)

def wrong(device):
    raise AssertionError("3 is not 4")

CHECKS = {"fine": lambda device: f"on {device}", "crash": crash, "hang": hang, "wrong": wrong}
"""


def results(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_a_crash_a_hang_and_a_wrong_result_cost_nothing_but_themselves(tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(PLANTED)
    runner = Runner(tmp_path, "cpu", also=str(tmp_path / "planted.py"))
    names = ("fine", "crash", "fine", "hang", "fine", "wrong", "fine")
    found = runner.run([Task(name, 1.5 if name == "hang" else 30.0) for name in names])
    outcomes = [result["outcome"] for result in found]
    assert outcomes == ["ok", "crashed", "ok", "hung", "ok", "failed", "ok"]
    assert "3 is not 4" in found[5]["failed"]
    written = results(tmp_path)
    # What crashed or failed is tried once more, with launches that wait.
    assert [(line["task"], line["blocking"]) for line in written] == [
        *(("fine", False), ("crash", False), ("crash", True), ("fine", False), ("hang", False)),
        *(("fine", False), ("wrong", False), ("wrong", True), ("fine", False)),
    ]
    assert found[1]["exit"] == -6
    assert "Fatal Python error: Aborted" in (tmp_path / "children.log").read_text()


def test_what_there_is_no_time_for_is_said_to_be_skipped(tmp_path: Path) -> None:
    found = Runner(tmp_path, "cpu", budget_s=1.0).run([Task("fine")])
    assert [result["outcome"] for result in found] == ["skipped"]
    assert [line["outcome"] for line in results(tmp_path)] == ["skipped"]


def test_both_parts_fit_into_their_minutes_and_name_what_there_is() -> None:
    known = {**CHECKS, **EIGHT_BITS_CHECKS, **INT8_CHECKS}
    for tasks in (*PARTS.values(), TINY):
        for task in tasks:
            if task.is_check:
                assert task.name in known
            else:
                given = arguments(task.name.split()[1:])
                assert tasks is TINY or 60 * given.minutes < task.limit_s
    tried = {task.name for tasks in PARTS.values() for task in tasks if task.is_check}
    assert tried == set(known)
    assert PARTS[2][-1].name == "memory runs out"
    timed = sum(task.limit_s for task in PARTS[1] if not task.is_check)
    assert timed + 120 + 30 * (len(PARTS[1]) - 2) < 570  # half a minute a check, two for the first


@pytest.mark.chaos  # all checks and timings, some minutes
def test_all_of_it_runs_with_the_smallest_sizes(tmp_path: Path) -> None:
    found = Runner(tmp_path, "cpu", budget_s=900.0).run(TINY)
    assert [result["task"] for result in found if result["outcome"] != "ok"] == []
