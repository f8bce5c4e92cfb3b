"""Folders as sources: what is taken, what is refused, and that nothing else changes."""

import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from dolly_batch.errors import ModelError
from dolly_batch.models.folder import inspect_folder, verify_hashes, write_manifest
from dolly_batch.staging import stage_to, stage_under
from tests.staging.hub_server import sha256
from tests.staging.small_repository import build_tokenizer


def copy_of(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def tensors_of(folder: Path) -> dict:
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def test_a_pickled_folder_keeps_every_weight_and_loses_all_code(model, tmp_path):
    source, state = model
    before = {path.name: sha256(path) for path in source.iterdir()}
    done = stage_to(str(source), tmp_path / "staged")
    assert {path.name: sha256(path) for path in source.iterdir()} == before
    staged = tensors_of(done.folder)
    assert staged.keys() == state.keys()
    for name, value in state.items():
        assert staged[name].dtype == value.dtype
        assert staged[name].equal(value)
    assert len({path.stat().st_mode for path in done.folder.iterdir()}) == 1, "executors may run as another user"
    suffixes = {path.suffix for path in done.folder.iterdir()}
    assert suffixes == {".json", ".safetensors"}
    assert "custom_pipelines" not in json.loads((done.folder / "config.json").read_text())
    verify_hashes(inspect_folder(done.folder))


def test_a_plain_folder_is_staged_once_and_again_when_it_changed(plain, tmp_path):
    source = copy_of(plain, tmp_path / "My model")
    first = stage_under(str(source), tmp_path / "models")
    again = stage_under(str(source), tmp_path / "models")
    assert (first.already_there, again.already_there, again.folder) == (False, True, first.folder)
    assert first.revision.startswith("sha256:")
    assert first.folder.name == f"My-model-{first.revision[7:19]}"
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "rotary_pct": 0.5}))
    changed = stage_under(str(source), tmp_path / "models")
    assert changed.folder != first.folder
    assert changed.identity != first.identity


def test_the_copy_of_a_staged_folder_keeps_its_origin(plain, tmp_path):
    first = stage_to(str(plain), tmp_path / "first")
    copy = stage_to(str(first.folder), tmp_path / "copy")
    assert (copy.source, copy.revision, copy.identity) == (first.source, first.revision, first.identity)
    in_place = stage_under(str(copy.folder), tmp_path / "models")
    assert (in_place.folder, in_place.already_there, in_place.identity) == (copy.folder, True, first.identity)
    assert not (tmp_path / "models").exists()


def test_a_staged_folder_with_a_flipped_bit_is_neither_copied_nor_accepted(plain, tmp_path):
    staged = stage_to(str(plain), tmp_path / "staged").folder
    weights = staged / "model-00002-of-00002.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ModelError, match=weights.name):
        stage_to(str(staged), tmp_path / "copy")
    with pytest.raises(ModelError, match=weights.name):
        stage_to(str(plain), staged)
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("changed", ["tokenizer.json", "model-00002-of-00002.safetensors", "config.json"])
def test_a_staged_copy_that_was_changed_with_its_manifest_is_refused(plain, tmp_path, changed):
    """A folder that others can write: file and manifest fit each other, and not the source."""
    staged = stage_under(str(plain), tmp_path / "models").folder
    found, data = inspect_folder(staged), (staged / changed).read_bytes()
    (staged / changed).write_bytes(data + b" " if changed.endswith(".json") else data[:-1] + bytes([data[-1] ^ 1]))
    write_manifest(staged, found.source, found.revision)
    with pytest.raises(ModelError, match=rf"{changed}: sha256 is .*the staged copy was changed"):
        stage_under(str(plain), tmp_path / "models")
    with pytest.raises(ModelError, match=changed):
        stage_to(str(plain), staged)


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model-00001-of-00002.safetensors"])
def test_a_missing_file_is_named_and_nothing_is_left_behind(plain, tmp_path, missing):
    source = copy_of(plain, tmp_path / "source")
    (source / missing).unlink()
    with pytest.raises(ModelError, match=missing):
        stage_to(str(source), tmp_path / "models" / "staged")
    assert not (tmp_path / "models").exists() or os.listdir(tmp_path / "models") == []


def test_an_index_that_names_a_file_elsewhere_is_refused(plain, tmp_path):
    source = copy_of(plain, tmp_path / "source")
    index = source / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["stray"] = "../model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"index\.json names '\.\./model"):
        stage_to(str(source), tmp_path / "staged")


