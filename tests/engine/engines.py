"""Engines for tests, and answers by key."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch

from dolly_batch.engine.continuous.cache import CacheShape
from dolly_batch.engine.continuous.cpu.pools import KVPools
from dolly_batch.engine.continuous.engine import ContinuousEngine
from dolly_batch.engine.continuous.gpu.engine import GpuEngine
from dolly_batch.engine.continuous.gpu.pages import Pages
from dolly_batch.engine.protocol import Engine, generate
from dolly_batch.engine.weights.loading import LoadedModel
from dolly_batch.records import Completion, Request

ROOMY = 2**30
TIGHT = 1  # byte: pages for one sequence of the model's full length, and no more


AnEngine = TypeVar("AnEngine", bound=ContinuousEngine)


def continuous_engine(
    loaded: LoadedModel,
    kind: type[AnEngine] = ContinuousEngine,  # type: ignore[assignment]
    *,
    kv_bytes: int = ROOMY,
    **settings: int,
) -> AnEngine:
    return kind(loaded, KVPools.with_kernels(CacheShape.of(loaded), kv_bytes), **settings)  # type: ignore[arg-type]


def gpu_engine(
    loaded: LoadedModel,
    kind: type[GpuEngine] = GpuEngine,
    pages: type[Pages] = Pages,
    *,
    kv_bytes: int = ROOMY,
    max_sequences: int = 64,
    kv_dtype: str = "auto",
    **settings: object,
) -> GpuEngine:
    """An engine whose pages are full of NaN at first."""
    shape = CacheShape.of(loaded, kv_dtype)
    cache = pages(shape, min(kv_bytes, 2**24), max_sequences=max_sequences, max_positions=2048)
    (cache.data if cache.scales is None else cache.scales).fill_(torch.nan)
    return kind(loaded, cache, max_sequences=max_sequences, **settings)  # type: ignore[arg-type]


def randomize_vectors(model: Any) -> None:
    """Give a model biases and norms that are not all 0 and 1."""
    numbers = torch.Generator().manual_seed(4)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            drawn = torch.rand(parameter.shape, generator=numbers) + (0.0 if name.endswith("bias") else 0.5)
            parameter.data = drawn.to(parameter.dtype)


def assert_empty(engine: GpuEngine) -> None:
    """Nothing is held but what one ended row may leave for the next ones, its prompt."""
    pages, source = engine._pages, engine._scheduler._kept_source
    held = set(source.location.pages) if source else set()
    assert pages.num_bytes == len(held) * pages.page_bytes
    assert sorted([*pages._free_pages, *held]) == list(range(1, pages.num_pages))
    assert [page for page, number in enumerate(pages._ref_counts) if number] == sorted(held)
    assert pages._num_expected == (source.location.num_expected if source else 0)
    assert pages._num_sequences == bool(source)
    assert engine._in_flight is None


def answer(engine: Engine, requests: Sequence[Request]) -> dict[str, Completion]:
    completions = list(generate(engine, requests))
    assert len(completions) == len(requests)
    return {completion.key: completion for completion in completions}
