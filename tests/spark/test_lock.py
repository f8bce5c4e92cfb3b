"""The lock of a job: who holds it, when it is taken over, and what a start that has lost it says. No Spark needed."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dolly_batch.errors import AlreadyRunning, AuditError
from dolly_batch.spark.files import LocalFiles
from dolly_batch.spark.lock import JobLock, is_held

HOLD = """
import sys, time
from dolly_batch.spark.files import LocalFiles
from dolly_batch.spark.lock import JobLock
with JobLock(LocalFiles(), sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / ".job.lock")


def lock(path: str) -> JobLock:
    return JobLock(LocalFiles(), path, patience_s=0.5)


def test_it_is_held_by_one_and_given_back(path: str) -> None:
    assert not is_held(LocalFiles(), path)
    with lock(path) as mine:
        mine.check()
        with pytest.raises(AlreadyRunning, match="is active"), lock(path):
            pass
        assert is_held(LocalFiles(), path)
        mine.check()
    assert not Path(path).exists()
    with lock(path):
        pass


def test_that_of_a_killed_process_is_taken_over_at_once(path: str) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(AlreadyRunning, match=f"process {holder.pid}"), lock(path):
        pass
    holder.kill()
    holder.communicate()
    assert not is_held(LocalFiles(), path)
    with lock(path) as mine:
        mine.check()


def test_on_another_machine_who_holds_it_is_known_by_its_heartbeat(path: str) -> None:
    def beat(beats: int) -> None:
        LocalFiles().write(path, json.dumps({"token": "t", "beats": beats, "host": "elsewhere/1", "pid": 1}))

    beat(0)
    assert not is_held(LocalFiles(), path, patience_s=0.2)
    later = threading.Timer(0.1, beat, [1])
    later.start()
    assert is_held(LocalFiles(), path, patience_s=5.0)
    later.join()


def test_a_start_that_has_lost_it_says_so_whatever_it_fails_by(path: str) -> None:
    """What it was reading may be gone: the other start has finished and swept up."""
    with pytest.raises(AlreadyRunning, match="has taken over") as caught:
        fail_without_it(path, FileNotFoundError("a staged file"))
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_faults_with_a_name_and_ctrl_c_pass_through(path: str) -> None:
    for fault in (AuditError("rows are missing"), KeyboardInterrupt()):
        with pytest.raises(type(fault)):
            fail_without_it(path, fault)


def fail_without_it(path: str, fault: BaseException) -> None:
    with lock(path):
        Path(path).unlink()
        raise fault


def test_a_lock_that_another_has_taken_is_not_given_back(path: str) -> None:
    with lock(path) as lost:
        Path(path).unlink()
        with lock(path) as taken:
            with pytest.raises(AlreadyRunning):
                lost.check()
            taken.check()


def test_it_is_readable_by_the_version_before_and_reads_what_that_wrote(path: str) -> None:
    """In its file `started` is field 22 of /proc/PID/stat, and null where there is no /proc."""
    with lock(path):
        holder = json.loads(Path(path).read_text())
        assert set(holder) == {"token", "beats", "host", "pid", "started"}
        assert holder["pid"] == os.getpid()
        stat = Path("/proc/self/stat")
        assert holder["started"] == (stat.read_text().rsplit(")", 1)[1].split()[19] if stat.exists() else None)
    for started in (holder["started"], None):
        Path(path).write_text(json.dumps({**holder, "token": "of another start", "started": started}))
        with pytest.raises(AlreadyRunning, match="is active"), lock(path):
            pass
    Path(path).write_text(json.dumps({**holder, "started": "1"}))
    with lock(path) as mine:
        mine.check()


class Failing(LocalFiles):
    """A file system that fails, and shows no file, every other time."""

    def __init__(self) -> None:
        self.calls = 0

    def read(self, path: str) -> str | None:
        self.calls += 1
        if self.calls % 4 == 1:
            raise OSError("503 Slow Down")
        return None if self.calls % 4 == 3 else super().read(path)

    def write(self, path: str, text: str) -> None:
        self.calls += 1
        if self.calls % 3 == 0:
            raise OSError("503 Slow Down")
        super().write(path, text)


def test_moments_without_a_file_and_faults_of_the_file_system_lose_no_lock(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dolly_batch.spark.lock.BEAT_S", 0.02)
    monkeypatch.setattr("dolly_batch.spark.lock.LOOK_S", 0.005)
    with JobLock(Failing(), path) as mine:
        before, end, num_checks = json.loads(Path(path).read_text())["beats"], time.monotonic() + 60, 0
        # A busy machine may give the thread that beats no turn for a second.
        while num_checks < 40 or json.loads(Path(path).read_text())["beats"] <= before + 3:
            mine.check()
            time.sleep(0.01)
            num_checks += 1
            assert time.monotonic() < end, "no heartbeat"
    assert not Path(path).exists()


def test_that_of_another_machine_is_taken_over_when_it_has_no_heartbeat(path: str) -> None:
    holder = {"token": "theirs", "beats": 0, "host": "elsewhere/boot", "pid": os.getpid(), "started": None}
    Path(path).write_text(json.dumps(holder))
    beat = threading.Timer(0.2, lambda: Path(path).write_text(json.dumps({**holder, "beats": 1})))
    beat.start()
    with pytest.raises(AlreadyRunning, match="on elsewhere"), lock(path):
        pass
    began = time.monotonic()
    with lock(path) as mine:
        assert time.monotonic() - began >= 0.5
        mine.check()
