"""int8 for GPUs, as far as a machine without one can tell: the kernels in Triton's interpreter, the layers on the CPU.

That the kernels run on a GPU, and how fast, is for `benchmarks/gpu/main.py --check`.
"""

import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dolly_batch.engine.eight_bits import quantize as quantize_vectors
from dolly_batch.engine.weights import int8_gpu
from dolly_batch.engine.weights.int8_cpu import PLAIN, Int8Linear, quantize
from dolly_batch.engine.weights.int8_gpu import CudaInt8Linear
from dolly_batch.engine.weights.loading import load_model

kernels = pytest.importorskip("dolly_batch.engine.kernels.gpu.int8", reason="triton is not installed")

DEVICE = torch.device("cpu" if kernels.is_interpreted() else "cuda")


def rows_of(num_rows: int, num_features: int) -> Tensor:
    """Rows of different size, with halves that round to even, a row of zeros, and one of the smallest numbers."""
    numbers = torch.Generator().manual_seed(num_rows)
    rows = torch.randn(num_rows, num_features, generator=numbers) * torch.logspace(-3, 3, num_rows)[:, None]
    rows[0, :5] = torch.tensor([127.0, 0.5, 1.5, -2.5, 63.5])
    rows[0, 5:] = 0
    if num_rows > 2:
        rows[1] = 0
        rows[2] = torch.finfo(torch.float32).tiny
    return rows.to(DEVICE)


@pytest.mark.parametrize(("num_rows", "num_features", "width"), [(1, 40, 48), (17, 64, 64), (2, 4_200, 4_208)])
def test_rows_are_quantized_as_on_the_cpu(num_rows: int, num_features: int, width: int) -> None:
    rows = rows_of(num_rows, num_features)
    quantized, scales = kernels.quantize_rows(rows, width)
    expected, expected_scales = quantize_vectors(rows, torch.int8)
    assert torch.equal(scales, expected_scales)
    assert torch.equal(quantized[:, :num_features], expected)
    assert not quantized[:, num_features:].any()
    assert quantized[0, :5].tolist() == [127, 0, 2, -2, 64]


def test_torchs_own_product_never_has_fewer_rows_than_cublas_is_sure_to_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """From 17 rows on torch lets them pass, and on an A100 cuBLAS refused 17 (pytorch #169956)."""
    asked, right = [], torch._int_mm
    monkeypatch.setattr(torch, "_int_mm", lambda rows, weight: asked.append(len(rows)) or right(rows, weight))
    layer = CudaInt8Linear(nn.Linear(64, 32), torch.device("cpu"), torch.float32, torch.float32, None)
    for num_rows in (1, 16, 17, 31, 32, 33):
        assert layer(torch.ones(num_rows, 64)).shape == (num_rows, 32)
    assert min(asked) == 32
    assert asked[-1] == 33


@pytest.mark.parametrize("spoilt", [float("nan"), float("inf")])
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_a_spoilt_row_stays_spoilt_and_alone(spoilt: float) -> None:
    rows = rows_of(20, 64)
    layer = CudaInt8Linear(nn.Linear(64, 32), DEVICE, torch.float32, torch.float32, kernels)
    sound = layer(rows)
    rows[4, 7] = spoilt
    outputs = layer(rows)
    assert not outputs[4].isfinite().any()
    others = [row for row in range(20) if row != 4]
    assert torch.equal(outputs[others], sound[others])


@pytest.mark.parametrize("num_rows", [1, 16, 33, 70, 150])
def test_products_are_exact_at_every_tile(num_rows: int) -> None:
    """Sums of the largest integers are there to the last bit, whatever the tile, at sizes that no tile divides."""
    numbers = torch.Generator().manual_seed(num_rows)
    rows = torch.randint(-127, 128, (num_rows, 144), generator=numbers, dtype=torch.int8)
    weight = torch.randint(-127, 128, (80, 144), generator=numbers, dtype=torch.int8)
    rows[0], weight[:3] = 127, 127
    expected = rows.long() @ weight.long().t()
    ones = torch.ones(max(num_rows, 80), device=DEVICE)
    for num_processors in (1, 10_000):
        tile = kernels.choose_tile(num_rows, 80, num_processors)
        found = kernels.multiply(
            rows.to(DEVICE), ones[:num_rows], weight.to(DEVICE), ones[:80], None, torch.float32, tile
        )
        assert torch.equal(found.long().cpu(), expected)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("num_rows", [3, 40])
