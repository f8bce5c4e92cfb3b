"""Random models, written once for all tests of the engine."""

from pathlib import Path

import pytest

from tests.random_models import write_random_model


@pytest.fixture(scope="session")
def neox_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("neox"), manifest=True)


@pytest.fixture(scope="session")
def gptj_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("gptj"), "gptj", max_positions=512, manifest=True)
