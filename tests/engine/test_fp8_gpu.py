"""fp8 for GPUs, as far as a CPU can tell: torch's product, rows in Triton's interpreter, a launch on fake tensors."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dolly_batch.engine.eight_bits import quantize, restore
from dolly_batch.engine.load import choose_engine
from dolly_batch.engine.plain.engine import PlainEngine
from dolly_batch.engine.weights import fp8_gpu, int8_cpu, int8_gpu
from dolly_batch.engine.weights.fp8_gpu import FP8, CudaFp8Linear
from dolly_batch.engine.weights.loading import load_model
from dolly_batch.errors import ConfigError
from dolly_batch.models.architectures import ARCHITECTURES
from dolly_batch.models.folder import read_config
from dolly_batch.models.sizing import Gpu, num_weight_bytes, why_not_fits
from dolly_batch.records import EngineSpec
from tests.engine.engines import answer, continuous_engine
from tests.engine.questions import dolly, mixed_requests

kernels = pytest.importorskip("dolly_batch.engine.kernels.gpu.int8", reason="triton is not installed")
TORCHS_OWN = torch._scaled_mm
DEVICE = torch.device("cpu" if kernels.is_interpreted() else "cuda")


@pytest.fixture(autouse=True)
def product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch has no such product on a CPU, what it says it does."""
    one = torch.ones((16, 16), dtype=FP8)
    try:
        torch._scaled_mm(one, one.t(), scale_a=torch.ones(16, 1), scale_b=torch.ones(1, 16), out_dtype=torch.bfloat16)
    except (RuntimeError, NotImplementedError, ValueError):
        monkeypatch.setattr(torch, "_scaled_mm", scaled_mm)


def scaled_mm(
    rows: Tensor, weight: Tensor, *, scale_a: Tensor, scale_b: Tensor, bias: Tensor | None, out_dtype: torch.dtype
) -> Tensor:
    sums = rows.double() @ weight.double() * scale_a * scale_b
    return (sums if bias is None else sums + bias.double()).to(out_dtype)


def rows_of(num_rows: int, num_features: int) -> Tensor:
    """Rows of very different size, one of zeros."""
    rows = torch.randn(num_rows, num_features, generator=torch.Generator().manual_seed(num_rows))
    rows *= torch.logspace(-6, 6, num_rows)[:, None]
    rows[0] = 0
    return rows.to(DEVICE)


@pytest.mark.parametrize(("num_rows", "num_features", "width"), [(1, 40, 48), (17, 64, 64), (2, 4_200, 4_208)])
def test_rows_are_quantized_as_by_torch(num_rows: int, num_features: int, width: int) -> None:
    rows = rows_of(num_rows, num_features)
    found, scales = kernels.quantize_rows(rows, width, FP8)
    expected, expected_scales = quantize(rows, FP8)
    assert torch.equal(scales, expected_scales)
    assert torch.equal(found[:, :num_features].float(), expected.float())
    assert not found[:, num_features:].float().any()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_layers_multiply_what_was_rounded_and_round_once(bias: bool, dtype: torch.dtype) -> None:
    """Features and outputs that nothing divides; with the kernel and by torch's own operations the same bits."""
    torch.manual_seed(5)
    linear, rows = nn.Linear(100, 72, bias=bias, dtype=dtype), rows_of(9, 100).to(dtype)
    weight, inputs = (restore(*quantize(vectors, FP8), torch.float64) for vectors in (linear.weight.detach(), rows))
    exact = inputs @ weight.t() + (0 if linear.bias is None else linear.bias.detach().double())
    found = [CudaFp8Linear(linear, DEVICE, dtype, each)(rows[None])[0] for each in (kernels, None)]
    assert found[0].dtype == dtype
    assert torch.equal(*found)
    distances = (found[0].double() - exact).norm(dim=1) / exact.norm(dim=1).clamp(min=1e-30)
    print(f"at most {distances.max().item():.1e} from the product of the rounded numbers in float64")
    assert distances.max() < 2**-8  # of bfloat16
    plain = nn.functional.linear(rows, linear.weight, linear.bias).double()
    distance = ((found[0].double() - plain).norm() / plain.norm()).item()
    print(f"{distance:.1e} from the layer in {dtype}")
    assert 0.005 < distance < 0.06


@pytest.mark.parametrize("spoilt", [float("nan"), float("inf")])
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_a_spoilt_row_stays_spoilt_and_alone(spoilt: float) -> None:
    rows = rows_of(20, 64)
    for each in (kernels, None):
        layer = CudaFp8Linear(nn.Linear(64, 32), DEVICE, torch.float32, each)
        sound = layer(rows)
        broken = rows.clone()
        broken[4, 7] = spoilt
        outputs = layer(broken)
        assert not outputs[4].isfinite().any()
        others = [row for row in range(20) if row != 4]
        assert torch.equal(outputs[others], sound[others])


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


