"""Weights against config.json: what transformers loads whole is taken, all else is refused by its tensor's name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dolly_batch.engine.weights.loading import load_model
from dolly_batch.errors import ModelError
from dolly_batch.models.architectures import ARCHITECTURES
from dolly_batch.models.folder import inspect_folder
from tests.random_models import write_random_model

State = dict[str, torch.Tensor]
EMBEDDINGS = tuple(entry.embedding for entry in ARCHITECTURES.values())
BASES = {name: entry.base for name, entry in ARCHITECTURES.items()}


@pytest.fixture(params=[*ARCHITECTURES])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model of one layer that a test may spoil."""
    return write_random_model(tmp_path / "model", request.param, num_layers=1, hidden_size=32)


def state_of(folder: Path) -> State:
    return load_file(folder / "model.safetensors")


def put(folder: Path, state: State, **config: object) -> Path:
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    known = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**known, **config}))
    return folder


def refused(folder: Path, *told: str) -> None:
    with pytest.raises(ModelError) as caught:
        inspect_folder(folder)
    assert all(word in str(caught.value) for word in told), caught.value


def architecture_of(folder: Path) -> str:
    return str(json.loads((folder / "config.json").read_text())["model_type"])


def test_each_tensor_is_needed_in_its_shape_and_as_a_float(folder: Path) -> None:
    state = state_of(folder)
    for name, tensor in state.items():
        put(folder, {key: value for key, value in state.items() if key != name})
        refused(folder, f"tensor {name} is missing, expected {list(tensor.shape)}")
        put(folder, {**state, name: torch.cat([tensor, tensor])})
        refused(folder, f"tensor {name} has shape {[2 * tensor.shape[0], *tensor.shape[1:]]}", str(list(tensor.shape)))
        put(folder, {**state, name: tensor.to(torch.int8)})
        refused(folder, f"tensor {name} has dtype I8")
    put(
        folder,
        {name: tensor.to((torch.bfloat16, torch.float16)[at % 2]) for at, (name, tensor) in enumerate(state.items())},
    )
    inspect_folder(folder)


def test_another_number_of_layers_is_refused(folder: Path) -> None:
    keys = ARCHITECTURES[architecture_of(folder)].sizes
    state, layer = state_of(folder), ARCHITECTURES[architecture_of(folder)].layer
    put(folder, state, **{keys.num_layers: 2})
    refused(folder, f"tensor {layer.format(1)}", "is missing", "more)")
    put(folder, state, **{keys.num_layers: 10**12})
    refused(folder, f"tensor {layer.format(1)}", "is missing")
    more = {name.replace(layer.format(0), layer.format(1)): value.clone() for name, value in state.items()}
    put(folder, {**state, **more}, **{keys.num_layers: 1})
    refused(folder, f"tensor {layer.format(1)}", "is unknown to")


def test_a_classifiers_head_and_quantized_tensors_are_named(folder: Path) -> None:
    state = state_of(folder)
    head = next(name for name in ARCHITECTURES[architecture_of(folder)].head if name in state)
    put(folder, {**{name: value for name, value in state.items() if name != head}, "score.weight": torch.zeros(2, 32)})
    refused(folder, f"tensor {head} is missing", "tensor score.weight, of shape [2, 32], is unknown")
    quantized = {
        name.replace(".weight", ".qweight") if value.dim() == 2 else name: value for name, value in state.items()
    }
    put(folder, quantized)
    refused(folder, "GPTQ", "original weights")


def no_bias(state: State) -> State:
    return {name: value for name, value in state.items() if not name.endswith(("value.bias", "dense.bias"))}


@pytest.mark.parametrize(
    ("change", "config"),
    [
        (lambda state, base: state, {}),
        (lambda state, base: {k.replace("embed_out", "lm_head"): v for k, v in state.items()}, {}),
        (lambda state, base: {k.removeprefix(base): v for k, v in state.items()}, {}),
        (lambda state, base: {k: v for k, v in state.items() if "embed_out" not in k and k != "lm_head.weight"},
         {"tie_word_embeddings": True}),
        (lambda state, base: {k: v for k, v in state.items() if not k.endswith(EMBEDDINGS)},
         {"tie_word_embeddings": True}),
        (lambda state, base: {
            **state,
            f"{base}layers.0.attention.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool),
            f"{base}layers.0.attention.masked_bias": torch.tensor(-1e9),
            f"{base}layers.0.attention.rotary_emb.inv_freq": torch.ones(4),
            f"{base}rotary_emb.inv_freq": torch.ones(4),
            f"{base}h.0.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8),
            f"{base}h.0.attn.masked_bias": torch.tensor(-1e9),
        }, {}),
    ],
    ids=["as saved", "head renamed", "no base name", "tied without head", "tied without embedding", "old buffers"],
)  # fmt: skip
def test_what_transformers_loads_whole_is_taken(
    folder: Path, change: Callable[[State, str], State], config: dict[str, object]
) -> None:
    put(folder, change(state_of(folder), BASES[architecture_of(folder)]), **config)
    inspect_folder(folder)
    load_model(folder, dtype="float32", device="cpu")  # refuses weights that are missing, unknown or of another shape


def test_the_key_that_leaves_biases_out_is_obeyed(tmp_path: Path) -> None:
    folder = write_random_model(tmp_path / "model", num_layers=1, hidden_size=32)
    state = state_of(folder)
    put(folder, state, attention_bias=False)
    refused(folder, "tensor gpt_neox.layers.0.attention.dense.bias", "is unknown")
    put(folder, no_bias(state))
    inspect_folder(folder)
    put(folder, no_bias(state), attention_bias=None)
    refused(folder, "tensor gpt_neox.layers.0.attention.query_key_value.bias is missing")


def test_an_adapter_beside_the_weights_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    refused(folder, "adapter_config.json", "merge")


def test_of_one_file_and_shards_the_file_is_taken(folder: Path, tmp_path: Path) -> None:
    before = inspect_folder(folder)
    shards = write_random_model(tmp_path / "shards", architecture_of(folder), seed=1, max_shard_size="50KB")
    for path in shards.glob("model*"):
        shutil.copy(path, folder)
    assert (folder / "model.safetensors.index.json").is_file()
    after = inspect_folder(folder)
    assert (after.weight_files, after.sha256) == (before.weight_files, before.sha256)


@pytest.mark.parametrize(
    ("name", "told"),
    [("model.Q4_K.gguf", "GGUF"), ("gptq_model-4bit-128g.safetensors", "GPTQ"), ("tf_model.h5", "another library's")],
)
def test_weights_of_another_form_are_named_as_that(folder: Path, name: str, told: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    refused(folder, name, told, "original model")
