"""A staged folder appears whole, once, whoever else builds it and whatever is killed."""

import itertools
import json
import os
import subprocess
import sys
import time

from dolly_batch.models.folder import inspect_folder, verify_hashes
from dolly_batch.staging.atomic_folder import STALE_AFTER_S, partial_folder, publish, turn_to_build
from tests.staging.small_repository import PROJECT

# The first process to get as far as copying weights is killed there; the 49 others go on.
FIFTY = """
import json, os, signal, sys
from dolly_batch.staging import stage_under
source, stage_dir, marker, results = sys.argv[1:]

def log(line):
    if line.startswith("copying"):
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

children = []
for number in range(50):
    pid = os.fork()
    if pid == 0:
        staged = stage_under(source, stage_dir, log=log)
        with open(f"{results}/{number}", "w") as file:
            json.dump([str(staged.folder), staged.identity, staged.already_there], file)
        os._exit(0)
    children.append(pid)
print(json.dumps([os.waitpid(pid, 0)[1] for pid in children]))
"""


def test_fifty_processes_and_a_kill_leave_one_whole_copy(plain, tmp_path):
    stage_dir, results = tmp_path / "models", tmp_path / "results"
    results.mkdir()
    command = [sys.executable, "-c", FIFTY, str(plain), str(stage_dir), str(tmp_path / "killed"), str(results)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert sorted(json.loads(done.stdout)) == [0] * 49 + [9], done.stderr
    answers = [json.loads(path.read_text()) for path in results.iterdir()]
    assert len(answers) == 49
    assert len({(folder, identity) for folder, identity, _ in answers}) == 1
    assert sum(not already_there for _, _, already_there in answers) == 1, "the others wait instead of working"
    (only,) = os.listdir(stage_dir)
    folder = inspect_folder(stage_dir / only)
    verify_hashes(folder)
    assert folder.sha256 == answers[0][1]


def test_the_second_to_publish_loses_and_changes_nothing(tmp_path):
    dest = tmp_path / "model"
    with partial_folder(dest) as ours, partial_folder(dest) as theirs:
        (ours / "file").write_text("ours")
        (theirs / "file").write_text("theirs")
        assert publish(theirs, dest) is True
        assert publish(ours, dest) is False
    assert (dest / "file").read_text() == "theirs"
    assert os.listdir(tmp_path) == ["model"]


def test_leftovers_go_when_they_are_dead_and_stay_while_they_may_live(tmp_path):
    dest = tmp_path / "model"
    elsewhere = tmp_path / ".model.partial-otherkernel-1"
    old = tmp_path / ".model.partial-otherkernel-2"
    not_ours = tmp_path / ".model2.partial-otherkernel-3"
    for folder in (elsewhere, old, not_ours):
        folder.mkdir()
        (folder / "file").write_text("")
    long_ago = time.time() - STALE_AFTER_S - 60
    for path in (old / "file", old, not_ours / "file", not_ours):
        os.utime(path, (long_ago, long_ago))
    with partial_folder(dest) as killed_here, turn_to_build(dest, lambda line: None):
        assert not killed_here.exists()
        assert not old.exists()
        assert elsewhere.exists()
        assert not_ours.exists()


def test_builders_of_one_folder_take_turns_and_leave_no_lock(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from dolly_batch.staging.atomic_folder import turn_to_build\n"
        "with turn_to_build(Path(sys.argv[1]), print):\n"
        "    began = time.monotonic(); time.sleep(0.3); print('held', began, time.monotonic())\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "model")]
    running = [subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    lines = [line.split() for child in running for line in child.communicate(timeout=60)[0].splitlines()]
    held = sorted((float(line[1]), float(line[2])) for line in lines if line[0] == "held")
    assert len(held) == 4
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(held))
    assert os.listdir(tmp_path) == []
