"""Which process a pid means, and what a process that ends by an error says of it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dolly_batch.errors import EngineError, InputError, ModelError
from dolly_batch.system.process import (
    EXIT_FAULT,
    ProcessFailure,
    ProcessId,
    _status_from_proc,
    _status_from_ps,
    parent_jvm,
)
from tests.conftest import PROJECT


@pytest.fixture
def sleeping() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def test_a_process_is_not_its_pid(sleeping: subprocess.Popen[bytes]):
    process = ProcessId.of(sleeping.pid)
    assert process.is_alive()
    assert replace(process, started="").is_alive()
    assert not replace(process, started="another start").is_alive()
    sleeping.kill()
    os.waitid(os.P_PID, sleeping.pid, os.WEXITED | os.WNOWAIT)  # A zombie from here on.
    assert not process.is_alive()
    assert not replace(process, started="").is_alive()
    sleeping.wait()
    with pytest.raises(EngineError, match=str(sleeping.pid)):
        ProcessId.of(sleeping.pid)


def test_the_owner_of_a_spark_task_is_the_jvm_above_it(tmp_path: Path):
    java = tmp_path / "java"  # A process of that name with a Python process two levels below it.
    java.symlink_to(sys.executable)
    ask = "from dolly_batch.system.process import parent_jvm; print(parent_jvm().pid)"
    below = f"import subprocess, sys; sys.exit(subprocess.run([{sys.executable!r}, '-c', {ask!r}]).returncode)"
    worker = f"import subprocess; subprocess.run([{sys.executable!r}, '-c', {below!r}], check=True)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([str(java), "-c", worker], stdout=subprocess.PIPE, text=True, env=environment) as process:
        out, _ = process.communicate()
    assert int(out) == process.pid


def test_without_a_jvm_above_there_is_no_owner():
    with pytest.raises(EngineError, match="no JVM"):
        parent_jvm()


@pytest.mark.skipif(sys.platform != "linux", reason="compares /proc with ps")
def test_ps_and_proc_agree(sleeping: subprocess.Popen[bytes]):
    by_proc, by_ps = _status_from_proc(sleeping.pid), _status_from_ps(sleeping.pid)
    assert by_proc is not None
    assert by_ps is not None
    assert (by_proc.command, by_proc.parent) == (by_ps.command, by_ps.parent) == ("sleep", os.getpid())
    assert by_ps.state[0] in "SR"


ENDS = """
import json, logging, sys
from dataclasses import asdict
from dolly_batch.errors import EngineError
from dolly_batch.system.process import end_by
if sys.argv[1] == "with logging":
    logging.basicConfig()
try:
    raise {error}
except BaseException as error:
    end_by(error, lambda failure: print(json.dumps(asdict(failure)), flush=True))
"""


@pytest.mark.parametrize("set_up", ["with logging", "without"])
@pytest.mark.parametrize(
    ("error", "failure"),
    [
        ("EngineError('a fault of ours')", ProcessFailure("EngineError", "a fault of ours")),
        ("RuntimeError('CUDA error')", ProcessFailure("RuntimeError", "CUDA error")),
        ("KeyError('the text of a row')", ProcessFailure("KeyError", "")),
        ("ValueError('the text of a row')", ProcessFailure("ValueError", "")),
    ],
)
def test_a_process_reports_its_end_without_quoting_rows(set_up: str, error: str, failure: ProcessFailure):
    command = [sys.executable, "-c", ENDS.format(error=error), set_up]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == EXIT_FAULT
    assert eval(ended.stdout) == {"error": failure.error, "message": failure.message}
    assert failure.error in ended.stderr
    assert ", in <module>" in ended.stderr
    assert "the text of a row" not in ended.stderr


def test_a_process_ends_even_if_nobody_takes_its_report():
    program = "from dolly_batch.system.process import end_by\ndef gone(failure): raise BrokenPipeError\n"
    ended = subprocess.run([sys.executable, "-c", f"{program}end_by(RuntimeError(), gone)"], check=False)
    assert ended.returncode == EXIT_FAULT


def test_refusals_come_back_as_what_they_were_and_nothing_else_does():
    refusal = ProcessFailure.by(ModelError("no such model")).refusal()
    assert type(refusal) is ModelError
    assert str(refusal) == "no such model"
    assert type(ProcessFailure.by(InputError("x")).refusal()) is InputError
    for error in (EngineError("x"), OSError("x"), KeyError("x")):
        assert ProcessFailure.by(error).refusal() is None
    assert ProcessFailure("annotations", "").refusal() is None


@pytest.mark.parametrize("named", [False, True])
def test_children_import_nothing_from_the_current_folder_and_have_no_token(tmp_path: Path, named: bool):
    for name in ("torch", "transformers", "numpy"):
        (tmp_path / f"{name}.py").write_text("open('was run', 'w').close(); raise SystemExit('not the real one')\n")
    program = (
        "from dolly_batch.staging.isolated import run_isolated\n"
        "from dolly_batch.system.process import child_environment\n"
        "assert not {'HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN'} & child_environment().keys()\n"
        "run_isolated('dolly_batch.staging.tokenizer_files', ['/no/such/folder', '/no/such/folder'], print)\n"
    )
    path = [str(PROJECT), *([str(tmp_path)] if named else [])]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "HF_TOKEN": "SECRET"}
    # `-c` puts the current folder first, as a notebook and `python -m` do.
    ran = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert ran.returncode != 0
    assert "SECRET" not in ran.stderr
    # What the user has named is not taken away.
    assert (tmp_path / "was run").exists() == named, ran.stderr
