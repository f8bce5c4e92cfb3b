"""int8: weights with a scale per output channel, activations with a scale per row, integer products.

The sums are integers, so they are exact in any order: no neighbour and no number of rows can change an answer. Where
oneDNN has a kernel of its own for packed weights it is used on CPUs, after a trial against torch's own product; GPUs
have layers of their own (`int8_cuda.py`).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dolly_batch.engine.int8_cuda import CudaInt8Linear, load_kernels
from dolly_batch.errors import ConfigError

_ZERO_POINT = 128  # oneDNN's fast kernels take unsigned activations
_SMALLEST = 1e-30


class Int8Linear(nn.Module):
    """A linear layer in int8: [..., features] to [..., features], into float32 where `dtype` says so."""

    def __init__(self, linear: nn.Linear, packed: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype
        weight = linear.weight.detach().float()
        scales = weight.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        self.out_features, self.in_features = weight.shape
        self.bias = None if linear.bias is None else linear.bias.detach().float()
        weight = (weight / scales[:, None]).round_().to(torch.int8)
        self._scales = scales
        self._product = _packed_product(weight, scales) if packed else _plain_product(weight, scales)

    def forward(self, inputs: Tensor) -> Tensor:
        """Quantize each row, multiply, scale back."""
        rows = inputs.reshape(-1, self.in_features).float()
        # Several times faster than a norm, or than the maximum of absolute values in bfloat16.
        largest = torch.maximum(rows.amax(dim=-1, keepdim=True), -rows.amin(dim=-1, keepdim=True))
        scales = largest.clamp_(min=_SMALLEST) / 127
        quantized = (rows / scales).round_().add_(_ZERO_POINT).to(torch.uint8)
        outputs = self._product(quantized).mul_(scales)
        if self.bias is not None:
            outputs += self.bias
        return outputs.to(self._dtype).view(*inputs.shape[:-1], self.out_features)


def quantize(model: nn.Module, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
    """Put every linear layer of a model into int8, in place; each layer's original is released as soon as it is packed.

    For a model on its way to a GPU: `device` is the GPU, `dtype` what the model is to be in there. Layer by layer
    goes over in int8, the rest in `dtype`, so that the GPU never holds more than the int8 model and a block of one
    weight. None leaves the model where and as it is. Layers that are in int8 stay as they are.
    Raises ConfigError where the CPU or the GPU has no integer products.
    """
    device = device or next(model.parameters()).device
    dtype = dtype or next(model.parameters()).dtype
    make = _cuda_layers(device, dtype) if device.type == "cuda" else _cpu_layers()
    for module in [module for module in model.modules() if not isinstance(module, nn.Linear)]:
        for name in [name for name, child in module.named_children() if isinstance(child, nn.Linear)]:
            # Logits stay as exact as they come.
            output_dtype = torch.float32 if name == "lm_head" else dtype
            setattr(module, name, make(getattr(module, name), output_dtype))
    for parameter in model.parameters():
        parameter.data = parameter.data.to(device=device, dtype=dtype)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))  # in their own dtype: rotary tables are not rounded


def _cuda_layers(device: torch.device, dtype: torch.dtype) -> Callable[[nn.Linear, torch.dtype], nn.Module]:
    kernels = load_kernels(device)
    return lambda linear, output_dtype: CudaInt8Linear(linear, device, dtype, output_dtype, kernels)


def _cpu_layers() -> Callable[[nn.Linear, torch.dtype], nn.Module]:
    packed = _is_exact(_packed_product)
    if not packed and not _is_exact(_plain_product):
        raise ConfigError("model.quantization is 'int8', but this CPU's build of torch has no exact integer products")
    return lambda linear, output_dtype: Int8Linear(linear, packed, output_dtype)


def _packed_product(weight: Tensor, scales: Tensor) -> Callable[[Tensor], Tensor]:
    """[rows, in] uint8 -> [rows, out] float32, each output times its scale; weights in oneDNN's own layout."""
    onednn: Any = torch.ops.onednn
    packed = onednn.qlinear_prepack(weight, None)
    zero_points = torch.zeros(len(scales), dtype=torch.int64)

    def multiply(rows: Tensor) -> Tensor:
        return onednn.qlinear_pointwise(  # type: ignore[no-any-return]
            rows, 1.0, _ZERO_POINT, packed, scales, zero_points, None, 1.0, 0, torch.float32, "none", [], ""
        )

    return multiply


def _plain_product(weight: Tensor, scales: Tensor) -> Callable[[Tensor], Tensor]:
    """The same by torch's own integer product."""
    transposed = weight.t()

    def multiply(rows: Tensor) -> Tensor:
        signed = (rows.to(torch.int16) - _ZERO_POINT).to(torch.int8)
        return torch._int_mm(signed, transposed).float().mul_(scales)

    return multiply


def _is_exact(product: Callable[[Tensor, Tensor], Callable[[Tensor], Tensor]]) -> bool:
    """Whether a product is there and keeps its largest sums: CPUs without VNNI may saturate pairs of products."""
    numbers = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (64, 256), generator=numbers, dtype=torch.int8)
    rows = torch.randint(1, 256, (16, 256), generator=numbers, dtype=torch.uint8)
    weight[:8], rows[:4] = 127, 255
    expected = (rows.long() - _ZERO_POINT) @ weight.long().t()
    try:
        found = product(weight, torch.ones(64))(rows)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return torch.equal(found.long(), expected)