class Kernel:
    """Stands for the kernel of rows."""

    @staticmethod
    def quantize_rows(rows: Tensor, width: int, stored: torch.dtype) -> tuple[Tensor, Tensor]:
        return rows.new_empty((len(rows), width), dtype=stored), rows.new_empty(len(rows), dtype=torch.float32)


def test_a_layer_launches_its_kernel_and_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """On fake CUDA tensors, where torch refuses what crosses devices, or is read by the host."""
    monkeypatch.setattr(torch, "_scaled_mm", TORCHS_OWN)
    monkeypatch.setattr(int8_gpu, "quantize_weight", lambda weight, *_: (weight.to(FP8), weight.float().amax(dim=1)))
    with FakeTensorMode(), torch.device("cuda"), torch.no_grad():
        linear = nn.Linear(160, 480, dtype=torch.bfloat16)
        rows = torch.empty(7, 160, dtype=torch.bfloat16)
        layer = CudaFp8Linear(linear, torch.device("cuda"), torch.bfloat16, Kernel)  # type: ignore[arg-type]
        with Operations() as operations:
            outputs = layer(rows[None])
    assert outputs.shape == (1, 7, 480)
    assert outputs.dtype == torch.bfloat16
    free = {"view", "_unsafe_view", "t", "unsqueeze", "slice", "transpose", "new_empty", "alias", "device"}
    assert [name for name in operations.names if name not in free] == ["_scaled_mm"]


def test_a_model_in_fp8_answers_alike_on_both_engines(neox_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All linear layers but the last are put into fp8 on their way; on the CPU here, in place of a GPU."""
    loaded = load_model(neox_folder, dtype="float32", device="cpu")
    monkeypatch.setattr(fp8_gpu, "load_kernels", lambda device: None)
    int8_cpu.quantize(loaded.model, quantization="fp8")
    assert sum(isinstance(module, CudaFp8Linear) for module in loaded.model.modules()) == 2 * 4
    assert type(loaded.model.get_output_embeddings()) is nn.Linear
    rows = mixed_requests(dolly(loaded), 4)
    found, expected = answer(continuous_engine(loaded), rows), answer(PlainEngine(loaded), rows)
    assert sum(found[key] == expected[key] for key in found) >= 3  # but for a near tie


def test_a_torch_without_the_product_or_with_a_wrong_one_is_refused_at_load(monkeypatch: pytest.MonkeyPatch) -> None:
    fp8_gpu.try_product(DEVICE)
    right = torch._scaled_mm
    monkeypatch.setattr(torch, "_scaled_mm", lambda *given, **settings: right(*given, **settings).roll(1, dims=0))
    with pytest.raises(ConfigError, match=r"multiplies wrongly; use model\.quantization: int8"):
        fp8_gpu.try_product(DEVICE)

    def missing(*given: object, **settings: object) -> Tensor:
        raise RuntimeError("Rowwise scaling is not currently supported on your device\nmore")

    monkeypatch.setattr(torch, "_scaled_mm", missing)
    with pytest.raises(ConfigError, match=r"has no such product \(Rowwise scaling .* device\); use"):
        fp8_gpu.try_product(DEVICE)


def test_what_has_no_fp8_is_refused_by_name(neox_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, neox = EngineSpec("auto", "", quantization="fp8"), ARCHITECTURES["gpt_neox"]
    assert choose_engine(spec, neox, "cuda") == "fast"
    for refused, architecture, why in (
        (spec, neox, "a CPU cannot have; use int8 or none"),
        (replace(spec, kind="fast"), neox, "which is for GPUs; use int8 or none"),
    ):
        with pytest.raises(ConfigError, match=why):
            choose_engine(refused, architecture, "cpu")
    with pytest.raises(ConfigError, match="'fp8', which a GPT-J model cannot have"):
        choose_engine(spec, ARCHITECTURES["gptj"], "cuda")
    config, a10 = read_config(neox_folder), Gpu("NVIDIA A10", 24 << 30, (8, 6))
    message = str(why_not_fits([a10], config, "auto", "fp8"))
    assert message == (
        "model.quantization fp8 cannot run on NVIDIA A10 (compute capability 8.6; fp8 needs 8.9); "
        "use model.quantization: int8"
    )
    assert why_not_fits([replace(a10, capability=(8, 9))], config, "auto", "fp8") is None
    output_layer = config.vocab_size * config.hidden_size  # stays in two bytes
    assert num_weight_bytes(config, 2, "fp8") == num_weight_bytes(config, 2, "int8") + output_layer
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A10")
    with pytest.raises(ConfigError, match=r"model\.quantization fp8 cannot run on NVIDIA A10"):
        fp8_gpu.load_kernels(torch.device("cuda"))
