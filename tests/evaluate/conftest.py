"""What the tests of this folder share: the recording of lm-evaluation-harness, and its random model."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.evaluate.reference import RECORDING, write_pythia_70m


@pytest.fixture(scope="session")
def recording() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RECORDING.read_text(encoding="utf-8"))
    return found


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread for torch: beside other busy processes, two wait for each other five times as long as they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def pythia_70m(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = shared_data / "tokenizer" / "20B_tokenizer.json"
    return write_pythia_70m(tmp_path_factory.mktemp("models") / "pythia-70m", tokenizer)
