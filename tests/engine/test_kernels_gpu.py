"""The GPU's kernels, against what they stand for: on a GPU where there is one, else in Triton's interpreter."""

import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")


from benchmarks.kv_cost import by_vector, round_keys_and_values
from dolly_batch.engine.continuous.cache import CacheShape
from dolly_batch.engine.continuous.gpu import self_test
from dolly_batch.engine.continuous.gpu.attention import decode_by_sdpa, prefill_by_sdpa
from dolly_batch.engine.continuous.gpu.engine import GpuEngine, InFlightStep
from dolly_batch.engine.continuous.gpu.pages import Pages
from dolly_batch.engine.continuous.gpu.self_test import (
    Unsupported,
    check_choice,
    check_decode,
    check_prefill,
)
from dolly_batch.engine.continuous.sequence import Step
from dolly_batch.engine.eight_bits import EIGHT_BITS
from dolly_batch.engine.kernels.gpu import SPLIT_KEYS, copy_pages, decode, keys_values, sample
from dolly_batch.engine.memory import map_zeros
from dolly_batch.engine.plain.engine import PlainEngine
from dolly_batch.engine.sampling import MAX_ATTEMPTS, choose_tokens, uniform
from dolly_batch.engine.weights.loading import load_model
from dolly_batch.records import GenerationParams, Request
from tests.engine.engines import answer

# Of lanes that are masked afterwards; a GPU does not mention them.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# A page's and a block's borders, and two of a part of a long row.
BORDERS = (0, 1, 15, 16, 33, SPLIT_KEYS, SPLIT_KEYS + 1)


def shape(head_size: int, dtype: torch.dtype, num_heads: int = 1, group: int = 1, kv_dtype: str = "auto") -> CacheShape:
    return CacheShape(1, num_heads * group, num_heads, head_size, dtype, DEVICE, EIGHT_BITS.get(kv_dtype))


@pytest.mark.parametrize(
    ("head_size", "dtype"),
    [(64, torch.float16), (80, torch.bfloat16), (128, torch.float32), (48, torch.bfloat16), (80, torch.float32)],
    ids=str,
)
def test_decode_attends_as_sdpa_does(head_size: int, dtype: torch.dtype) -> None:
    check_decode(shape(head_size, dtype), 2048, BORDERS[: 7 if head_size == 80 else 5])


def test_decode_reads_the_pages_of_its_own_row_and_head() -> None:
    check_decode(shape(48, torch.float32, num_heads=3), 2048, (40, 3, 17))
    check_decode(shape(48, torch.float32, num_heads=2, group=3), 2048, (40, 3, 17))


