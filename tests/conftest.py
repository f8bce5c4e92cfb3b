"""Shared by all tests: where the optional reference data lies, and the one Spark session."""

import os
from pathlib import Path

# Before torch is imported anywhere: on a busy machine two threads of one product wait for each other many times longer
# than they compute.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# On two cores, that a test process shares with another one, a parallel collector only waits for itself.
os.environ.setdefault("SPARK_SUBMIT_OPTS", "-XX:+UseSerialGC")

from dolly_batch.engine.processes.machine import may_have_gpu

if not may_have_gpu():
    # Before triton is imported anywhere (transformers does): its kernels are then run by its interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
from hypothesis import settings

# How long an example takes on a busy machine says nothing about the code.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

PROJECT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("DOLLY_BATCH_SHARED", PROJECT.parent / "shared"))


# Fixtures that start a Spark session, a cluster or a job of their own, and folders whose tests start commands.
STARTS_SPARK = {"session", "spark", "cluster", "new_job", "wheel"}
COMMANDS = {"cli", "cluster", "crash"}
USES_SPARK = {"test_publish_again", "test_rejected", "test_session_conf"}  # by a fixture of each case
# Files whose tests load models beyond `tiny`, start engine processes or a JVM, or wait for seconds.
_SLOW = """
    atomic_folder calibration_fault card_models class_archive client continuous_equality continuous_faults
    forced_tokens fp8_gpu gpu gpu_benchmark gpu_layers gpu_builds gpu_eight_bits gpu_faults gpu_first_minutes
    gpu_kernels gpu_load gpu_pages gpu_simulation grammar int8_cpu int8_gpu jars java kept_kernels kernels_cpu
    kernels_gpu lifecycle llama_family lm_eval load local_copy partial_answers plain_equality plain_faults plain_host
    pool_host pools processes quality_benchmark quarantine sampling scoring smollm2 smoothing stage_folder stage_gguf
    stage_hub stage_named stage_pickles store_model tile_prefill watchdog
"""
SLOW = {f"test_{name}" for name in _SLOW.split()}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what starts Spark and what is slow: `make quick` leaves both out."""
    for item in items:
        folder = item.path.relative_to(PROJECT).parts[1]
        if folder in COMMANDS or item.path.stem in USES_SPARK or STARTS_SPARK & set(getattr(item, "fixturenames", ())):
            item.add_marker("spark")
        if item.path.stem in SLOW:
            item.add_marker("slow")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of reference data (real tables, the real tokenizer); tests that need it skip where it is absent."""
    data = SHARED / "data"
    if not data.is_dir():
        pytest.skip(f"reference data is not at {data}")
    return data
