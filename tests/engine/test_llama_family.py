"""Llama, Mistral, Qwen2 and Qwen3 on every engine: grouped keys, tied embeddings, scaled rotary ones."""

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from dolly_batch.engine.continuous.cache import CacheShape
from dolly_batch.engine.plain.engine import PlainEngine
from dolly_batch.engine.weights.loading import LoadedModel, load_model
from dolly_batch.engine.weights.norms import compile_norms
from dolly_batch.engine.weights.onednn import pack
from dolly_batch.records import Request
from tests.engine.engines import answer, continuous_engine, gpu_engine
from tests.engine.questions import dolly, generate_alone, mixed_requests
from tests.engine.test_continuous_equality import LogitBits
from tests.engine.test_plain_equality import differing
from tests.random_models import write_random_model

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
MODELS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "llama 3": ("llama", {"tie_word_embeddings": True, "rope_parameters": LLAMA3_ROPE}),
    "llama, one key-value head": ("llama", {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {"head_dim": 24}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 32}),
}


@pytest.fixture(scope="module", params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    architecture, settings = MODELS[request.param]
    return write_random_model(tmp_path_factory.mktemp(architecture), architecture, manifest=True, **settings)


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return load_model(folder, dtype="float64", device="cpu")


def rows_for(loaded: LoadedModel) -> list[Request]:
    short = mixed_requests(dolly(loaded), 12, do_sample=False)
    long = mixed_requests(dolly(loaded), 4, max_words=300, do_sample=False)
    rows = [*short, *long]
    return [replace(row, key=f"row {number}", seed=number) for number, row in enumerate(rows)]


def test_float64_equals_the_reference_in_every_engine(folder: Path, loaded: LoadedModel) -> None:
    rows = rows_for(loaded)
    expected = generate_alone(loaded, rows)
    assert differing(answer(PlainEngine(loaded), rows), expected) == []
    assert differing(answer(gpu_engine(load_model(folder, dtype="float64", device="cpu")), rows), expected) == []
    for way in ({}, {"max_sequences": 5, "prefix_sharing": False}, {"kv_bytes": 100_000}):
        shuffled = random.Random(str(way)).sample(rows, len(rows))
        assert differing(answer(continuous_engine(loaded, **way), shuffled), expected) == []


@pytest.mark.parametrize("numbers", ["float32", "bfloat16", "int8"])
def test_a_row_gets_the_same_bits_alone_and_among_others(folder: Path, numbers: str) -> None:
    if numbers == "int8":
        loaded = load_model(folder, dtype="bfloat16", device="cpu", quantization="int8")
    else:
        loaded = load_model(folder, dtype=numbers, device="cpu")
    if numbers == "bfloat16":
        pack(loaded.model)
    compile_norms(loaded.model)
    rows = [replace(row, params=replace(row.params, do_sample=True)) for row in rows_for(loaded)]
    among = LogitBits(loaded, max_sequences=6)
    assert among.engine._cache._kernels is not None
    together = answer(among.engine, rows)
    for row in rows[::3]:
        alone = LogitBits(loaded)
        assert answer(alone.engine, [row])[row.key] == together[row.key]
        assert alone.seen[row.key] == among.seen[row.key]


def test_the_cache_holds_the_key_value_heads_alone(loaded: LoadedModel) -> None:
    config = loaded.folder.config
    assert config.num_kv_heads < config.num_heads
    assert CacheShape.of(loaded).token_bytes == 2 * config.num_layers * config.kv_size * 8
