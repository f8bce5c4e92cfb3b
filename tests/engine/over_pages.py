"""Engines over pages for tests, on the CPU with attention by SDPA."""

import torch

from dolly_batch.engine.continuous.cache import CacheShape
from dolly_batch.engine.continuous.gpu.engine import GpuEngine
from dolly_batch.engine.continuous.gpu.pages import Pages
from dolly_batch.engine.weights.loading import LoadedModel
from tests.engine.fast import ROOMY

TIGHT = 1  # byte: pages for one row of the model's full length, and no more


def gpu_engine(
    loaded: LoadedModel,
    kind: type[GpuEngine] = GpuEngine,
    pages: type[Pages] = Pages,
    *,
    kv_bytes: int = ROOMY,
    max_rows: int = 64,
    **settings: object,
) -> GpuEngine:
    """An engine whose pages are full of NaN at first."""
    cache = pages(CacheShape.of(loaded), min(kv_bytes, 2**24), max_rows=max_rows, max_positions=2048)
    cache.data.fill_(torch.nan)
    return kind(loaded, cache, max_rows=max_rows, **settings)  # type: ignore[arg-type]


def assert_empty(engine: GpuEngine) -> None:
    """Nothing is held but what one ended row may leave for the next ones, its prompt."""
    pages, donor = engine._pages, engine._schedule._donor
    held = set(donor.place.pages) if donor else set()
    assert pages.num_bytes == len(held) * pages.page_bytes
    assert sorted([*pages._free, *held]) == list(range(1, pages.num_pages))
    assert [page for page, number in enumerate(pages._num_holders) if number] == sorted(held)
    assert pages._num_outstanding == (donor.place.num_outstanding if donor else 0)
    assert pages._num_rows == bool(donor)
    assert engine._flight is None
