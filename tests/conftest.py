"""Shared by all tests: where the optional reference data lies, and the one Spark session."""

import os
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("DOLLY_BATCH_SHARED", PROJECT.parent / "shared"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of reference data (real tables, the real tokenizer); tests that need it skip where it is absent."""
    data = SHARED / "data"
    if not data.is_dir():
        pytest.skip(f"reference data is not at {data}")
    return data
