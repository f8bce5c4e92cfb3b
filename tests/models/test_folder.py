"""Model folders: every fault is refused at once, with the file's name, and nothing in the folder is executed."""

import hashlib
import json
import pickle
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dolly_batch.errors import ModelError
from dolly_batch.models.folder import MANIFEST, inspect_folder, verify_hashes, write_manifest
from tests.random_models import write_random_model


@pytest.fixture(scope="module")
def sharded_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_random_model(tmp_path_factory.mktemp("sharded"), manifest=True, max_shard_size="200KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture(params=["neox_folder", "gptj_folder", "sharded_folder"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(request.getfixturevalue(request.param), tmp_path / "model"))


@pytest.fixture
def neox(neox_folder: Path, tmp_path: Path) -> Path:
    """A copy without a manifest, so that what a test changes is found by the check it is about."""
    shutil.copytree(neox_folder, tmp_path / "model")
    (tmp_path / "model" / MANIFEST).unlink()
    return tmp_path / "model"


def refuse(folder: Path, *names: str) -> None:
    start = time.monotonic()
    with pytest.raises(ModelError) as caught:
        inspect_folder(folder)
    assert time.monotonic() - start < 5
    assert all(name in str(caught.value) for name in names), caught.value


def edit(folder: Path, change: Callable[[dict[str, object]], object], name: str = "config.json") -> None:
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


def weights(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[0]


def test_facts_of_a_folder(folder: Path) -> None:
    found = inspect_folder(folder)
    verify_hashes(found)
    assert (found.vocab_size, found.source, found.revision) == (400, "random", "0")
    config = json.loads((folder / "config.json").read_text())
    assert found.architecture.model_type == config["model_type"]
    assert found.max_positions == config.get("max_position_embeddings", config.get("n_positions"))
    assert set(found.weight_files) == {path.name for path in folder.glob("*.safetensors")}


def test_small_files_are_compared_without_reading_the_weights(folder: Path) -> None:
    data = bytearray(weights(folder).read_bytes())
    data[-1] ^= 1
    weights(folder).write_bytes(data)
    verify_hashes(inspect_folder(folder), but_weights=True)
    with pytest.raises(ModelError, match=weights(folder).name):
        verify_hashes(inspect_folder(folder))
    tokenizer = folder / "tokenizer.json"
    text = tokenizer.read_text()
    tokenizer.write_text(text.replace("false", "true ", 1))
    assert len(tokenizer.read_text()) == len(text)
    with pytest.raises(ModelError, match=r"tokenizer\.json: sha256 is"):
        verify_hashes(inspect_folder(folder), but_weights=True)


def test_identity_is_the_hash_of_what_decides_the_answers(folder: Path) -> None:
    staged = inspect_folder(folder).sha256
    names = sorted(["config.json", "tokenizer.json", *(path.name for path in folder.glob("*.safetensors*"))])
    lines = [f"{name} {hashlib.sha256((folder / name).read_bytes()).hexdigest()}\n" for name in names]
    assert staged == hashlib.sha256("".join(lines).encode()).hexdigest()
    (folder / MANIFEST).unlink()
    (folder / "README.md").write_text("does not matter")
    assert inspect_folder(folder).sha256 == staged
    edit(folder, lambda config: config.update(_derived="a note"))
    assert inspect_folder(folder).sha256 != staged


def test_each_missing_file_is_named(folder: Path) -> None:
    names = [path.name for path in folder.iterdir() if path.name not in (MANIFEST, "generation_config.json")]
    for with_manifest in (True, False):
        if not with_manifest:
            (folder / MANIFEST).unlink()
        for name in names:
            (folder / name).rename(folder / "away")
            refuse(folder, name)
            (folder / "away").rename(folder / name)
    inspect_folder(folder)


def test_no_folder_is_refused(tmp_path: Path) -> None:
    refuse(tmp_path / "absent", "absent", "stage-model")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: raw[:-1],
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw[:100],
        lambda raw: raw[:5],
        lambda raw: b"",
        lambda raw: raw + b"\0",
        lambda raw: raw + raw,
        lambda raw: struct.pack("<Q", 2**63) + raw[8:],
        lambda raw: struct.pack("<Q", 200_000_000) + raw[8:],
        lambda raw: struct.pack("<Q", len(raw)) + raw[8:],
        lambda raw: raw[:8] + b"x" + raw[9:],
        lambda raw: struct.pack("<Q", 2) + b"[]" + raw[8:],
        lambda raw: struct.pack("<Q", 8) + b'{"a": 1}',
        lambda raw: raw.replace(b'"F32"', b'"F16"', 1),
        lambda raw: raw.replace(b'"F32"', b'"X32"', 1),
        lambda raw: raw.replace(b'"data_offsets":[0,', b'"data_offsets":[4,', 1),
    ],
)
def test_a_spoilt_weight_file_is_named(neox: Path, spoil: Callable[[bytes], bytes]) -> None:
    path = weights(neox)
    raw = path.read_bytes()
    path.write_bytes(spoil(raw))
    assert path.read_bytes() != raw
    refuse(neox, path.name)


