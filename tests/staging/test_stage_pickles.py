"""Pickled weights: converted faithfully, and never run."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dolly_batch.errors import ModelError
from dolly_batch.models.folder import inspect_folder, read_json
from dolly_batch.staging import stage_to
from dolly_batch.staging.convert import convert


class RunsACommand:
    """What a hostile pickle holds: an object whose loading is a call."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def hostile(pickled, tmp_path):
    """The small model with a call hidden in its last shard, and the file that the call would leave."""
    source = tmp_path / "hostile"
    shutil.copytree(pickled, source)
    marker = tmp_path / "was-run"
    shard = source / "pytorch_model-00003-of-00003.bin"
    state = torch.load(shard, weights_only=True)
    torch.save({**state, "extra": RunsACommand(marker)}, shard)
    return source, marker


def test_a_hostile_pickle_is_refused_by_name_and_not_run(hostile, tmp_path):
    source, marker = hostile
    with pytest.raises(ModelError, match=r"pytorch_model-00003-of-00003\.bin cannot be read as plain tensors"):
        stage_to(str(source), tmp_path / "models" / "staged")
    assert not marker.exists()
    assert os.listdir(tmp_path / "models") == []


def test_the_hostile_pickle_is_hostile(hostile):
    source, marker = hostile
    torch.load(source / "pytorch_model-00003-of-00003.bin", weights_only=False)
    assert marker.exists()


def test_a_truncated_pickle_is_refused_by_name(pickled, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for path in pickled.glob("*.bin*"):
        shutil.copyfile(path, source / path.name)
    shard = source / "pytorch_model-00002-of-00003.bin"
    shard.write_bytes(shard.read_bytes()[:-500])
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match=shard.name):
        convert(source, tmp_path / "out", 10**9)
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize("zipped", [True, False])
def test_shared_and_strided_tensors_come_out_whole(tmp_path, zipped):
    base = torch.arange(24, dtype=torch.float16).reshape(4, 6)
    state = {"whole": base, "tied": base, "part": base[1:3], "turned": base.T, "flag": torch.tensor([True, False])}
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    convert(tmp_path, tmp_path, 10**9)
    written = load_file(tmp_path / "model.safetensors")
    assert written.keys() == state.keys()
    for name, value in state.items():
        assert written[name].dtype == value.dtype
        assert written[name].equal(value)
    assert not (tmp_path / "model.safetensors.index.json").exists()


def test_shards_stay_below_the_limit_and_the_index_names_every_tensor(model, tmp_path):
    source, state = model
    limit = max(tensor.nbytes for tensor in state.values())
    for name in ("config.json", "tokenizer.json"):
        shutil.copyfile(source / name, tmp_path / name)
    convert(source, tmp_path, limit)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 3
    weight_map = {}
    for file in files:
        tensors = load_file(file)
        assert sum(tensor.nbytes for tensor in tensors.values()) <= limit
        weight_map.update(dict.fromkeys(tensors, file.name))
    index = read_json(tmp_path / "model.safetensors.index.json")
    assert index["weight_map"] == weight_map
    assert weight_map.keys() == state.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in state.values())
    assert inspect_folder(tmp_path).weight_files == tuple(file.name for file in files)


@pytest.mark.parametrize("state", [["a list"], {"model": {"nested": torch.zeros(1)}}, {"step": 3}, {}])
def test_anything_but_named_tensors_is_refused(tmp_path, state):
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin.*expected a (dictionary of named tensors|dense tensor)"):
        convert(tmp_path, tmp_path, 10**9)


def test_a_tensor_in_two_files_is_refused(tmp_path):
    for number in (1, 2):
        torch.save({"twice": torch.zeros(2)}, tmp_path / f"pytorch_model-0000{number}-of-00002.bin")
    index = '{"weight_map": {"twice": "pytorch_model-00001-of-00002.bin", "x": "pytorch_model-00002-of-00002.bin"}}'
    (tmp_path / "pytorch_model.bin.index.json").write_text(index)
    with pytest.raises(ModelError, match="tensor twice is both in"):
        convert(tmp_path, tmp_path, 10**9)
