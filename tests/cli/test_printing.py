"""What a command prints: whoever reads it, and in whatever letters, the command ends as its work did."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dolly_batch
from dolly_batch.cli import main
from dolly_batch.console import print_line, print_rows, print_summary, say, standard_output
from dolly_batch.errors import InputError
from dolly_batch.report import Report

JOB = """
name: job
model: {path: tiny}
input: {path: in, format: parquet}
output: {path: out}
work_dir: work
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A job whose run is complete as soon as it is called."""

    def run_job(job: Any, options: Any, *, report: Report) -> Report:
        report.outcome, report.exit_code, report.message = "complete", 3, "job: complete, 1 row"
        return report

    monkeypatch.setattr(dolly_batch, "run_job", run_job)
    path = tmp_path / "job.yaml"
    path.write_text(JOB, encoding="utf-8")
    return str(path)


@pytest.fixture
def nobody() -> Iterator[io.TextIOWrapper]:
    """A pipe whose reader has gone away."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", encoding="utf-8") as pipe:
        yield pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), pipe.fileno())


@pytest.mark.parametrize("streams", [("stdout",), ("stderr",), ("stdout", "stderr")])
def test_a_reader_that_goes_away_ends_nothing(
    job: str, nobody: io.TextIOWrapper, streams: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in streams:
        monkeypatch.setattr(sys, name, nobody)
    assert main(["run", job, "--json"]) == 3
    with standard_output():
        print_summary(Report("job", message="complete"))
        print_rows(["id"], [("a",)])
        print_line("{}")
        say("a line")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
def test_a_full_disk_below_standard_output_is_named(
    job: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["run", job, "--json"]) == 3
        assert "standard output cannot be written: No space left on device" in capsys.readouterr().err


def test_letters_that_the_terminal_has_not_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    with standard_output():
        print_rows(["id"], [("caf\u00e9 \U0001f600",)])
    assert rb"caf\xe9 \U0001f600" in written.getvalue()


def test_rows_that_cannot_be_shown_do_not_make_a_complete_run_a_refused_one(
    job: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def show(*arguments: Any) -> None:
        raise InputError("input in cannot be read")

    monkeypatch.setattr("dolly_batch.cli._show", show)
    assert main(["run", job, "--show", "3", "--json"]) == 3
    said = capsys.readouterr()
    assert json.loads(said.out.splitlines()[-1])["outcome"] == "complete"
    assert "--show: input in cannot be read" in said.err


@pytest.mark.parametrize("number", ["abc", "0", "-1", "1.5", ""])
def test_a_number_that_is_none_is_named(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "job.yaml", f"--limit={number}"]) == 2
    assert f"argument --limit: must be a whole number, 1 or more, not {number}" in capsys.readouterr().err


def test_ctrl_c_is_told_in_a_line_by_the_commands_without_a_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*arguments: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dolly_batch.staging.stage.stage_to", stop)
    monkeypatch.setattr("dolly_batch.cli._page_of", stop)
    assert main(["stage-model", "tiny", "there"]) == 5
    assert main(["report", "work"]) == 5
    assert capsys.readouterr().err == "dolly-batch: interrupted\n" * 2


def test_ctrl_c_while_python_still_imports_is_one_line(tmp_path: Path) -> None:
    interrupting = """
import os, signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "pydantic":
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
"""
    (tmp_path / "sitecustomize.py").write_text(interrupting, encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), str(Path(dolly_batch.__file__).parent.parent)])
    command = [sys.executable, "-m", "dolly_batch.command", "run", "job.yaml"]
    ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (5, "dolly-batch: interrupted\n")