def test_one_flipped_bit_is_found_by_the_hash(folder: Path) -> None:
    path = weights(folder)
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ModelError, match=path.name):
        verify_hashes(inspect_folder(folder))


def test_sizes_are_held_against_the_manifest(folder: Path) -> None:
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    refuse(folder, "config.json", MANIFEST)
    write_manifest(folder, "random", "0")
    inspect_folder(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.update(format=2),
        lambda manifest: manifest.pop("files"),
        lambda manifest: manifest["files"].pop("config.json"),
        lambda manifest: manifest["files"].pop("model.safetensors"),
        lambda manifest: manifest["files"].update({"../config.json": {"sha256": "", "size": 1}}),
        lambda manifest: manifest["files"].update({"config.json": {"sha256": 1}}),
        lambda manifest: manifest["files"].update({"config.json": []}),
    ],
)
def test_a_spoilt_manifest_is_named(neox: Path, change: Callable[[dict[str, object]], object]) -> None:
    write_manifest(neox, "random", None)
    edit(neox, change, MANIFEST)
    refuse(neox, MANIFEST)


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt"])
def test_pickled_weights_are_never_opened(neox: Path, tmp_path: Path, name: str) -> None:
    weights(neox).unlink()
    (neox / name).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    refuse(neox, name, "stage-model")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda config: config.update(auto_map={"AutoModel": "evil.py"}), "auto_map"),
        (lambda config: config.update(_attn_implementation_internal="x/y"), "_attn_implementation_internal"),
        (lambda config: config.update(quantization_config={}), "quantization_config"),
        (lambda config: config.update(quantization_config={"quant_method": "gptq"}), "quantized by gptq"),
        (lambda config: config.update(quantization={"bits": 4}), "original weights"),
        (lambda config: config.update(model_type="mamba"), "mamba"),
        (lambda config: config.pop("model_type"), "model_type"),
        (lambda config: config.pop("vocab_size"), "vocab_size"),
        (lambda config: config.update(hidden_size="64"), "hidden_size"),
        (lambda config: config.update(num_hidden_layers=0), "num_hidden_layers"),
        (lambda config: config.update(max_position_embeddings=True), "max_position_embeddings"),
        (lambda config: config.update(num_attention_heads=5), "attention heads"),
        (lambda config: config.update(hidden_act="evil"), "hidden_act"),
        (lambda config: config.update(rope_scaling={"type": "dynamic", "factor": 2.0}), "rotary"),
        (lambda config: config.update(rope_parameters={"rope_type": "yarn"}), "rotary"),
        (lambda config: config.update(rope_parameters={"rope_type": "linear"}), "rotary"),
        (lambda config: config.update(rope_scaling={"type": "linear", "factor": "2"}), "factor"),
        (lambda config: config.update(rotary_pct=0.5), "rotary_pct"),
        (lambda config: config.update(vocab_size=401), "gpt_neox.embed_in.weight"),
    ],
)
def test_a_config_that_cannot_be_run_is_refused(
    neox: Path, change: Callable[[dict[str, object]], object], name: str
) -> None:
    edit(neox, change)
    refuse(neox, name)


