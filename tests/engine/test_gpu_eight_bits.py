"""Keys and values in 8 bits on the GPU's path, without a GPU: a model that rounds them gives the same answers."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.kv_cost import by_vector, round_keys_and_values
from dolly_batch.engine.continuous.cache import CacheShape
from dolly_batch.engine.continuous.gpu import layer_pages
from dolly_batch.engine.continuous.gpu.attention import prefill_by_sdpa
from dolly_batch.engine.continuous.gpu.load import gpu_engine as make_gpu_engine
from dolly_batch.engine.continuous.gpu.load import kv_bytes
from dolly_batch.engine.continuous.gpu.pages import PAGE_TOKENS, Pages
from dolly_batch.engine.continuous.gpu.self_test import Unsupported, check_model
from dolly_batch.engine.continuous.pace import StepLimits
from dolly_batch.engine.continuous.sequence import CachedSequence
from dolly_batch.engine.eight_bits import EIGHT_BITS, quantize, restore
from dolly_batch.engine.load import choose_engine
from dolly_batch.engine.plain.engine import PlainEngine
from dolly_batch.engine.protocol import no_heartbeat
from dolly_batch.engine.weights.loading import LoadedModel, load_model
from dolly_batch.errors import ConfigError
from dolly_batch.models.architectures import ARCHITECTURES
from dolly_batch.records import EngineSpec, GenerationParams, Request
from tests.engine.engines import TIGHT, answer, assert_empty, gpu_engine
from tests.engine.questions import dolly, mixed_requests
from tests.engine.test_gpu_pages import Optimist


def rounding_model(folder: Path, kv_dtype: str) -> LoadedModel:
    """A model of transformers, in float64, that attends to keys and values as they are in 8 bits."""
    loaded = load_model(folder, dtype="float64", device="cpu")
    rounding = by_vector(EIGHT_BITS[kv_dtype])
    round_keys_and_values(loaded.model, rounding, rounding)
    return loaded


def rows_of(loaded: LoadedModel) -> list[Request]:
    """Greedy and sampled, of which some begin alike for more than a page."""
    rows = mixed_requests(dolly(loaded), 10, do_sample=True)
    shared = dolly(loaded).encode("List three rivers of Europe, one on each line. " * 6, None)[:70]
    alike = [replace(row, prompt_ids=(*shared, *row.prompt_ids[30:])) for row in rows[3:9]]
    return [replace(row, key=f"row {number}", seed=number) for number, row in enumerate([*rows, *alike])]


@pytest.mark.parametrize(
    ("kv_dtype", "way"),
    [
        ("int8", {}),
        ("int8", {"max_sequences": 5, "limits": StepLimits(chunk_tokens=48, step_tokens=96)}),
        ("fp8", {"prefix_sharing": False}),
    ],
    ids=str,
)
def test_answers_are_those_of_a_model_that_rounds_what_it_attends_to(
    neox_folder: Path, double: LoadedModel, kv_dtype: str, way: dict[str, object]
) -> None:
    """However rows are batched, cut, shared or preempted; and others than in the model's own dtype."""
    rows = rows_of(double)
    engine = gpu_engine(double, kv_dtype=kv_dtype, **way)  # type: ignore[arg-type]
    found = answer(engine, rows)
    assert found == answer(PlainEngine(rounding_model(neox_folder, kv_dtype)), rows)
    assert_empty(engine)
    assert engine.stats()["num_shared_tokens"] > 0 or not way.get("prefix_sharing", True)
    if not way:
        assert found != answer(gpu_engine(double), rows)


class Narrow(Optimist):
    """Pages for 256 tokens in all."""

    def __init__(self, *given: Any, max_positions: int, **settings: Any) -> None:
        super().__init__(*given, max_positions=256, **settings)


def test_rows_that_are_preempted_and_computed_again_get_the_same_answers(
    neox_folder: Path, double: LoadedModel
) -> None:
    draw, params = random.Random(3), GenerationParams(40, do_sample=False)
    rows = [Request(str(row), tuple(draw.choices(range(8, 390), k=20 + row)), params) for row in range(10)]
    engine = gpu_engine(double, pages=Narrow, kv_bytes=TIGHT, kv_dtype="int8")
    assert answer(engine, rows) == answer(PlainEngine(rounding_model(neox_folder, "int8")), rows)
    assert engine.stats()["num_preempted"] > 1


def test_heads_of_a_group_share_what_is_in_8_bits(llama_folder: Path) -> None:
    loaded = load_model(llama_folder, dtype="float64", device="cpu")
    rows = rows_of(loaded)[::3]
    expected = answer(PlainEngine(rounding_model(llama_folder, "int8")), rows)
    assert answer(gpu_engine(loaded, kv_dtype="int8"), rows) == expected


def test_a_spoilt_row_fails_alone(neox_folder: Path) -> None:
    """No number of 8 bits is a NaN, but a scale is."""
    loaded = load_model(neox_folder, dtype="float64", device="cpu")
    rows = [row for row in rows_of(loaded) if 7 not in row.prompt_ids]
    clean = answer(gpu_engine(loaded, kv_dtype="int8"), rows)
    rows = [row for row in rows if 7 not in clean[row.key].token_ids]
    loaded.model.gpt_neox.embed_in.weight.data[7] = torch.nan
    spoilt = [replace(row, key=f"bad {row.key}", prompt_ids=(*row.prompt_ids, 7)) for row in rows[:3]]
    engine = gpu_engine(loaded, kv_dtype="int8")
    for _ in range(2):  # the second time in places that the spoilt rows left
        found = answer(engine, [*rows, *spoilt])
        assert all(found[row.key].failure is not None for row in spoilt)
        assert all(found[row.key] == clean[row.key] for row in rows)


