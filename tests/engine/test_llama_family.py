"""Llama, Mistral, Qwen2 and Qwen3 on every engine: grouped keys, tied embeddings, scaled rotary ones."""

import math
import random
from collections.abc import Mapping
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dolly_batch.engine.continuous.cache import CacheShape
from dolly_batch.engine.continuous.engine import ContinuousEngine
from dolly_batch.engine.continuous.sequence import CachedSequence, Step
from dolly_batch.engine.plain.engine import PlainEngine
from dolly_batch.engine.weights.int8_cpu import quantize
from dolly_batch.engine.weights.loading import LoadedModel, load_model, smoothing_of
from dolly_batch.engine.weights.norms import compile_norms
from dolly_batch.engine.weights.onednn import pack
from dolly_batch.records import Completion, Request
from tests.engine.engines import answer, continuous_engine, gpu_engine, randomize_vectors
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


@pytest.mark.parametrize(
    "numbers",
    ["int8", pytest.param("float32", marks=pytest.mark.chaos), pytest.param("bfloat16", marks=pytest.mark.chaos)],
)
def test_a_row_gets_the_same_bits_alone_and_among_others(folder: Path, numbers: str) -> None:
    check_bits(folder, numbers)


@pytest.mark.parametrize("numbers", ["float32", "bfloat16"])
def test_so_it_does_without_int8(llama_folder: Path, numbers: str) -> None:
    check_bits(llama_folder, numbers)


def check_bits(folder: Path, numbers: str) -> None:
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
    assert (among.engine._layers is not None) == (numbers == "int8")
    together = answer(among.engine, rows)
    for row in rows[::4]:
        alone = LogitBits(loaded)
        assert answer(alone.engine, [row])[row.key] == together[row.key]
        assert alone.seen[row.key] == among.seen[row.key]


class Recording(ContinuousEngine):
    """Keeps the logits of every row at every step, of Hugging Face's modules where `modules` says so."""

    modules = False
    seen: dict[str, list[Tensor]]

    def _forward(self, step: Step) -> tuple[list[CachedSequence], Tensor]:
        if self.modules:
            self._layers = None
        sequences, logits = super()._forward(step)
        for sequence, own in zip(sequences, logits, strict=True):
            self.seen.setdefault(sequence.request.key, []).append(own.double())
        return sequences, logits


def recorded(loaded: LoadedModel, rows: list[Request], *, modules: bool) -> tuple[Recording, dict[str, Completion]]:
    engine = continuous_engine(loaded, Recording, max_sequences=7)
    assert isinstance(engine, Recording)
    engine.modules, engine.seen = modules, {}
    return engine, answer(engine, rows)


def in_int8(folder: Path, dtype: str) -> LoadedModel:
    """With biases and norms that are not all 0 and 1."""
    loaded = load_model(folder, dtype=dtype, device="cpu")
    randomize_vectors(loaded.model)
    quantize(loaded.model, smoothing=smoothing_of(loaded.folder, loaded.encoder))
    return loaded


def test_compiled_layers_compute_what_the_modules_do(folder: Path) -> None:
    """In 8 bits both, the modules in float64 between the products."""
    loaded, exact = in_int8(folder, "float32"), in_int8(folder, "float64")
    rows = rows_for(loaded)
    engine, found = recorded(loaded, rows, modules=False)
    reference, expected = recorded(exact, rows, modules=True)
    assert engine._layers is not None
    assert reference._layers is None
    distances = []
    for row in rows:
        both = zip(found[row.key].token_ids, expected[row.key].token_ids, strict=False)
        num_same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], both))
        pairs = list(zip(engine.seen[row.key], reference.seen[row.key], strict=False))[: num_same + 1]
        distances += [((ours - theirs).std() / theirs.std()).item() for ours, theirs in pairs]
    mean = sum(distances) / len(distances)
    print(f"{len(distances)} logits, off by {max(distances):.1e} at most, {mean:.1e} in the mean")
    assert len(distances) > 4 * len(rows)
    assert max(distances) < 0.06
    assert mean < 0.01


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_what_is_broken_stays_in_its_row_in_int8_too(llama_folder: Path, poison: float) -> None:
    loaded = load_model(llama_folder, dtype="bfloat16", device="cpu", quantization="int8")
    rows = [replace(row, params=replace(row.params, do_sample=False)) for row in rows_for(loaded)]
    rows = [row for row in rows if 200 not in row.prompt_ids]
    expected = answer(continuous_engine(loaded), rows)
    clean = {key: found for key, found in expected.items() if 200 not in found.token_ids}
    assert len(clean) > 8
    broken = [replace(row, key=f"broken {row.key}", prompt_ids=(*row.prompt_ids[:7], 200, 9)) for row in rows[:5]]
    with torch.no_grad():
        loaded.model.model.embed_tokens.weight[200] = poison
    engine = continuous_engine(loaded, max_sequences=4)
    assert engine._layers is not None
    found = answer(engine, [*rows[:5], *broken, *rows[5:]])
    assert {found[row.key].failure.status for row in broken} == {"model_error"}  # type: ignore[union-attr]
    assert {key: found[key] for key in clean} == clean


def test_the_cache_holds_the_key_value_heads_alone(loaded: LoadedModel) -> None:
    config = loaded.folder.config
    assert config.num_kv_heads < config.num_heads
    assert CacheShape.of(loaded).token_bytes == 2 * config.num_layers * config.kv_size * 8
