"""int8's smoothing: the same model in floating point, and less lost in int8 where channels differ in size."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dolly_batch.engine.weights.calibration import TEXT, calibration_ids
from dolly_batch.engine.weights.int8_cpu import Int8Linear, quantize
from dolly_batch.engine.weights.loading import LoadedModel, load_model, smoothing_of
from dolly_batch.engine.weights.smoothing import Smoothing, nearest_powers, scale, smooth_layers
from tests.engine.test_llama_family import MODELS
from tests.random_models import write_random_model

CPU = torch.device("cpu")
IDS = torch.arange(3, 93)[None] * 7 % 400


@pytest.fixture(scope="module", params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    architecture, settings = MODELS[request.param]
    return write_random_model(tmp_path_factory.mktemp(architecture), architecture, manifest=True, **settings)


def load(folder: Path, dtype: str = "float32") -> tuple[LoadedModel, Smoothing]:
    """A model with biases and norms that are not all 0 and 1, and how it is smoothed."""
    loaded = load_model(folder, dtype=dtype, device="cpu")
    numbers = torch.Generator().manual_seed(4)
    for name, parameter in loaded.model.named_parameters():
        if parameter.dim() == 1:
            drawn = torch.rand(parameter.shape, generator=numbers) + (0.0 if name.endswith("bias") else 0.5)
            parameter.data = drawn.to(parameter.dtype)
    smoothing = smoothing_of(loaded.folder, loaded.encoder)
    assert smoothing is not None
    return loaded, smoothing


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(input_ids=IDS, use_cache=False).logits[0].float()
    return found


def smooth(loaded: LoadedModel, smoothing: Smoothing, dtype: torch.dtype) -> None:
    for _layer in smooth_layers(loaded.model, smoothing, CPU, dtype):
        pass


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_smoothed_model_is_the_same_to_the_bit(folder: Path, dtype: str) -> None:
    loaded, smoothing = load(folder, dtype)
    before = {name: parameter.data for name, parameter in loaded.model.named_parameters()}
    expected = logits(loaded.model)
    smooth(loaded, smoothing, loaded.dtype)
    assert torch.equal(logits(loaded.model), expected)
    changed = {name for name, parameter in loaded.model.named_parameters() if not torch.equal(parameter, before[name])}
    layer = loaded.folder.architecture.layer.format(1)
    assert all(f"{layer}{channels.source}.weight" in changed for channels in smoothing.channels)
    assert not changed & {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}


def test_any_scales_leave_the_logits_where_they_were(folder: Path) -> None:
    loaded, smoothing = load(folder)
    expected = logits(loaded.model)
    numbers = torch.Generator().manual_seed(6)
    for layer in loaded.model.model.layers:
        for channels in smoothing.channels:
            num_channels = layer.get_submodule(channels.products[0]).in_features
            scale(layer, channels, torch.rand(num_channels, generator=numbers) * 4 + 0.1)
    torch.testing.assert_close(logits(loaded.model), expected, rtol=1e-3, atol=1e-3 * expected.std().item())


def test_layers_are_those_of_a_model_loaded_in_their_dtype(folder: Path) -> None:
    """On the way to a GPU weights come in the files' float32, and are smoothed in what they are to be there."""
    (on_the_way, smoothing), (before, _) = load(folder), load(folder, "bfloat16")
    smooth(on_the_way, smoothing, torch.bfloat16)
    smooth(before, smoothing, torch.bfloat16)
    found, expected = (dict(loaded.model.model.layers.named_parameters()) for loaded in (on_the_way, before))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def with_large_channels(folder: Path) -> tuple[LoadedModel, Smoothing]:
    """The same function of its inputs, with every eleventh channel a hundred times as large."""
    loaded, smoothing = load(folder)
    for layer in loaded.model.model.layers:
        for channels in smoothing.channels:
            scales = torch.ones(layer.get_submodule(channels.products[0]).in_features)
            scales[::11] = 0.01
            scale(layer, channels, scales)
    return loaded, smoothing


