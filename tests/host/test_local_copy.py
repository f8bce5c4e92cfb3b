"""A model copied to the node's own disk: once a node, whole or not at all, and never in the way of loading it."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from dolly_batch.engine import local_copy
from dolly_batch.engine.local_copy import with_local_copy
from dolly_batch.errors import ModelError
from dolly_batch.host.address import HostAddress
from dolly_batch.host.client import EngineClient
from dolly_batch.records import EngineSpec, GenerationParams, PromptRow


@pytest.fixture
def shared(echo: EngineSpec, tmp_path: Path) -> Path:
    """The folder that all nodes read."""
    return Path(shutil.copytree(echo.model_folder, tmp_path / "shared"))


@pytest.fixture
def spec(echo: EngineSpec, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineSpec:
    monkeypatch.setattr(local_copy.time, "sleep", lambda seconds: None)
    return replace(echo, model_folder=str(shared), local_dir=str(tmp_path / "disk"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_of_many_hosts_of_a_node_one_copies(spec: EngineSpec, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill, filled = local_copy._fill, []
    monkeypatch.setattr(local_copy, "_fill", lambda *given: (filled.append(1), fill(*given)))
    with ThreadPoolExecutor(8) as pool:
        folders = {found.model_folder for found in pool.map(with_local_copy, [spec] * 8)}
    (folder,) = folders
    assert len(filled) == 1
    assert Path(folder).parent == Path(str(spec.local_dir))
    assert contents(Path(folder)) == contents(shared)
    # Another model of the same name is another folder.
    (shared / "manifest.json").write_text((shared / "manifest.json").read_text() + "\n")
    assert with_local_copy(spec).model_folder not in {folder, spec.model_folder}


def test_a_read_that_fails_is_tried_again_and_a_spoilt_file_is_named(
    spec: EngineSpec, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, faults = local_copy._copy_hashed, [OSError("SlowDown"), OSError("SlowDown")]

    def slow_down(source: Path, target: Path) -> str:
        if faults:
            raise faults.pop()
        return copy(source, target)

    monkeypatch.setattr(local_copy, "_copy_hashed", slow_down)
    folder = Path(with_local_copy(spec).model_folder)
    assert contents(folder) == contents(shared)
    shutil.rmtree(folder)
    weights = shared / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelError, match=r"shared/model\.safetensors: sha256 is"):
        with_local_copy(spec)
    assert [path for path in folder.parent.iterdir() if path.is_dir()] == []


def test_a_disk_that_cannot_take_it_is_no_reason_not_to_load(spec: EngineSpec, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert with_local_copy(without := replace(spec, local_dir=str(tmp_path / "file" / "disk"))) == without
    assert with_local_copy(none := replace(spec, local_dir=None)) == none


def test_a_host_loads_from_the_copy_and_where_that_is_spoilt_from_where_the_model_is(
    echo: EngineSpec, address: HostAddress, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    plain = replace(echo, kind="plain", dtype="float32", num_threads=1, local_dir=str(tmp_path / "disk"))
    copy = Path(with_local_copy(plain).model_folder)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    row = PromptRow("a", "Name the city.", "Ada lives in Paris.", GenerationParams(max_new_tokens=4, do_sample=False))
    with EngineClient.connect(plain, replace(address, device="cpu")) as client:
        (answer,) = client.generate(iter([row]))
    assert answer.failure is None
    assert not copy.exists()