def test_layers_give_the_bits_of_the_cpus(num_rows: int, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the fused kernel, by cuBLAS's way and by torch alone; features and outputs that nothing divides."""
    torch.manual_seed(5)
    linear = nn.Linear(100, 72, bias=bias)
    rows = rows_of(num_rows, 100)[None]
    expected = Int8Linear(linear, PLAIN, torch.float32)(rows.cpu())
    for kernels_used in (kernels, None):
        layer = CudaInt8Linear(linear, DEVICE, torch.float32, torch.float32, kernels_used)
        assert torch.equal(layer(rows).cpu(), expected)
    monkeypatch.setattr(int8_gpu, "MAX_FUSED_ROWS", 0)
    if num_rows >= 17:
        layer = CudaInt8Linear(linear, DEVICE, torch.float32, torch.float32, kernels)
        assert torch.equal(layer(rows).cpu(), expected)


def test_bfloat16_layers_round_once() -> None:
    """Outputs are the float32 ones, rounded; Triton's interpreter cuts off where a GPU rounds."""
    linear = nn.Linear(64, 48, dtype=torch.bfloat16)
    rows = rows_of(24, 64).bfloat16()
    exact = Int8Linear(linear, PLAIN, torch.float32)(rows.cpu())
    by_torch = CudaInt8Linear(linear, DEVICE, torch.bfloat16, torch.bfloat16, None)(rows)
    assert torch.equal(by_torch.cpu(), exact.bfloat16())
    fused = CudaInt8Linear(linear, DEVICE, torch.bfloat16, torch.bfloat16, kernels)(rows)
    assert fused.dtype == torch.bfloat16
    torch.testing.assert_close(fused.cpu().float(), exact, rtol=2**-7, atol=0)


def test_a_model_is_packed_on_its_way_as_if_loaded_in_its_dtype(neox_folder: Path) -> None:
    """Weights come in the files' float32; what is packed and what is not must be what a bfloat16 model has."""
    ids = torch.arange(40)[None] * 7
    before = load_model(neox_folder, dtype="bfloat16", device="cpu").model
    quantize(before)
    on_the_way = load_model(neox_folder, dtype="float32", device="cpu").model
    quantize(on_the_way, torch.device("cpu"), torch.bfloat16)
    loaded = load_model(neox_folder, dtype="bfloat16", device="cpu", quantization="int8").model
    with torch.inference_mode():
        expected = before(input_ids=ids, use_cache=False).logits
        assert torch.equal(loaded(input_ids=ids, use_cache=False).logits, expected)
        near = on_the_way(input_ids=ids, use_cache=False).logits
    # The CPU's own layers take the weights as they are, not rounded to bfloat16 first.
    assert (near - expected).abs().mean() < 0.1 * expected.std()
    assert {parameter.dtype for parameter in on_the_way.parameters()} == {torch.bfloat16}
    assert on_the_way.gpt_neox.rotary_emb.inv_freq.dtype == torch.float32


def test_a_weight_is_cast_before_it_is_packed() -> None:
    torch.manual_seed(1)
    linear = nn.Linear(64, 48)
    rows = rows_of(20, 64)
    cast = CudaInt8Linear(linear, DEVICE, torch.bfloat16, torch.float32, None)(rows)
    short = nn.Linear(64, 48, dtype=torch.bfloat16)
    short.load_state_dict(linear.state_dict())
    assert torch.equal(cast, CudaInt8Linear(short, DEVICE, torch.bfloat16, torch.float32, None)(rows))


def test_originals_go_one_by_one(neox_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever kept a list of the layers would hold the whole model in floating point until the last was packed."""
    model = load_model(neox_folder, dtype="float32", device="cpu").model
    alive = weakref.WeakSet(module for module in model.modules() if isinstance(module, nn.Linear))
    num_layers, counts = len(alive), []
    make = Int8Linear.__init__

    def count(self: Int8Linear, linear: nn.Linear, packed: bool, dtype: torch.dtype) -> None:
        counts.append(len(alive))
        make(self, linear, packed, dtype)

    monkeypatch.setattr(Int8Linear, "__init__", count)
    quantize(model)
    assert counts == list(range(num_layers, 0, -1))
