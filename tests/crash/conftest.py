"""A folder for a job whose starts are to be killed, and nothing left of them afterwards."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.crash.command import Job
from tests.crash.processes import kill

NewJob = Callable[..., Job]


@pytest.fixture
def new_job(tmp_path: Path) -> Iterator[NewJob]:
    """Makes the test's job; its drivers and hosts are killed when the test ends."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("these tests look processes up in /proc")
    hosts = Path(tempfile.mkdtemp(prefix="dbc", dir="/tmp"))  # short: a Unix socket's path has to fit
    jobs: list[Job] = []

    def make(**sections: dict[str, Any]) -> Job:
        jobs.append(Job.make(tmp_path, hosts, **sections))
        return jobs[-1]

    yield make
    for job in jobs:
        for start in job.starts:
            start.kill_all()
        for process in job.own_processes():
            kill(process.pid)
    shutil.rmtree(hosts, ignore_errors=True)