def test_large_channels_cost_int8_little(folder: Path) -> None:
    loaded, smoothing = with_large_channels(folder)
    expected = logits(loaded.model).log_softmax(dim=-1)
    costs = []
    for given in (None, smoothing):
        loaded, _ = with_large_channels(folder)
        quantize(loaded.model, smoothing=given)
        found = logits(loaded.model).log_softmax(dim=-1)
        costs.append((expected.exp() * (expected - found)).sum(dim=-1).mean().item())
    print(f"KL {costs[0]:.1e}, smoothed {costs[1]:.1e}")
    assert costs[1] < costs[0] / 4


def test_loading_into_int8_smooths_the_same_way_each_time(folder: Path) -> None:
    first, second = (load_model(folder, dtype="bfloat16", device="cpu", quantization="int8") for _ in range(2))
    assert torch.equal(logits(first.model), logits(second.model))
    by_hand, plain = (load_model(folder, dtype="bfloat16", device="cpu") for _ in range(2))
    quantize(by_hand.model, smoothing=smoothing_of(by_hand.folder, by_hand.encoder))
    assert torch.equal(logits(by_hand.model), logits(first.model))
    quantize(plain.model)
    assert not torch.equal(logits(plain.model), logits(first.model))


def test_layers_go_one_by_one(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a layer is packed, those before it are so already, and those behind it still lie in the files."""
    loaded = load_model(llama_folder, dtype="float32", device="cpu")
    alive = weakref.WeakSet(module for module in loaded.model.modules() if isinstance(module, nn.Linear))
    files = {name: parameter.data_ptr() for name, parameter in loaded.model.named_parameters()}
    last, num_linear, counts = "model.layers.1.mlp.up_proj.weight", len(alive), []
    make = Int8Linear.__init__

    def count(self: Int8Linear, linear: nn.Linear, *others: Any) -> None:
        counts.append(len(alive))
        if len(counts) <= 4:  # the first of two layers
            assert loaded.model.get_parameter(last).data_ptr() == files[last]
        make(self, linear, *others)

    monkeypatch.setattr(Int8Linear, "__init__", count)
    quantize(loaded.model, smoothing=smoothing_of(loaded.folder, loaded.encoder))
    # Of each layer three that are joined, two that are, and two others; then the output layer.
    assert counts == [15, 12, 10, 9, 8, 5, 3, 2, 1]
    assert num_linear == counts[0]


def test_other_architectures_are_left_as_they_are(neox_folder: Path, gptj_folder: Path) -> None:
    for folder in (neox_folder, gptj_folder):
        loaded = load_model(folder, dtype="float32", device="cpu")
        assert smoothing_of(loaded.folder, loaded.encoder) is None


def test_the_text_is_the_same_for_any_window(llama_folder: Path) -> None:
    loaded = load_model(llama_folder, dtype="float32", device="cpu")
    smoothing = smoothing_of(loaded.folder, loaded.encoder)
    narrow = load_model(llama_folder, dtype="float32", device="cpu", max_positions=64)
    assert smoothing == smoothing_of(narrow.folder, narrow.encoder)
    ids = calibration_ids(loaded.encoder)
    assert smoothing is not None
    assert smoothing.token_ids == ids
    assert len(ids) == 512
    assert TEXT.startswith(loaded.encoder.decode(ids[:20]))


def test_scales_are_the_nearest_powers_of_two() -> None:
    numbers = torch.Generator().manual_seed(2)
    ratios = torch.exp2(torch.rand(5_000, generator=numbers, dtype=torch.float64) * 28 - 14).float()
    exponents = nearest_powers(ratios).log2()
    assert torch.equal(exponents, exponents.round())
    assert ((ratios.log2() / 2 - exponents).abs() <= 0.5 + 1e-6).all()
    below_and_above = torch.tensor([0.5, 0.4999, 1.9999, 2.0, 8.0])
    assert nearest_powers(below_and_above).tolist() == [1, 0.5, 1, 2, 4]
    # Silent in the text; without weights; neither; broken.
    odd = torch.tensor([0.0, float("inf"), float("nan"), 1e-30])
    assert nearest_powers(odd).tolist() == [1, 256, 1, 1 / 256]
