"""What runs between a layer's products on a GPU: kernels against float64, and whole models against transformers'.

On a GPU where there is one, else in Triton's interpreter.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from dolly_batch.engine.continuous.cache import CacheShape
from dolly_batch.engine.continuous.gpu import layer_checks, self_test
from dolly_batch.engine.continuous.gpu.attention import prefill_by_sdpa
from dolly_batch.engine.continuous.gpu.engine import GpuEngine
from dolly_batch.engine.continuous.gpu.layer_checks import check_gate, check_norms, check_rotation, check_storage
from dolly_batch.engine.continuous.gpu.pages import Pages
from dolly_batch.engine.continuous.gpu.self_test import Unsupported, check_layers, check_model
from dolly_batch.engine.continuous.sequence import Step
from dolly_batch.engine.kernels.gpu import Rotation, keys_values, norms
from dolly_batch.engine.plain.engine import PlainEngine
from dolly_batch.engine.weights.loading import LoadedModel, load_model
from dolly_batch.records import GenerationParams, Request
from tests.engine.engines import answer, randomize_vectors
from tests.engine.test_kernels_gpu import DEVICE, NeverAsked, shape
from tests.random_models import write_random_model

pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
# Head size, numbers that are rotated, heads of keys, query heads for each, whether heads have norms.
HEADS = {
    "gpt_neox, 12b and 7b": (128, 32, 2, 1, False),
    "gpt_neox, 3b": (80, 20, 2, 1, False),
    "llama": (64, 64, 2, 3, False),
    "qwen3": (48, 48, 1, 2, True),
}
QUICK = {("gpt_neox, 12b and 7b", "auto"), ("gpt_neox, 3b", "int8"), ("llama", "fp8"), ("qwen3", "auto")}


@pytest.mark.parametrize(
    ("family", "kv_dtype"),
    [
        pytest.param(family, kv_dtype, marks=[] if (family, kv_dtype) in QUICK else pytest.mark.chaos)
        for family in HEADS
        for kv_dtype in ("auto", "int8", "fp8")
    ],
)
def test_heads_are_split_rotated_and_stored_as_in_float64(family: str, kv_dtype: str) -> None:
    head_size, num_rotated, num_heads, group, has_norms = HEADS[family]
    dtype = torch.float32 if family == "qwen3" else torch.bfloat16
    sizes = shape(head_size, dtype, num_heads, group, kv_dtype)
    check_rotation(sizes, num_rotated, has_norms=has_norms)
    check_storage(sizes)


def test_more_heads_than_a_program_takes() -> None:
    check_rotation(shape(16, torch.float32, num_heads=17, group=2), 8, has_norms=False)


@pytest.mark.parametrize("fault", ["the other half", "another head's norm", "another place"])
def test_the_trial_sees_a_fault_of_the_rotation(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = keys_values.store

    def wrong(query, key, value, pages, scales, places, rotation, *rest):  # type: ignore[no-untyped-def]
        if fault == "the other half":
            rotation = Rotation(rotation.cosines, -rotation.sines, rotation.norms, rotation.epsilon)
        elif fault == "another head's norm":
            rotation = Rotation(rotation.cosines, rotation.sines, rotation.norms[::-1], rotation.epsilon)
        else:
            places = places + 1
        return right(query, key, value, pages, scales, places, rotation, *rest)

    monkeypatch.setattr(keys_values, "store", wrong)
    with pytest.raises(Unsupported, match=r"off by .* in (queries|what is stored)"):
        check_rotation(shape(48, torch.bfloat16), 16, has_norms=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("centers", [True, False])
def test_sums_are_normalized_as_in_float64(dtype: torch.dtype, centers: bool) -> None:
    check_norms(80, dtype, DEVICE, centers=centers)
    check_norms(2560, dtype, DEVICE, centers=centers)


def test_numbers_are_gated_as_in_float64() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        check_gate(1_100, dtype, DEVICE)


def test_the_trial_sees_the_norm_of_another_row(monkeypatch: pytest.MonkeyPatch) -> None:
    right = norms.add_norms

    def wrong(stream, added, used):  # type: ignore[no-untyped-def]
        summed, found = right(stream, added, used)
        return summed, [each.flip(0) for each in found]

    monkeypatch.setattr(norms, "add_norms", wrong)
    with pytest.raises(Unsupported, match=r"off by .* in a norm of 1"):
        check_norms(80, torch.float32, DEVICE, centers=True)


class Launching(GpuEngine):
    """Launches its steps under a guard against waiting for the device."""

    def _launch(self, step: Step):  # type: ignore[no-untyped-def]
        with NeverAsked():
            return super()._launch(step)


IN_TURN = {"use_parallel_residual": False, "rotary_pct": 1.0}
MODELS = [
    pytest.param("gpt_neox", {}, id="gpt_neox"),
    pytest.param(
        "gpt_neox", {"use_parallel_residual": False, "rotary_pct": 1.0}, id="in turn", marks=pytest.mark.chaos
    ),
    pytest.param("llama", {}, id="llama", marks=pytest.mark.chaos),
    pytest.param("qwen3", {}, id="qwen3", marks=pytest.mark.chaos),
]


def model_of(folder: Path, family: str, settings: dict[str, object]) -> LoadedModel:
    write_random_model(folder, family, manifest=True, **settings)  # type: ignore[arg-type]
    loaded = load_model(folder, dtype="float32", device=str(DEVICE))
    randomize_vectors(loaded.model)
    return loaded


@pytest.mark.parametrize(("family", "settings"), MODELS)
def test_fused_layers_answer_as_transformers(tmp_path: Path, family: str, settings: dict[str, object]) -> None:
    """Prompts that share a start, decoding rows beside them, heads that share keys."""
    loaded = model_of(tmp_path, family, settings)
    pages = Pages(CacheShape.of(loaded), 2**20, max_sequences=4, max_positions=2048, use_kernel=True)
    params = GenerationParams(3, do_sample=False)
    rows = [Request(str(row), (*(5, 6, 7) * 6, row + 9), params) for row in range(3)]
    engine = Launching(loaded, pages, max_sequences=4, use_kernels=True, is_fused=True)
    assert answer(engine, rows) == answer(PlainEngine(loaded), rows)
    assert engine.stats()["num_shared_tokens"] > 0


@pytest.mark.chaos
@pytest.mark.parametrize(("family", "settings"), MODELS)
def test_the_trial_of_a_model_passes(tmp_path: Path, family: str, settings: dict[str, object]) -> None:
    loaded = model_of(tmp_path, family, settings)
    check_layers(loaded, CacheShape.of(loaded))
    check_model(loaded, prefill_by_sdpa, use_graphs=False, is_fused=True)


def test_where_fused_layers_fail_their_trial_modules_run(neox_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_model(neox_folder, dtype="float32", device=str(DEVICE))

    def skipped(*given: object, **named: object) -> None:
        pass

    tried: list[bool] = []

    def model(*given: object, is_fused: bool = False, **named: object) -> None:
        tried.append(is_fused)

    for name in ("check_decode", "check_copies", "check_storage", "check_choice", "check_prefill"):
        monkeypatch.setattr(self_test, name, skipped)
    monkeypatch.setattr(self_test, "check_model", model)
    backend = self_test.choose_backend(loaded)
    assert backend.is_fused
    assert backend.why_not_fused is None
    right: Callable[..., object] = layer_checks.rotate
    monkeypatch.setattr(layer_checks, "rotate", lambda vectors, *given: right(vectors.flip(0), *given))
    backend = self_test.choose_backend(loaded)
    assert backend.use_kernels
    assert not backend.is_fused
    assert str(backend.why_not_fused).startswith("a layer's kernels: off by")
    assert tried == [True, False]
