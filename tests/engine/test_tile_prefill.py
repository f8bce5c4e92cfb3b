"""Attention of chunks by AMX's tiles: torch's numbers, bits that depend on the row alone, NaN from where it is."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from dolly_batch.engine.kernels.cpu.compiled import as_words, find_pool_kernels

numba = pytest.importorskip("numba")

from dolly_batch.engine.kernels.cpu import tile_prefill, tiles  # noqa: E402 - they need numba

pytestmark = pytest.mark.skipif(not tiles.is_available("bf16"), reason="needs a CPU with AMX for bfloat16")

CAPACITY = 300
SHAPES = [(6, 2, 64), (4, 4, 32), (2, 1, 128)]
Prefill = Callable[..., None]


@pytest.fixture(params=SHAPES, ids=str, scope="module")
def shape(request: pytest.FixtureRequest) -> tuple[int, int, int]:
    """Heads, key-value heads, head size."""
    found: tuple[int, int, int] = request.param
    return found


@pytest.fixture(scope="module")
def prefill(shape: tuple[int, int, int]) -> Prefill:
    """The kernel, as the engine finds it: compared with torch."""
    kernels = find_pool_kernels(*shape, torch.bfloat16)
    assert kernels is not None
    assert "tile_prefill" in kernels.prefill.py_func.__qualname__  # type: ignore[attr-defined]
    return kernels.prefill


def row_of(shape: tuple[int, int, int], count: int) -> tuple[Tensor, Tensor]:
    """Queries, keys and values of a row's tokens."""
    num_heads, num_kv_heads, head_size = shape
    torch.manual_seed(count)
    return torch.randn(count, num_heads, head_size), torch.randn(count, 2, num_kv_heads, head_size).bfloat16()


def attended(prefill: Prefill, query: Tensor, key_value: Tensor, ends: Sequence[int]) -> Tensor:
    """The row in chunks that end there, in a slot whose rest is NaN."""
    pool = torch.full((2, 2, CAPACITY, *key_value.shape[2:]), torch.nan).bfloat16()
    output, words, start = torch.full_like(query, torch.nan), as_words(pool), 0
    for end in ends:
        chunk = (query[start:end].numpy(), as_words(key_value[start:end]), output[start:end].numpy())
        prefill(words, 1, start, *chunk)
        start = end
    stored, given = pool[:, 1, :start], key_value[:start].transpose(0, 1)
    assert torch.equal(stored.view(torch.int16), given.contiguous().view(torch.int16))
    assert pool[:, 0].isnan().all()  # and nothing else written
    assert pool[:, 1, start:].isnan().all()
    return output


def exactly(query: Tensor, key_value: Tensor) -> Tensor:
    """The same by torch in float64."""
    mask = torch.ones(len(query), len(query), dtype=torch.bool).tril()
    own, keys, values = (part.double().transpose(0, 1) for part in (query, *key_value.unbind(1)))
    found = nn.functional.scaled_dot_product_attention(own, keys, values, attn_mask=mask, scale=1.0, enable_gqa=True)
    return found.transpose(0, 1)


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 31, 32, 33, 64, 65, 130, CAPACITY])
def test_chunks_of_any_length_attend_as_torch_does(prefill: Prefill, shape: tuple[int, int, int], count: int) -> None:
    query, key_value = row_of(shape, count)
    found = attended(prefill, query, key_value, [count])
    torch.testing.assert_close(found.double(), exactly(query, key_value), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("ends", [[1, 300], [64, 300], [256, 257, 300], [*range(10, 301, 10)], [5, 22, 199, 200, 300]])
def test_how_a_row_is_cut_changes_no_bit(prefill: Prefill, shape: tuple[int, int, int], ends: list[int]) -> None:
    query, key_value = row_of(shape, CAPACITY)
    whole = attended(prefill, query, key_value, [CAPACITY])
    assert torch.equal(attended(prefill, query, key_value, ends), whole)


def test_large_scores_overflow_nothing(prefill: Prefill, shape: tuple[int, int, int]) -> None:
    query, key_value = row_of(shape, 70)
    query *= 1e4
    found = attended(prefill, query, key_value, [70])
    torch.testing.assert_close(found.double(), exactly(query, key_value), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("at", [0, 1, 31, 32, 77, 99])
def test_what_is_broken_is_seen_from_there_on_and_before_no_bit_is_another(
    prefill: Prefill, shape: tuple[int, int, int], broken: float, part: int, at: int
) -> None:
    query, key_value = torch.ones_like(row_of(shape, 100)[0]), row_of(shape, 100)[1]
    whole = attended(prefill, query, key_value, [100])
    key_value[at, part, :, 7] = broken
    found = attended(prefill, query, key_value, [100])
    assert torch.equal(found[:at], whole[:at])
    assert not found[at:].isfinite().all(dim=-1).any()


def test_a_query_that_is_broken_is_alone(prefill: Prefill, shape: tuple[int, int, int]) -> None:
    query, key_value = row_of(shape, 40)
    whole = attended(prefill, query, key_value, [40])
    query[20, :, 3], query[21, :, 3] = torch.nan, torch.inf
    found = attended(prefill, query, key_value, [40])
    others = [*range(20), *range(22, 40)]
    assert torch.equal(found[others], whole[others])
    assert not found[20:22].isfinite().all(dim=-1).any()


def test_only_heads_that_fill_tiles_are_taken() -> None:
    assert [size for size in (16, 32, 64, 80, 96, 128) if tile_prefill.fits(size)] == [32, 64, 96, 128]
