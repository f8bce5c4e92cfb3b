"""int8 linear layers on a GPU: the arithmetic of `int8_cpu.Int8Linear`, on tensor cores.

Few rows (decoding) are limited by reading the weights: one Triton kernel multiplies, scales and adds the bias, so that
nothing but weights, rows and outputs moves. Many rows (prompts) are cuBLAS's, through `torch._int_mm`, and scaled by a
second kernel. GPUs that Triton does not build for (compute capability 7.5) do the rest with torch's own operations.
"""

import importlib.util
from types import ModuleType

import torch
from torch import Tensor, nn

from dolly_batch.engine.eight_bits import quantize
from dolly_batch.errors import ConfigError
from dolly_batch.models.sizing import INT8_FROM, lacks_int8

MAX_FUSED_ROWS = 512  # not measured yet: `benchmarks/gpu.py --products` times both products at both sides of it
_TRITON_FROM = (8, 0)
_ALIGNED = 16  # cuBLAS takes multiples of 8, and is at its best from 16 bytes on
_MIN_ROWS = 32  # of `torch._int_mm`: from 17 on it takes them, and some GPUs' cuBLAS then refuses (pytorch #169956)
_BLOCK_ITEMS = 2**22  # of a weight that are on the GPU in floating point at once


class EightBitLinear(nn.Module):
    """What linear layers in 8 bits on a GPU have in common: the weight, its scales and its bias.

    The weight is cast to `cast_to` first, as if the model had been loaded in it, and moved over in blocks of rows.
    """

    def __init__(
        self, linear: nn.Linear, device: torch.device, cast_to: torch.dtype, kind: torch.dtype, bias_dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = linear.weight.shape
        self._weight, self._scales = quantize_weight(linear.weight.detach(), device, cast_to, kind)
        self._bias = None
        if linear.bias is not None:
            bias = linear.bias.detach().to(device=device, dtype=cast_to).to(bias_dtype)
            self._bias = nn.functional.pad(bias, (0, len(self._scales) - len(bias)))

    @property
    def num_bytes(self) -> int:
        """Bytes of the weight, its scales and its bias."""
        return self._weight.nbytes + self._scales.nbytes + (0 if self._bias is None else self._bias.nbytes)


class CudaInt8Linear(EightBitLinear):
    """A linear layer in int8 on `device`: [..., features] to [..., features], into `dtype`.

    `kernels` are those of `kernels/int8.py`, None for torch's own operations.
    """

    def __init__(
        self,
        linear: nn.Linear,
        device: torch.device,
        cast_to: torch.dtype,
        dtype: torch.dtype,
        kernels: ModuleType | None,
    ) -> None:
        super().__init__(linear, device, cast_to, torch.int8, torch.float32)
        self._dtype = dtype
        self._kernels = kernels

    def forward(self, inputs: Tensor) -> Tensor:
        """Quantize each row, multiply, scale back."""
        rows = inputs.reshape(-1, self.in_features)
        outputs = self._by_torch(rows) if self._kernels is None else self._by_kernels(rows, self._kernels)
        return outputs[:, : self.out_features].view(*inputs.shape[:-1], self.out_features)

    def _by_kernels(self, rows: Tensor, kernels: ModuleType) -> Tensor:
        quantized, scales = kernels.quantize_rows(rows, self._weight.shape[1])
        if len(rows) <= MAX_FUSED_ROWS:
            fused: Tensor = kernels.multiply(quantized, scales, self._weight, self._scales, self._bias, self._dtype)
            return fused
        sums = torch._int_mm(quantized, self._weight.t())
        scaled: Tensor = kernels.scale_sums(sums, scales, self._scales, self._bias, self._dtype)
        return scaled

    def _by_torch(self, rows: Tensor) -> Tensor:
        quantized, scales = quantize(rows, torch.int8)
        num_padding = max(0, _MIN_ROWS - len(rows))
        padded = nn.functional.pad(quantized, (0, self._weight.shape[1] - self.in_features, 0, num_padding))
        outputs = torch._int_mm(padded, self._weight.t())[: len(rows)].float().mul_(self._scales).mul_(scales[:, None])
        if self._bias is not None:
            outputs += self._bias
        return outputs.to(self._dtype)


def load_kernels(device: torch.device) -> ModuleType | None:
    """The Triton kernels, None where they cannot run. Raises ConfigError for a GPU without integer products."""
    capability = torch.cuda.get_device_capability(device)
    if capability < INT8_FROM:
        raise ConfigError(lacks_int8(torch.cuda.get_device_name(device), capability))
    if capability < _TRITON_FROM or importlib.util.find_spec("triton") is None:
        return None
    from dolly_batch.engine.kernels.gpu import int8

    return int8


def quantize_weight(
    weight: Tensor, device: torch.device, cast_to: torch.dtype, stored: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return `stored` [out, in] of 8 bits and float32 scales [out] on the device, both sizes padded with zeros."""
    num_outputs, num_inputs = weight.shape
    height, width = (-(-size // _ALIGNED) * _ALIGNED for size in weight.shape)
    quantized = torch.zeros(height, width, dtype=stored, device=device)
    scales = torch.zeros(height, dtype=torch.float32, device=device)
    num_rows = max(1, _BLOCK_ITEMS // num_inputs)
    for start in range(0, num_outputs, num_rows):
        rows = slice(start, min(start + num_rows, num_outputs))
        quantized[rows, :num_inputs], scales[rows] = quantize(weight[rows].to(device=device, dtype=cast_to), stored)
    return quantized, scales