def test_numbers_are_rounded_to_the_nearest() -> None:
    vectors = torch.randn(40, 64, generator=torch.Generator().manual_seed(2)) * torch.logspace(-9, 9, 40)[:, None]
    vectors[3] = 0
    largest = vectors.abs().amax(dim=1, keepdim=True)
    errors = {}
    for name, stored in EIGHT_BITS.items():
        numbers, scales = quantize(vectors, stored)
        wrong = (restore(numbers, scales, torch.float64) - vectors).abs()
        # Half of a step: of int8 everywhere the same, of fp8 a sixteenth of the number, or half of the smallest one.
        steps = largest / 127 / 2 if name == "int8" else (vectors.abs() / 16).maximum(largest / 448 * 2.0**-10)
        assert (wrong <= steps * (1 + 1e-6)).all()
        errors[name] = (wrong.norm() / vectors.double().norm()).item()
    print("relative distance of random vectors:", errors)
    assert errors["int8"] < 0.008 < errors["fp8"] < 0.03


def test_pages_of_8_bits_hold_about_twice_the_tokens(double: LoadedModel) -> None:
    loaded = replace(double, dtype=torch.bfloat16)
    own, eight = (CacheShape.of(loaded, kv_dtype) for kv_dtype in ("auto", "int8"))
    assert own.token_bytes / eight.token_bytes == 2 * 16 / (16 + 4)  # heads of 16, and a scale
    pages = [Pages(shape, 2**20, max_sequences=64, max_positions=256) for shape in (own, eight)]
    assert pages[1].num_pages == pytest.approx(1.6 * pages[0].num_pages, rel=0.01)
    for each in pages:
        assert each.reserved_bytes == each.num_pages * each.page_bytes
        assert each.reserved_bytes <= 2**20 + each.page_bytes
    sequence = CachedSequence(Request("", (5,) * 40, GenerationParams(4)))
    pages[1].allocate(sequence, 40)
    assert pages[1].num_bytes == 3 * PAGE_TOKENS * eight.token_bytes
    spec = EngineSpec("auto", "", max_batch_tokens=100)
    assert kv_bytes(spec, eight, 2**30) == 100 * eight.token_bytes


def test_a_page_is_copied_with_its_scales(double: LoadedModel) -> None:
    pages = Pages(CacheShape.of(double, "fp8"), TIGHT, max_sequences=4, max_positions=2048)
    first, second = (CachedSequence(Request("", (5,) * 24, GenerationParams(4))) for _ in range(2))
    for sequence in (first, second):
        pages.allocate(sequence, 24)
    assert pages.scales is not None
    source, target = first.location.pages[1], second.location.pages[1]
    layer_pages.as_bytes(pages.data)[:, :, source], pages.scales[:, :, source] = 3, 0.5
    pages.share_prefix(first, second, 20)
    pages.write_block_tables()
    assert (layer_pages.as_bytes(pages.data)[:, :, target] == 3).all()
    assert (pages.scales[:, :, target] == 0.5).all()


def test_what_cannot_have_8_bits_is_refused_by_name(double: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, neox, gptj = EngineSpec("auto", "", kv_dtype="int8"), ARCHITECTURES["gpt_neox"], ARCHITECTURES["gptj"]
    assert choose_engine(spec, neox, "cuda") == "fast"
    assert choose_engine(replace(spec, kind="echo"), gptj, "cpu") == "echo"
    for refused, architecture, device, why in (
        (spec, neox, "cpu", "which a CPU cannot have; use auto"),
        (replace(spec, kind="fast"), neox, "cpu", "is 'int8', which is for GPUs; use auto"),
        (spec, gptj, "cuda", "which a GPT-J model cannot have; use auto"),
        (replace(spec, gpus=2), neox, "cuda", "which a model over several GPUs cannot have"),
        (replace(spec, kind="plain"), neox, "cuda", r"which engine\.kind plain cannot have"),
    ):
        with pytest.raises(ConfigError, match=why):
            choose_engine(refused, architecture, device)  # type: ignore[arg-type]
    # A failed trial: the plain engine would give the answers of another job.
    with pytest.raises(ConfigError, match=r"engine\.kv_dtype is 'int8', which cannot run on this GPU .*; use auto"):
        make_gpu_engine(spec, double, no_heartbeat)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A10")
    with pytest.raises(ConfigError, match=r"engine\.kv_dtype fp8 cannot run on NVIDIA A10 .*8\.6.*kv_dtype: int8"):
        make_gpu_engine(replace(spec, kv_dtype="fp8"), double, no_heartbeat)


def test_the_trial_of_a_model_sees_that_it_does_not_bear_it(neox_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_model(neox_folder, dtype="float32", device="cpu")
    for kv_dtype in EIGHT_BITS:
        check_model(loaded, prefill_by_sdpa, kv_dtype, use_graphs=False, use_kernels=False)
    monkeypatch.setattr(layer_pages, "quantize", lambda vectors, stored: quantize(vectors.sign(), stored))
    with pytest.raises(Unsupported, match=r"off by .*, with keys and values in int8, where"):
        check_model(loaded, prefill_by_sdpa, "int8", use_graphs=False, use_kernels=False)
