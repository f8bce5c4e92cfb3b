"""fp8 linear layers on a GPU (Ada, Hopper and newer): e4m3 numbers, a scale for each output and each row.

cuBLAS or CUTLASS multiplies (`torch._scaled_mm`), scales and adds the bias in one launch, into bfloat16, which is all
that it has for scales by row. Rows are quantized by a Triton kernel, or by torch's operations where there is no triton.
"""

import importlib.util
from types import ModuleType

import torch
from torch import Tensor, nn

from dolly_batch.engine.eight_bits import quantize, restore
from dolly_batch.engine.weights.int8_gpu import EightBitLinear
from dolly_batch.errors import ConfigError
from dolly_batch.models.sizing import FP8_FROM, lacks_fp8

FP8 = torch.float8_e4m3fn


class CudaFp8Linear(EightBitLinear):
    """A linear layer in fp8 on `device`: [..., features] to [..., features] in `dtype`, of the precision of bfloat16.

    `kernels` are those of `kernels/gpu/int8.py`, None for torch's own operations.
    """

    def __init__(self, linear: nn.Linear, device: torch.device, dtype: torch.dtype, kernels: ModuleType | None) -> None:
        super().__init__(linear, device, dtype, FP8, torch.bfloat16)
        self._dtype = dtype
        self._kernels = kernels

    def forward(self, inputs: Tensor) -> Tensor:
        """Quantize each row, multiply, scale back."""
        rows = inputs.reshape(-1, self.in_features)
        width = self._weight.shape[1]
        if self._kernels is None:
            quantized, scales = quantize(nn.functional.pad(rows, (0, width - self.in_features)), FP8)
        else:
            quantized, scales = self._kernels.quantize_rows(rows, width, FP8)
        outputs = multiply(quantized, scales, self._weight, self._scales, self._bias)
        outputs = outputs[:, : self.out_features].to(self._dtype)
        return outputs.view(*inputs.shape[:-1], self.out_features)


def load_kernels(device: torch.device) -> ModuleType | None:
    """The Triton kernels, None where there is no triton.

    Raises ConfigError for a GPU that has no products in fp8, or a torch that has none for it.
    """
    capability = torch.cuda.get_device_capability(device)
    if capability < FP8_FROM:
        raise ConfigError(lacks_fp8("model.quantization", torch.cuda.get_device_name(device), capability))
    try_product(device)
    if importlib.util.find_spec("triton") is None:
        return None
    from dolly_batch.engine.kernels.gpu import int8

    return int8


def try_product(device: torch.device) -> None:
    """Raise ConfigError where torch's product is not there, or not right."""
    numbers = torch.Generator(device).manual_seed(1)
    rows, weight = (torch.randn(size, 64, generator=numbers, device=device) for size in (17, 48))
    (ours, scales), (theirs, outputs) = quantize(rows, FP8), quantize(weight, FP8)
    bias = torch.ones(48, dtype=torch.bfloat16, device=device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"
    why = f"model.quantization fp8: torch {torch.__version__} on {name}"
    try:
        found = multiply(ours, scales, theirs, outputs, bias)
    except (RuntimeError, ValueError) as error:
        text = str(error).partition("\n")[0][:200]
        raise ConfigError(f"{why} has no such product ({text}); use model.quantization: int8") from error
    expected = restore(ours, scales, torch.float64) @ restore(theirs, outputs, torch.float64).t() + 1
    if not (found.double() - expected).norm() < 1e-2 * expected.norm():  # a NaN is not
        raise ConfigError(f"{why} multiplies wrongly; use model.quantization: int8")


def multiply(rows: Tensor, row_scales: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply fp8 [rows, in] by fp8 [out, in] into bfloat16 [rows, out], scaled and with the bias (bfloat16) added."""
    scale_a, scale_b = row_scales[:, None], weight_scales[None]
    return torch._scaled_mm(rows, weight.t(), scale_a=scale_a, scale_b=scale_b, bias=bias, out_dtype=torch.bfloat16)
