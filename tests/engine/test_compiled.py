"""Kernels that numba compiles: torch's numbers, no neighbour in a row's bits, NaN that come out, and doing without."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dolly_batch.engine.cache import CacheShape
from dolly_batch.engine.compiled import Kernel, as_array, find_decode, find_row_kernels
from dolly_batch.engine.fast import FastEngine
from dolly_batch.engine.model import load_model
from dolly_batch.engine.pools import Pools
from dolly_batch.engine.quantize import Int8Linear, cpu_product
from tests.engine.fast import answer
from tests.engine.questions import mixed_requests

HEADS, HEAD_SIZE, CAPACITY = 3, 20, 192
DTYPES = (torch.float32, torch.bfloat16)


def decode_with(kernel: Kernel, pool: Tensor, rows: list[tuple[int, int]], query: Tensor, key_value: Tensor) -> Tensor:
    """Attend for (slot, position) rows of a pool."""
    output = torch.empty_like(query)
    slots, positions = (np.array(numbers) for numbers in zip(*rows, strict=True))
    weights = np.empty(pool.shape[3], np.float32)
    kernel(as_array(pool), slots, positions, query.numpy(), as_array(key_value), output.numpy(), weights)
    return output


def random_pool(dtype: torch.dtype, num_slots: int) -> Tensor:
    return torch.randn(2, num_slots, HEADS, CAPACITY, HEAD_SIZE).to(dtype)


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    assert isinstance(request.param, torch.dtype)
    return request.param


@pytest.fixture
def kernel(dtype: torch.dtype) -> Kernel:
    found = find_decode(HEAD_SIZE, dtype)
    assert found is not None
    return found


def test_rows_of_any_length_attend_as_torch_does(kernel: Kernel, dtype: torch.dtype) -> None:
    rows = [(3, 0), (0, 1), (5, 16), (1, 63), (4, 130), (2, CAPACITY - 1)]
    pool, query = random_pool(dtype, 6), torch.randn(len(rows), HEADS, HEAD_SIZE)
    key_value = torch.randn(len(rows), 2, HEADS, HEAD_SIZE).to(dtype)
    found = decode_with(kernel, pool, rows, query, key_value)
    for row, (slot, position) in enumerate(rows):
        assert torch.equal(pool[:, slot, :, position], key_value[row])  # stored
        keys, values = pool[:, slot, :, : position + 1].double()
        expected = nn.functional.scaled_dot_product_attention(query[row, :, None].double(), keys, values, scale=1.0)
        torch.testing.assert_close(found[row].double(), expected[:, 0], atol=5e-6, rtol=1e-5)


def test_no_neighbour_changes_a_bit(kernel: Kernel, dtype: torch.dtype) -> None:
    rows = [(slot, 20 * slot + 3) for slot in range(8)]
    pool, query = random_pool(dtype, 8), torch.randn(8, HEADS, HEAD_SIZE)
    key_value = torch.randn(8, 2, HEADS, HEAD_SIZE).to(dtype)
    together = decode_with(kernel, pool.clone(), rows, query, key_value)
    for row in (0, 3, 7):
        alone = decode_with(kernel, pool.clone(), rows[row : row + 1], query[row : row + 1], key_value[row : row + 1])
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("part", [0, 1])
def test_what_is_broken_comes_out_and_stays_in_its_row(
    kernel: Kernel, dtype: torch.dtype, broken: float, part: int
) -> None:
    rows = [(0, 100), (1, 100), (2, 100)]
    pool, query = random_pool(dtype, 3), torch.ones(3, HEADS, HEAD_SIZE)
    pool[:, 0, :, 101:] = torch.nan  # behind a row's end is nobody's
    pool[part, 1, :, 40, 7] = broken
    found = decode_with(kernel, pool, rows, query, torch.zeros(3, 2, HEADS, HEAD_SIZE).to(dtype))
    # A key of -inf may rightly have the weight 0.
    if part == 1 or broken != -torch.inf:
        assert not found[1].isfinite().all(dim=-1).any()
    assert found[[0, 2]].isfinite().all()


def test_large_scores_overflow_nothing(kernel: Kernel, dtype: torch.dtype) -> None:
    pool, query = random_pool(dtype, 1), torch.full((1, HEADS, HEAD_SIZE), 1e4)
    found = decode_with(kernel, pool, [(0, 150)], query, torch.zeros(1, 2, HEADS, HEAD_SIZE).to(dtype))
    keys, values = pool[:, 0, :, :151].double()
    best = (keys @ query[0, :, :, None].double()).argmax(dim=1)[:, 0]
    torch.testing.assert_close(found[0].double(), values[torch.arange(HEADS), best], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("output_dtype", DTYPES, ids=str)
def test_int8_layers_have_torchs_bits(dtype: torch.dtype, output_dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    linear = nn.Linear(96, 40).to(dtype)
    layer = Int8Linear(linear, cpu_product(), output_dtype)
    assert layer._kernels is not None
    inputs = (torch.randn(2, 37, 96) * torch.logspace(-6, 6, 37)[:, None]).to(dtype)
    inputs[0, 3] = 0
    inputs[0, 4, 5] = torch.nan
    inputs[1, 6, 7] = torch.inf
    found = layer(inputs)
    assert found.dtype == output_dtype
    broken = torch.zeros(2, 37, dtype=torch.bool)
    broken[0, 4] = broken[1, 6] = True
    layer._kernels = None
    expected = layer(inputs)
    assert torch.equal(found[~broken], expected[~broken])
    assert found[broken].isnan().all()


def test_kernels_are_not_for_everything() -> None:
    assert find_decode(HEAD_SIZE, torch.float64) is None
    assert find_row_kernels(torch.float64, torch.float64, 1e-30, 128) is None
    num_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert find_decode(HEAD_SIZE, torch.float32) is None
    finally:
        torch.set_num_threads(num_threads)


def test_answers_are_the_same_with_the_kernel_and_without(neox_folder: Path) -> None:
    loaded = load_model(neox_folder, dtype="float32", device="cpu")
    requests = mixed_requests(loaded.encoder, 60)
    shape = CacheShape.of(loaded)
    kernel = find_decode(shape.head_size, shape.dtype)
    assert kernel is not None
    with_it, without = (FastEngine(loaded, Pools(shape, 2**27, decode)) for decode in (kernel, None))
    assert answer(with_it, requests) == answer(without, requests)


def test_without_numba_the_engine_runs(neox_folder: Path) -> None:
    program = f"""
        import sys
        sys.modules["numba"] = None
        from dolly_batch.engine.load import load_engine
        from dolly_batch.engine.stream import generate
        from dolly_batch.records import EngineSpec, GenerationParams, Request
        for quantization in ("none", "int8"):
            spec = EngineSpec("fast", {str(neox_folder)!r}, dtype="float32", quantization=quantization, processes=1)
            engine = load_engine(spec, "cpu")
            assert engine._cache._decode is None
            (answer,) = generate(engine, [Request("a", (5, 6, 7), GenerationParams(max_new_tokens=4, do_sample=False))])
            assert answer.failure is None
            assert answer.token_ids
        assert not any(name.startswith("llvmlite") for name in sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)
