"""Shared by all tests: where the optional reference data lies, and the one Spark session."""

import os
from pathlib import Path

# Before torch is imported anywhere: on a busy machine two threads of one product wait for each other many times longer
# than they compute.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Drivers that live for a minute: what the JVM's second compiler and its parallel collector cost is never earned back.
os.environ.setdefault("SPARK_SUBMIT_OPTS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")

from dolly_batch.engine.processes.machine import may_have_gpu

if not may_have_gpu():
    # Before triton is imported anywhere (transformers does): its kernels are then run by its interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest

PROJECT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("DOLLY_BATCH_SHARED", PROJECT.parent / "shared"))


# Fixtures that start a Spark session, a cluster or a job of their own, and folders whose tests start commands.
STARTS_SPARK = {"session", "cluster", "new_job", "wheel"}
COMMANDS = {"cli", "cluster", "crash"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what starts Spark, which `make quick` leaves out."""
    for item in items:
        folder = item.path.relative_to(PROJECT).parts[1]
        if folder in COMMANDS or STARTS_SPARK & set(getattr(item, "fixturenames", ())):
            item.add_marker("spark")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of reference data (real tables, the real tokenizer); tests that need it skip where it is absent."""
    data = SHARED / "data"
    if not data.is_dir():
        pytest.skip(f"reference data is not at {data}")
    return data