@pytest.mark.parametrize("fault", ["late", "early", "other row"])
def test_the_trial_sees_a_fault_of_the_decode_kernel(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = decode.paged_decode

    def wrong(query, pages, tables, slots, positions, *rest):  # type: ignore[no-untyped-def]
        if fault == "other row":
            slots = slots.flip(0)
        shift = {"late": 1, "early": -1}.get(fault, 0)
        positions = (positions + shift).clamp(min=0)
        return right(query, pages, tables, slots, positions, *rest)

    monkeypatch.setattr(decode, "paged_decode", wrong)
    with pytest.raises(Unsupported, match="off by"):
        check_decode(shape(48, torch.bfloat16), 2048, (40, 17, 18))


@pytest.mark.parametrize("fault", ["by rows", "by parts"])
def test_the_trial_sees_that_numbers_change_with_neighbours(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the last bits, of rows that have cached keys: where a kernel chose its parts by the batch, for one."""
    right = decode.paged_decode

    def wrong(query, *rest):  # type: ignore[no-untyped-def]
        found = right(query, *rest)
        changes = len(query) > 2 if fault == "by rows" else rest[5] > 1
        return torch.where(rest[3][:, None, None] > 0, found * (1 + 2.0**-22 * changes), found)

    monkeypatch.setattr(decode, "paged_decode", wrong)
    with pytest.raises(Unsupported, match="change with its neighbours, with 41 keys"):
        check_decode(shape(48, torch.float32), 2048, (0, 40, 17))


def test_the_trial_sees_a_fault_in_the_search_of_the_sampling_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search is what a small top_p ends in when all draws are refused."""
    right = sample.choose

    def wrong(logits, temperatures, top_ps, limits, numbers):  # type: ignore[no-untyped-def]
        found = right(logits, temperatures, top_ps, limits, numbers)
        return found.where(top_ps > 0.1, 0)

    monkeypatch.setattr(sample, "choose", wrong)
    with pytest.raises(Unsupported, match="tokens are others"):
        check_choice(700, torch.bfloat16, DEVICE, num_rows=9)


@pytest.mark.skipif(sys.platform != "linux", reason="maps memory that is never touched")
def test_pages_beyond_two_to_the_31_elements_are_found() -> None:
    """Keys and values of 4.5 GB each, of which a few pages are there."""
    num_pages, page_items = 1_100_000, 16 * 128
    assert num_pages * page_items > 2**31
    pages = map_zeros(2 * num_pages * page_items, torch.bfloat16).view(2, num_pages, 1, 16, 128).to(DEVICE)
    numbers = torch.Generator(DEVICE).manual_seed(1)
    tables = torch.tensor([[num_pages - 1, num_pages - 3], [2, num_pages // 2]], dtype=torch.int32, device=DEVICE)
    for page in tables.flatten().tolist():
        pages[:, page] = torch.randn((2, 1, 16, 128), generator=numbers, device=DEVICE).bfloat16()
    query, key, value = (torch.randn((2, 1, 128), generator=numbers, device=DEVICE).bfloat16() for _ in range(3))
    places = torch.tensor([(num_pages - 3) * 16 + 4, num_pages // 2 * 16 + 14], device=DEVICE)
    keys_values.store(query, key, value, pages, None, places)
    slots, at = (torch.tensor(each, device=DEVICE) for each in ([0, 1], [20, 30]))
    found = decode.paged_decode(query, pages, tables, slots, at, 0.1, 1)
    assert torch.equal(pages[0, num_pages - 3, 0, 4], key[0, 0])
    assert torch.equal(pages[1, num_pages // 2, 0, 14], value[1, 0])
    expected = decode_by_sdpa(query, pages, tables, slots, at, 0.1, 1)
    assert torch.allclose(found, expected, atol=2e-2)


def test_parts_that_a_row_does_not_have_are_not_read() -> None:
    """Nor written: their programs end at once. What is there in memory is NaN here."""
    query = torch.ones(2, 1, 48, device=DEVICE)
    pages = torch.zeros((2, 40, 1, 16, 48), device=DEVICE)
    tables = torch.arange(1, 40, dtype=torch.int32, device=DEVICE).repeat(2, 1)
    slots, at = (torch.tensor(numbers, device=DEVICE) for numbers in ([0, 1], [3, 520]))
    empty, parts = torch.Tensor.new_empty, []

    def poisoned(self: torch.Tensor, *sizes: object, **settings: object) -> torch.Tensor:
        found = empty(self, *sizes, **settings)  # type: ignore[arg-type]
        if found.is_floating_point() and found.dim() == 4:
            parts.append(found.fill_(torch.nan))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "new_empty", poisoned)
        found = decode.paged_decode(query, pages, tables, slots, at, 1.0, 4)
    assert found.isfinite().all()
    is_written = parts[0].isfinite().all(dim=-1)[:, 0]
    assert is_written.tolist() == [[True, False, False, False], [True, True, False, False]]


def test_the_trial_sees_a_fault_in_attention_over_prompts() -> None:
    check_prefill(prefill_by_sdpa, shape(48, torch.float32, 2))
    with pytest.raises(Unsupported, match=r"off by .* with 7 tokens after 9"):
        # As an attention would that aligns its mask at the keys' beginning instead of their end.
        check_prefill(
            lambda query, key, value, packing, scaling: torch.cat(
                [
                    torch.nn.functional.scaled_dot_product_attention(
                        queries.transpose(0, 1)[None],
                        keys.transpose(0, 1)[None],
                        values.transpose(0, 1)[None],
                        is_causal=True,
                        scale=scaling,
                    )[0].transpose(0, 1)
                    for queries, keys, values in zip(
                        query.split(packing.num_queries),
                        key.split(packing.num_keys),
                        value.split(packing.num_keys),
                        strict=True,
                    )
                ]
            ),
            shape(48, torch.float32, 2),
        )


def test_pages_are_copied_as_they_are_and_no_others_change() -> None:
    numbers = torch.Generator(DEVICE).manual_seed(4)
    pages = torch.randn((3, 2, 9, 2, 16, 80), generator=numbers, device=DEVICE).to(torch.bfloat16)
    pages[:, :, 4, :, 7:] = torch.nan
    expected = pages.clone()
    sources, targets = (torch.tensor(each, device=DEVICE) for each in ([4, 1, 4], [2, 7, 8]))
    expected[:, :, targets] = expected[:, :, sources]
    copy_pages.copy_pages(pages, sources, targets)
    assert torch.equal(pages.view(torch.int16), expected.view(torch.int16))


def draw(params: list[GenerationParams], logits: torch.Tensor, first_seed: int) -> tuple[list[int], list[int]]:
    """The kernel's tokens, and the sampler's."""
    seeds = torch.arange(first_seed, first_seed + len(params))
    expected = choose_tokens(logits.clone(), params, seeds.tolist(), [3] * len(params))
    limits = [logits[row].topk(each.top_k).values[-1] if each.top_k else -torch.inf for row, each in enumerate(params)]
    found = sample.choose(
        logits.to(DEVICE),
        torch.tensor([each.temperature * each.do_sample for each in params], dtype=torch.float64, device=DEVICE),
        torch.tensor([each.top_p for each in params], dtype=torch.float64, device=DEVICE),
        torch.tensor(limits, device=DEVICE),
        uniform(seeds[:, None], torch.full((len(params), 1), 3), torch.arange(MAX_ATTEMPTS + 1)).to(DEVICE),
    )
    return found.tolist(), expected.tolist()


@pytest.mark.parametrize("spread", [0.05, 3.0])
def test_the_kernel_chooses_the_samplers_tokens(spread: float) -> None:
    """Small top_p's refuse all draws and end in the search; rounded logits are full of ties."""
    params = [
        GenerationParams(do_sample=True, temperature=temperature, top_p=top_p, top_k=top_k)
        for temperature, top_p, top_k in (
            (0.5, 1.0, 0),
            (1.5, 0.92, 0),
            (1.0, 0.92, 40),
            (1.0, 0.3, 0),
            (1.5, 0.02, 0),
            (0.5, 1e-7, 40),
            (0.01, 0.9, 0),
        )
    ]
    params.append(GenerationParams(do_sample=False))
    logits = (spread * torch.randn(len(params), 2_500, generator=torch.Generator().manual_seed(1)) * 8).round() / 8
    found, expected = draw(params, logits, first_seed=int(spread * 100))
    assert found == expected
    assert len(set(found)) > len(found) / 2


def test_tokens_of_broken_logits_are_in_the_vocabulary() -> None:
    logits = torch.zeros(4, 300)
    logits[0], logits[1], logits[2], logits[3, 7] = torch.nan, torch.inf, -torch.inf, torch.nan
    params = [GenerationParams(top_p=0.5)] * 4
    uniforms = torch.full((4, MAX_ATTEMPTS + 1), 0.5, dtype=torch.float64, device=DEVICE)
    settings = [torch.tensor([value] * 4, dtype=torch.float64, device=DEVICE) for value in (1.0, params[0].top_p)]
    found = sample.choose(logits.to(DEVICE), *settings, torch.full((4,), -torch.inf, device=DEVICE), uniforms)
    assert all(0 <= token < 300 for token in found.tolist())


def test_the_trial_of_the_sampling_kernel_passes_and_sees_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    check_choice(700, torch.bfloat16, DEVICE, num_rows=9)
    right = self_test.uniform
    monkeypatch.setattr(self_test, "uniform", lambda seeds, positions, attempt: right(seeds, positions + 1, attempt))
    with pytest.raises(Unsupported, match="tokens are others"):
        check_choice(700, torch.bfloat16, DEVICE, num_rows=9)


class NeverAsked(TorchDispatchMode):
    """Refuses what makes the host wait for the device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = function.overloadpacket.__name__
        assert name not in {"_local_scalar_dense", "nonzero", "equal", "masked_select", "unique"}, name
        return function(*args, **(kwargs or {}))


class Launching(GpuEngine):
    """Launches its steps under that guard."""

    def _launch(self, step: Step) -> InFlightStep:
        with NeverAsked():
            return super()._launch(step)


@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
def test_the_engine_with_kernels_answers_as_the_plain_one_and_never_waits_in_a_step(
    neox_folder: Path, kv_dtype: str
) -> None:
    loaded = load_model(neox_folder, dtype="float32", device=str(DEVICE))
    pages = Pages(CacheShape.of(loaded, kv_dtype), 2**20, max_sequences=4, max_positions=2048, use_kernel=True)
    rows = [
        Request("greedy", (5, 6, 7) * 6, GenerationParams(3, do_sample=False)),
        Request("sampled", (5, 6, 7) * 6, GenerationParams(3, top_p=0.8, top_k=50), 7),
    ]
    found = answer(Launching(loaded, pages, max_sequences=4, use_kernels=True), rows)
    if kv_dtype != "auto":
        rounding = by_vector(EIGHT_BITS[kv_dtype])
        round_keys_and_values(loaded.model, rounding, rounding)
    assert found == answer(PlainEngine(loaded), rows)
