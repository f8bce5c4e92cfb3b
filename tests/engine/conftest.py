"""Random models, written once for all tests of the engine."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dolly_batch.engine.weights.loading import LoadedModel, load_model
from tests.random_models import write_random_model


@pytest.fixture(scope="session")
def neox_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("neox"), manifest=True)


@pytest.fixture(scope="session")
def gptj_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("gptj"), "gptj", max_positions=512, manifest=True)


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("llama"), "llama", manifest=True, tie_word_embeddings=True)


@pytest.fixture(scope="session")
def double(neox_folder: Path) -> LoadedModel:
    """In float64, where engines' answers are equal however rows are batched. Not to be changed by a test."""
    return load_model(neox_folder, dtype="float64", device="cpu")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Threads of a small model only wait for each other, and for long where another process is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