@pytest.mark.parametrize(
    ("architecture", "change", "name"),
    [
        ("mistral", {"sliding_window": 4096}, "sliding_window is 4096; Mistral models are run with null alone"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 128}, "use_sliding_window"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ("llama", {"num_key_value_heads": 3}, "3 key-value heads"),
        ("llama", {"num_local_experts": 8}, "num_local_experts"),
        ("llama", {"rope_scaling": {"rope_type": "longrope", "factor": 4.0}}, "longrope"),
    ],
)
def test_llama_like_models_that_need_another_attention_are_refused(
    tmp_path: Path, architecture: str, change: dict[str, object], name: str
) -> None:
    folder = write_random_model(tmp_path / "model", architecture)
    edit(folder, lambda config: config.update(change))
    refuse(folder, name)


def test_the_configs_of_real_llama_like_models_are_accepted(tmp_path: Path) -> None:
    """As transformers 4 wrote that of Llama 3.2: settings of rotary embeddings at two places."""
    folder = write_random_model(tmp_path / "model", "llama", tie_word_embeddings=True)
    scaling = {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "rope_type": "llama3"}

    def rename(config: dict[str, object]) -> None:
        config.pop("rope_parameters")
        config.update(rope_theta=500000.0, rope_scaling={**scaling, "original_max_position_embeddings": 8192})
        config.update(pretraining_tp=1, attention_dropout=0.0, torch_dtype="bfloat16", mlp_bias=False)

    edit(folder, rename)
    config = inspect_folder(folder).config
    assert config.is_tied
    assert (config.num_heads, config.num_kv_heads, config.head_size) == (4, 2, 16)
    assert config.settings["rope_parameters"] == {
        **scaling,
        "original_max_position_embeddings": 8192,
        "rope_theta": 500000.0,
    }


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"model_type": "gpt_neox", "model_type": "gpt_neox"}', "[" * 10**5]
)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_broken_json_is_named(neox: Path, name: str, content: str) -> None:
    (neox / name).write_text(content)
    refuse(neox, name)


def test_the_configs_of_real_models_are_accepted(neox: Path) -> None:
    """As transformers 4 wrote them: other names for rotary settings, and keys that do not matter here."""

    def rename(config: dict[str, object]) -> None:
        config.pop("rope_parameters")
        config.update(rotary_pct=0.25, rotary_emb_base=10000, partial_rotary_factor=0.25, rope_theta=10000)
        config.update(custom_pipelines={"text-generation": {"impl": "instruct_pipeline.X"}}, torch_dtype="bfloat16")
        config.update(_name_or_path="EleutherAI/pythia-2.8b", rope_scaling=None, gradient_checkpointing=False)

    before = inspect_folder(neox).config
    edit(neox, rename)
    assert inspect_folder(neox).config == before


def test_fewer_embedding_rows_than_tokens_are_refused(neox: Path) -> None:
    edit(neox, lambda tokenizer: tokenizer["added_tokens"].append({"id": 400, "content": "new"}), "tokenizer.json")
    refuse(neox, "tokenizer.json", "400")


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.pop("weight_map"),
        lambda index: index["weight_map"].update(x="../model.safetensors"),
        lambda index: index["weight_map"].update(x="model.bin"),
        lambda index: index["weight_map"].update(x="model-00009-of-00009.safetensors"),
        lambda index: index["weight_map"].update(x="model-00001-of-00009.safetensors"),
    ],
)
def test_an_index_that_does_not_match_its_shards_is_refused(
    sharded_folder: Path, tmp_path: Path, change: Callable[[dict[str, object]], object]
) -> None:
    folder = Path(shutil.copytree(sharded_folder, tmp_path / "model"))
    (folder / MANIFEST).unlink()
    edit(folder, change, "model.safetensors.index.json")
    refuse(folder, str(folder))