def test_a_config_that_names_code_is_refused(plain, tmp_path):
    source = copy_of(plain, tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    auto_map = {"AutoModelForCausalLM": "instruct_pipeline.Model"}
    (source / "config.json").write_text(json.dumps({**config, "auto_map": auto_map}))
    with pytest.raises(ModelError, match="auto_map"):
        stage_to(str(source), tmp_path / "staged")
    assert not (tmp_path / "staged").exists()


def test_what_stands_at_the_destination_is_never_overwritten(plain, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("ten years")
    with pytest.raises(ModelError, match="is no staged model"):
        stage_to(str(plain), taken)
    assert os.listdir(taken) == ["thesis.txt"]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert stage_to(str(plain), empty).folder == empty


@pytest.mark.parametrize("source", ["/no/such/folder", "./nothing", "a b/c", "one/two/three", ""])
def test_a_source_that_is_nothing_is_refused_by_name(source, tmp_path):
    with pytest.raises(ModelError, match=r"no such folder|config\.json is missing") as refused:
        stage_to(source, tmp_path / "staged")
    assert repr(source) in str(refused.value) or source == ""


def test_a_revision_of_a_folder_is_refused(plain, tmp_path):
    with pytest.raises(ModelError, match="only models of a hub have revisions"):
        stage_to(str(plain), tmp_path / "staged", "v1")


def test_a_destination_that_cannot_be_written_is_named(plain, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=str(tmp_path / "file")):
        stage_to(str(plain), tmp_path / "file" / "staged")


@pytest.mark.parametrize("layout", ["plain", "pickled"])
def test_a_full_disk_is_named_and_nothing_is_left_behind(layout, request, in_process, tmp_path):
    source, models = request.getfixturevalue(layout), tmp_path / "models"
    done = in_process("stage_to", source, models / "staged", None, LARGEST_FILE="20000")
    assert done.error.startswith("ModelError")
    assert str(models) in done.error
    assert os.listdir(models) == []


def test_vocab_and_merges_become_the_same_tokenizer(plain, tmp_path):
    source = copy_of(plain, tmp_path / "source")
    original = build_tokenizer()
    (source / "tokenizer.json").unlink()
    parts = json.loads(original.to_str())
    base = parts["model"]["vocab"]
    (source / "vocab.json").write_text(json.dumps(base))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in parts["model"]["merges"]]
    (source / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    added = {token["content"]: token["id"] for token in parts["added_tokens"] if token["id"] >= len(base)}
    (source / "added_tokens.json").write_text(json.dumps(added))
    (source / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": list(added)}))
    done = stage_to(str(source), tmp_path / "staged")
    converted = Tokenizer.from_file(str(done.folder / "tokenizer.json"))
    text = "a plain text of\n\n### Response:\nnaïve  words ### End"
    assert converted.encode(text).ids == original.encode(text).ids
    assert set(added.values()) <= set(converted.encode("### Instruction:### Response:### End").ids)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "adapter_config.json"),
        (lambda folder: reconfigure(folder, num_hidden_layers=3), r"tensor gpt_neox\.layers\.2\..* is missing"),
        (lambda folder: reconfigure(folder, num_hidden_layers=1), r"tensor gpt_neox\.layers\.1\..* is unknown"),
        (lambda folder: reconfigure(folder, intermediate_size=128), r"has shape \[64, 32\], expected \[128, 32\]"),
        (lambda folder: reconfigure(folder, quantization_config={"quant_method": "awq"}), "quantized by awq"),
    ],
)
@pytest.mark.parametrize("layout", ["plain", "pickled"])
def test_a_folder_that_cannot_be_run_as_it_is_leaves_nothing_behind(layout, request, change, told, tmp_path):
    source = copy_of(request.getfixturevalue(layout), tmp_path / "source")
    change(source)
    lines = []
    with pytest.raises(ModelError, match=f"{source}.*{told}"):
        stage_under(str(source), tmp_path / "models", log=lines.append)
    assert not (tmp_path / "models").exists() or os.listdir(tmp_path / "models") == []
    assert layout == "pickled" or not lines, "refused by the headers, before files are hashed or copied"


def reconfigure(folder: Path, **settings: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))


def test_an_adapter_beside_a_staged_model_is_refused_too(plain, tmp_path):
    staged = stage_to(str(plain), tmp_path / "staged").folder
    (staged / "adapter_config.json").write_text("{}")
    for stage in (stage_to, stage_under):
        with pytest.raises(ModelError, match="adapter_config"):
            stage(str(staged), tmp_path / "models")


def test_of_one_file_and_shards_the_file_is_staged(plain, tmp_path):
    source = copy_of(plain, tmp_path / "source")
    one = {name: value + 1 for name, value in tensors_of(plain).items()}
    save_file(one, source / "model.safetensors")
    staged = stage_to(str(source), tmp_path / "staged").folder
    assert sorted(path.name for path in staged.glob("*.safetensors*")) == ["model.safetensors"]
    assert all(value.equal(one[name]) for name, value in tensors_of(staged).items())


def test_a_file_and_a_folder_of_another_form_are_named_as_what_they_are(plain, tmp_path):
    source = tmp_path / "gguf"
    source.mkdir()
    (source / "dolly.Q4_K_M.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"dolly\.Q4_K_M\.gguf is GGUF.*name the file itself"):
        stage_to(str(source), tmp_path / "staged")
    with pytest.raises(ModelError, match="a file; expected a folder"):
        stage_to(str(plain / "config.json"), tmp_path / "staged")
