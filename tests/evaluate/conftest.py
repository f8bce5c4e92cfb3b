"""What the tests of this folder share: the recording of lm-evaluation-harness, and its random model."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.evaluate.reference import RECORDING, write_pythia_70m


@pytest.fixture(scope="session")
def recording() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RECORDING.read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="session")
def pythia_70m(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = shared_data / "tokenizer" / "20B_tokenizer.json"
    return write_pythia_70m(tmp_path_factory.mktemp("models") / "pythia-70m", tokenizer)
