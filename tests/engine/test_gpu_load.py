"""Loading the GPU's engine: which engine runs, what is refused, how memory is divided. No GPU is needed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dolly_batch.engine.continuous.cache import CacheShape
from dolly_batch.engine.continuous.gpu.graphs import bucket_for
from dolly_batch.engine.continuous.gpu.load import StepSize, kv_bytes
from dolly_batch.engine.continuous.gpu.load import gpu_engine as make_gpu_engine
from dolly_batch.engine.load import choose_engine
from dolly_batch.engine.plain.engine import PlainEngine
from dolly_batch.engine.protocol import no_heartbeat
from dolly_batch.engine.weights.loading import LoadedModel
from dolly_batch.errors import ConfigError
from dolly_batch.models.architectures import ARCHITECTURES
from dolly_batch.models.config import ModelConfig
from dolly_batch.models.folder import read_config
from dolly_batch.records import EngineSpec


def test_sizes_of_recorded_steps_hold_all_rows_with_little_padding() -> None:
    sizes = [bucket_for(number, 1000) for number in range(1, 1001)]
    assert all(number <= size <= 1000 for number, size in enumerate(sizes, start=1))
    assert max(size / number for number, size in enumerate(sizes, start=1) if number > 16) < 1.42
    assert len(set(sizes)) < 50
    assert sizes == sorted(sizes)


def test_auto_takes_the_first_engine_that_runs() -> None:
    spec, neox, gptj = EngineSpec("auto", ""), ARCHITECTURES["gpt_neox"], ARCHITECTURES["gptj"]
    assert choose_engine(spec, neox, "cuda") == choose_engine(spec, neox, "cpu") == "fast"
    assert choose_engine(replace(spec, quantization="int8", kind="fast"), neox, "cuda") == "fast"
    assert choose_engine(replace(spec, dtype="float64"), neox, "cuda") == "plain"
    assert choose_engine(replace(spec, dtype="float64"), neox, "cpu") == "fast"
    assert choose_engine(spec, gptj, "cuda") == "plain"
    assert choose_engine(replace(spec, kind="echo", gpus=2, quantization="int8"), gptj, "cpu") == "echo"
    with pytest.raises(ConfigError, match="float64 on a GPU"):
        choose_engine(replace(spec, dtype="float64", kind="fast"), neox, "cuda")
    with pytest.raises(ConfigError, match=r"engine\.kind plain cannot have; use none"):
        choose_engine(replace(spec, quantization="int8", kind="plain"), neox, "cuda")


def test_an_architecture_without_int8_runs_on_the_continuous_engine_in_floating_point_alone() -> None:
    spec, other = EngineSpec("auto", ""), replace(ARCHITECTURES["gpt_neox"], int8=False, title="Other")
    assert choose_engine(spec, other, "cpu") == "fast"
    with pytest.raises(ConfigError, match="'int8', which a Other model cannot have"):
        choose_engine(replace(spec, quantization="int8"), other, "cpu")


def test_what_fails_its_trial_is_named_and_the_plain_engine_runs(
    double: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    spec = EngineSpec("auto", "")
    assert isinstance(make_gpu_engine(spec, double, no_heartbeat), PlainEngine)
    assert "the decode kernel does not compute in float64" in caplog.text
    with pytest.raises(
        ConfigError, match=r"'fast', which cannot run on this GPU: the decode kernel .* use auto or plain"
    ):
        make_gpu_engine(replace(spec, kind="fast"), double, no_heartbeat)


def real_shape(folder: Path, num_layers: int, hidden_size: int) -> tuple[ModelConfig, CacheShape]:
    config = replace(
        read_config(folder), num_layers=num_layers, hidden_size=hidden_size, num_heads=40, num_kv_heads=40,
        head_size=hidden_size // 40, inner_size=4 * hidden_size, vocab_size=50_280, max_positions=2048,
    )  # fmt: skip
    return config, CacheShape(num_layers, 40, 40, hidden_size // 40, torch.bfloat16, torch.device("cpu"))


@pytest.mark.parametrize(
    ("num_layers", "hidden_size", "free_gib", "least_tokens", "max_sequences"),
    [(36, 5120, 55, 60_000, 1024), (32, 2560, 73, 190_000, 1024), (32, 4096, 9, 9_000, 256), (36, 5120, 4, 0, 64)],
    ids=["12b on 80 GB", "3b on 80 GB", "7b on 24 GB", "12b where it hardly fits"],
)
def test_memory_is_for_keys_and_values_once_the_steps_have_theirs(
    double: LoadedModel, neox_folder: Path, num_layers: int, hidden_size: int, free_gib: int, least_tokens: int,
    max_sequences: int,
) -> None:  # fmt: skip
    config, shape = real_shape(neox_folder, num_layers, hidden_size)
    loaded = replace(double, dtype=torch.bfloat16, folder=replace(double.folder, config=config))
    spec = EngineSpec("auto", "")
    size = StepSize.within(free_gib << 30, loaded)
    spare = (free_gib << 30) - size.working_bytes(loaded)
    assert size.max_sequences == max_sequences
    assert kv_bytes(spec, shape, spare) // shape.token_bytes >= least_tokens
    assert kv_bytes(replace(spec, max_batch_tokens=100), shape, spare) <= 100 * shape.token_bytes
    assert kv_bytes(replace(spec, kv_bytes=12_345), shape, spare) == min(12_345, max(0, spare))
    assert kv_bytes(replace(spec, kv_bytes=2**60), shape, spare) == max(0, spare)
    # What scoring holds, all layers' keys and values twice, is no more than what a step of prompts would.
    scored = size.scored_tokens(loaded)
    assert scored == 256 or 2 * scored * shape.token_bytes < size.working_bytes(loaded)
    assert 256 <= scored <= 4_096
