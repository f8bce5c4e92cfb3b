"""Kernels that numba compiles: torch's numbers, no neighbour in a row's bits, NaN that come out, and doing without."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from dolly_batch.engine.continuous.cache import CacheShape
from dolly_batch.engine.continuous.cpu.pools import KVPools
from dolly_batch.engine.continuous.engine import ContinuousEngine
from dolly_batch.engine.kernels.cpu.compiled import PoolKernels, as_words, find_pool_kernels, find_row_kernels
from dolly_batch.engine.weights.int8_cpu import Int8Linear, cpu_product
from dolly_batch.engine.weights.loading import load_model
from dolly_batch.engine.weights.norms import CompiledRMSNorm, compile_norms
from tests.engine.engines import answer
from tests.engine.questions import mixed_requests

HEADS, KV_HEADS, HEAD_SIZE, CAPACITY = 6, 3, 18, 192
DTYPES = (torch.float32, torch.bfloat16)


def decode_with(
    kernels: PoolKernels, pool: Tensor, rows: list[tuple[int, int]], query: Tensor, key_value: Tensor
) -> Tensor:
    """Attend for (slot, position) rows of a pool."""
    output = torch.empty_like(query)
    slots, positions = (np.array(numbers) for numbers in zip(*rows, strict=True))
    kernels.decode(as_words(pool), slots, positions, query.numpy(), as_words(key_value), output.numpy())
    return output


def prefill_with(kernels: PoolKernels, pool: Tensor, start: int, query: Tensor, key_value: Tensor) -> Tensor:
    """Attend for a chunk of the row in slot 1."""
    output = torch.empty_like(query)
    kernels.prefill(as_words(pool), 1, start, query.numpy(), as_words(key_value), output.numpy())
    return output


def random_pool(dtype: torch.dtype, num_slots: int) -> Tensor:
    return torch.randn(2, num_slots, CAPACITY, KV_HEADS, HEAD_SIZE).to(dtype)


def random_tokens(dtype: torch.dtype, count: int) -> tuple[Tensor, Tensor]:
    """Queries, keys and values."""
    return torch.randn(count, HEADS, HEAD_SIZE), torch.randn(count, 2, KV_HEADS, HEAD_SIZE).to(dtype)


def attend_exactly(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The last tokens of a row, each over those up to itself, by torch in float64."""
    mask = torch.ones(len(query), len(keys), dtype=torch.bool).tril(len(keys) - len(query))
    parts = (part.double().transpose(0, 1) for part in (query, keys, values))
    attended = nn.functional.scaled_dot_product_attention(*parts, attn_mask=mask, scale=1.0, enable_gqa=True)
    return attended.transpose(0, 1)


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    assert isinstance(request.param, torch.dtype)
    return request.param


@pytest.fixture
def kernels(dtype: torch.dtype) -> PoolKernels:
    found = find_pool_kernels(HEADS, KV_HEADS, HEAD_SIZE, dtype)
    assert found is not None
    return found


def test_rows_of_any_length_attend_as_torch_does(kernels: PoolKernels, dtype: torch.dtype) -> None:
    rows = [(3, 0), (0, 1), (5, 16), (1, 63), (4, 130), (2, CAPACITY - 1)]
    pool = random_pool(dtype, 6)
    query, key_value = random_tokens(dtype, len(rows))
    found = decode_with(kernels, pool, rows, query, key_value)
    for row, (slot, position) in enumerate(rows):
        assert torch.equal(pool[:, slot, position], key_value[row])  # stored
        expected = attend_exactly(query[row, None], *pool[:, slot, : position + 1])
        torch.testing.assert_close(found[row].double(), expected[0], atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 2), (0, 33), (0, CAPACITY), (1, 4), (64, 131), (100, 101)])
def test_chunks_anywhere_attend_as_torch_does(kernels: PoolKernels, dtype: torch.dtype, start: int, stop: int) -> None:
    pool = random_pool(dtype, 3)
    before = pool.clone()
    query, key_value = random_tokens(dtype, stop - start)
    found = prefill_with(kernels, pool, start, query, key_value)
    assert torch.equal(pool[:, 1, start:stop], key_value.transpose(0, 1))  # stored
    pool[:, 1, start:stop] = before[:, 1, start:stop]
    assert torch.equal(pool, before)  # and nothing else written
    keys, values = torch.cat((before[:, 1, :start], key_value.transpose(0, 1)), dim=1)
    expected = attend_exactly(query, keys, values)
    torch.testing.assert_close(found.double(), expected, atol=5e-6, rtol=1e-5)


