"""What fits where: the table of the public README, by arithmetic."""

from pathlib import Path

import pytest
import torch

from dolly_batch.engine.weights.int8_gpu import CudaInt8Linear
from dolly_batch.engine.weights.loading import load_model
from dolly_batch.errors import ConfigError
from dolly_batch.models.config import ModelConfig, check_config, with_window
from dolly_batch.models.sizing import (
    Gpu,
    layer_parameters,
    layers_per_gpu,
    num_parameters,
    num_weight_bytes,
    parse_gpus,
    why_not_fits,
)

T4 = Gpu("Tesla T4", 15_360 << 20, (7, 5))
V100 = Gpu("Tesla V100-SXM2-16GB", 16_384 << 20, (7, 0))
A10 = Gpu("NVIDIA A10", 23_028 << 20, (8, 6))
H100 = Gpu("NVIDIA H100 80GB HBM3", 81_559 << 20, (9, 0))


def dolly(size: str) -> ModelConfig:
    hidden, layers, heads = {"3b": (2560, 32, 32), "7b": (4096, 32, 32), "12b": (5120, 36, 40)}[size]
    config = {
        "model_type": "gpt_neox",
        "vocab_size": 50280,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
        "max_position_embeddings": 2048,
    }
    return check_config(Path("config.json"), config)


@pytest.mark.parametrize(("size", "billions"), [("3b", 2.775), ("7b", 6.856), ("12b", 11.842)])
def test_parameters_are_counted_as_the_model_cards_have_them(size: str, billions: float) -> None:
    assert num_parameters(dolly(size)) / 1e9 == pytest.approx(billions, abs=0.002)


@pytest.mark.parametrize(
    ("gpu", "size", "dtype", "quantization"),
    [
        (T4, "3b", "float16", "none"),
        (V100, "7b", "float16", "none"),
        (A10, "7b", "bfloat16", "none"),
        (A10, "12b", "auto", "int8"),
        (H100, "12b", "bfloat16", "none"),
    ],
)
def test_what_fits_is_let_through(gpu: Gpu, size: str, dtype: str, quantization: str) -> None:
    assert why_not_fits([gpu], dolly(size), dtype, quantization) is None


@pytest.mark.parametrize(
    ("gpu", "size", "dtype", "words"),
    [
        (A10, "12b", "bfloat16", ["NVIDIA A10", "a smaller model"]),
        (T4, "12b", "auto", ["Tesla T4", "GiB"]),
        (V100, "3b", "bfloat16", ["V100", "model.dtype: float16", "7.0"]),
        (V100, "7b", "float32", ["model.dtype: auto"]),
    ],
)
def test_what_cannot_run_is_told_by_name(gpu: Gpu, size: str, dtype: str, words: list[str]) -> None:
    message = why_not_fits([gpu], dolly(size), dtype, "none")
    assert message is not None
    assert not [word for word in words if word not in message]


def test_int8_is_named_where_it_would_fit_and_refused_where_it_has_no_tensor_cores() -> None:
    assert "use model.quantization: int8," in str(why_not_fits([A10], dolly("12b"), "bfloat16", "none"))
    assert "int8" not in str(why_not_fits([Gpu("NVIDIA T4G", 8 << 30, (7, 5))], dolly("12b"), "auto", "none"))
    message = str(why_not_fits([V100], dolly("7b"), "auto", "int8"))
    assert not [word for word in ("V100", "7.0", "7.5", "model.quantization: none") if word not in message]


def test_fp8_keys_are_refused_where_nothing_converts_them() -> None:
    h100 = Gpu("NVIDIA H100", 80 << 30, (9, 0))
    message = why_not_fits([A10], dolly("3b"), "auto", "none", "fp8")
    assert message == (
        "engine.kv_dtype fp8 cannot run on NVIDIA A10 (compute capability 8.6; fp8 needs 8.9); "
        "use engine.kv_dtype: int8"
    )
    assert why_not_fits([h100], dolly("3b"), "auto", "none", "fp8") is None
    assert why_not_fits([A10], dolly("3b"), "auto", "none", "int8") is None


def test_int8_is_counted_as_it_is_packed(neox_folder: Path) -> None:
    loaded = load_model(neox_folder, dtype="bfloat16", device="cpu")
    layers = [module for module in loaded.model.modules() if isinstance(module, torch.nn.Linear)]
    device = torch.device("cpu")
    packed = sum(CudaInt8Linear(layer, device, loaded.dtype, loaded.dtype, None).num_bytes for layer in layers)
    rest = loaded.model.gpt_neox.embed_in.weight.nbytes
    assert num_weight_bytes(loaded.folder.config, 2, "int8") == pytest.approx(packed + rest, rel=0.03)


def test_a_long_window_is_named_where_a_shorter_one_would_fit() -> None:
    """Llama-3.1-8B's shape: one row of 131,072 tokens has 16 GiB of keys and values."""
    llama = {
        "model_type": "llama",
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14_336,
        "max_position_embeddings": 131_072,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
    }
    config = check_config(Path("config.json"), llama)
    refused = why_not_fits([A10], config, "bfloat16", "none")
    assert refused is not None
    assert "use model.max_positions: 8192," in refused
    assert why_not_fits([A10], with_window(config, 8192), "bfloat16", "none") is None
    assert "max_positions" not in str(why_not_fits([T4], config, "float16", "none"))
    with pytest.raises(ConfigError, match=r"model\.max_positions is 131073, and the model has 131072 positions"):
        with_window(config, 131_073)


def test_a_model_over_two_gpus_has_the_memory_of_both() -> None:
    alone = why_not_fits([A10], dolly("12b"), "bfloat16", "none")
    assert alone is not None
    assert "model.gpus: 2" in alone
    assert why_not_fits([A10, A10], dolly("12b"), "bfloat16", "none") is None
    refused = why_not_fits([T4, T4], dolly("12b"), "float32", "none")
    assert refused is not None
    assert "of them on one GPU" in refused
    assert "model.gpus: 4" in refused


@pytest.mark.parametrize("size", ["3b", "7b", "12b"])
@pytest.mark.parametrize("num_gpus", [1, 2, 3, 4, 8])
def test_layers_are_spread_evenly_and_none_is_left_out(size: str, num_gpus: int) -> None:
    config = dolly(size)
    layers = layers_per_gpu(config, num_gpus)
    assert (len(layers), sum(layers)) == (num_gpus, config.num_layers)
    ends = 2 * config.vocab_size * config.hidden_size
    shares = [count * layer_parameters(config) + (ends if gpu == 0 else 0) for gpu, count in enumerate(layers)]
    assert sum(shares) == num_parameters(config)
    assert max(shares) - num_parameters(config) / num_gpus <= layer_parameters(config)


def test_the_drivers_own_description_is_read() -> None:
    assert parse_gpus("NVIDIA A10, 23028, 8.6\nTesla T4, 15360, 7.5\n\nNo devices were found\n") == [A10, T4]
