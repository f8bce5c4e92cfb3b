"""Fixtures of the staging tests."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.staging.hub_server import HubServer
from tests.staging.small_repository import COMMIT, REPO_ID, Outcome, start, write_repository, write_safetensors

StageInProcess = Callable[..., Outcome]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A folder as Dolly's repositories have it, and the weights it holds. Not to be changed by a test."""
    folder = tmp_path_factory.mktemp("repository")
    return folder, write_repository(folder)


@pytest.fixture
def pickled(model: tuple[Path, dict[str, torch.Tensor]]) -> Path:
    """The folder of that model. Not to be changed by a test."""
    return model[0]


@pytest.fixture(scope="session")
def plain(model: tuple[Path, dict[str, torch.Tensor]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in safetensors. Not to be changed by a test."""
    folder = tmp_path_factory.mktemp("plain")
    for path in model[0].iterdir():
        if "pytorch_model" not in path.name:
            (folder / path.name).write_bytes(path.read_bytes())
    write_safetensors(folder, model[1])
    return folder


@pytest.fixture
def pickle_hub(pickled: Path) -> Iterator[HubServer]:
    with HubServer(pickled, REPO_ID, COMMIT) as server:
        yield server


@pytest.fixture
def hub(plain: Path) -> Iterator[HubServer]:
    with HubServer(plain, REPO_ID, COMMIT) as server:
        yield server


@pytest.fixture
def in_process(tmp_path: Path) -> StageInProcess:
    """Run `staging.NAME(*arguments)` in a process of its own, its hub at `endpoint`."""

    def run(name: str, *arguments: object, endpoint: str = "http://127.0.0.1:9", **env: str) -> Outcome:
        child = start(name, *arguments, home=tmp_path / "home", endpoint=endpoint, **env)
        stdout, stderr = child.communicate(timeout=60)
        assert child.returncode == 0, stderr
        out = json.loads(stdout)
        assert out.pop("torch") is False  # the staging process itself never needs it
        return Outcome(**out, stderr=stderr)

    return run