def test_no_neighbour_changes_a_bit(kernels: PoolKernels, dtype: torch.dtype) -> None:
    rows = [(slot, 20 * slot + 3) for slot in range(8)]
    pool = random_pool(dtype, 8)
    query, key_value = random_tokens(dtype, 8)
    together = decode_with(kernels, pool.clone(), rows, query, key_value)
    for row in (0, 3, 7):
        alone = decode_with(kernels, pool.clone(), rows[row : row + 1], query[row : row + 1], key_value[row : row + 1])
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("part", [0, 1])
def test_what_is_broken_comes_out_and_stays_in_its_row(
    kernels: PoolKernels, dtype: torch.dtype, broken: float, part: int
) -> None:
    rows = [(0, 100), (1, 100), (2, 100)]
    pool, query = random_pool(dtype, 3), torch.ones(3, HEADS, HEAD_SIZE)
    pool[:, 0, 101:] = torch.nan  # behind a row's end is nobody's
    pool[part, 1, 40, :, 7] = broken
    found = decode_with(kernels, pool, rows, query, torch.zeros(3, 2, KV_HEADS, HEAD_SIZE).to(dtype))
    # A key of -inf may rightly have the weight 0.
    if part == 1 or broken != -torch.inf:
        assert not found[1].isfinite().all(dim=-1).any()
    assert found[[0, 2]].isfinite().all()


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("at", [0, 5, 6, 39])
def test_what_is_broken_in_a_chunk_is_seen_from_there_on(
    kernels: PoolKernels, dtype: torch.dtype, broken: float, part: int, at: int
) -> None:
    pool = random_pool(dtype, 2)
    pool[:, 1, 50:] = torch.nan
    query, key_value = torch.ones(40, HEADS, HEAD_SIZE), random_tokens(dtype, 40)[1]
    key_value[at, part, :, 7] = broken
    found = prefill_with(kernels, pool, 10, query, key_value).isfinite().all(dim=-1)
    assert found[:at].all()
    assert not found[at:].any()


def test_large_scores_overflow_nothing(kernels: PoolKernels, dtype: torch.dtype) -> None:
    pool, query = random_pool(dtype, 2), torch.full((1, HEADS, HEAD_SIZE), 1e4)
    key_value = torch.zeros(1, 2, KV_HEADS, HEAD_SIZE).to(dtype)
    for found in (
        decode_with(kernels, pool, [(1, 150)], query, key_value),
        prefill_with(kernels, pool, 150, query, key_value),
    ):
        keys, values = pool[:, 1, :151].double().transpose(1, 2).repeat_interleave(HEADS // KV_HEADS, dim=1)
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


def test_norms_are_hugging_faces_but_for_last_bits() -> None:
    torch.manual_seed(5)
    norm = LlamaRMSNorm(203, eps=1e-5).bfloat16()
    norm.weight.data = torch.randn(203).bfloat16()
    inputs = (torch.randn(2, 19, 203) * torch.logspace(-6, 6, 19)[:, None]).bfloat16()
    inputs[0, 3], inputs[1, 4, 5], inputs[1, 6, 7] = 0, torch.nan, torch.inf
    model = nn.Sequential(norm)
    compile_norms(model)
    assert isinstance(model[0], CompiledRMSNorm)
    with torch.no_grad():
        found, expected = model(inputs), norm(inputs)
        alone = torch.cat([model(inputs[:, i : i + 1]) for i in range(19)], dim=1)
    torch.testing.assert_close(found, expected, rtol=2**-7, atol=0, equal_nan=True)
    assert (found == expected).float().mean() > 0.95
    assert torch.equal(alone.nan_to_num(), found.nan_to_num())
    assert found[1, 4].isnan().all()


def test_norms_in_float32_stay_hugging_faces() -> None:
    model = nn.Sequential(LlamaRMSNorm(32))
    compile_norms(model)
    assert isinstance(model[0], LlamaRMSNorm)


def test_kernels_are_not_for_everything() -> None:
    assert find_pool_kernels(HEADS, KV_HEADS, HEAD_SIZE, torch.float64) is None
    assert find_pool_kernels(HEADS, KV_HEADS, 19, torch.bfloat16) is None
    assert find_row_kernels(torch.float64, torch.float64, 1e-30, 128) is None
    num_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert find_pool_kernels(HEADS, KV_HEADS, HEAD_SIZE, torch.float32) is None
    finally:
        torch.set_num_threads(num_threads)


def test_answers_are_the_same_with_the_kernels_and_without(neox_folder: Path) -> None:
    loaded = load_model(neox_folder, dtype="float32", device="cpu")
    requests = mixed_requests(loaded.encoder, 60)
    shape = CacheShape.of(loaded)
    kernels = find_pool_kernels(shape.num_heads, shape.num_kv_heads, shape.head_size, shape.dtype)
    assert kernels is not None
    with_them, without = (ContinuousEngine(loaded, KVPools(shape, 2**27, found)) for found in (kernels, None))
    assert answer(with_them, requests) == answer(without, requests)


def test_without_numba_the_engine_runs(neox_folder: Path) -> None:
    program = f"""
        import sys
        sys.modules["numba"] = None
        from dolly_batch.engine.load import load_engine
        from dolly_batch.engine.protocol import generate
        from dolly_batch.records import EngineSpec, GenerationParams, Request
        for quantization in ("none", "int8"):
            spec = EngineSpec("fast", {str(neox_folder)!r}, dtype="float32", quantization=quantization, processes=1)
            engine = load_engine(spec, "cpu")
            assert engine._cache._kernels is None
            (answer,) = generate(engine, [Request("a", (5, 6, 7), GenerationParams(max_new_tokens=4, do_sample=False))])
            assert answer.failure is None
            assert answer.token_ids
        assert not any(name.startswith("llvmlite") for name in sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)
