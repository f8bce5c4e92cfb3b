"""int8: weights with a scale per output channel, activations with a scale per row, integer products.

The sums are integers, so they are exact in any order, and an answer does not depend on its batch. On CPUs a kernel for
AMX multiplies packed weights, or oneDNN, where a self test finds it exact; for GPUs see `int8_gpu.py`.

CPUs without VNNI (before Intel's Cascade Lake and AMD's Zen 4) add pairs of products in 16 bits, where two of 255 x 127
saturate. There weights have 7 bits: two of 255 x 64 fit.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dolly_batch.engine.kernels.cpu.compiled import RowKernels, as_array, find_row_kernels, find_tile_multiply
from dolly_batch.engine.weights import fp8_gpu
from dolly_batch.engine.weights.fp8_gpu import CudaFp8Linear
from dolly_batch.engine.weights.int8_gpu import CudaInt8Linear, load_kernels
from dolly_batch.engine.weights.smoothing import Smoothing, smooth_layers
from dolly_batch.errors import ConfigError

ZERO_POINT = 128  # oneDNN's fast kernels take unsigned activations
SMALLEST = 1e-30

Multiply = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Int8Product:
    """A way to multiply: `make(weight, scales)`, exact for weights up to `max_weight`."""

    make: Callable[[Tensor, Tensor], Multiply]
    max_weight: int


class Int8Linear(nn.Module):
    """A linear layer in int8: [..., features] to [..., features], into float32 where `dtype` says so."""

    def __init__(self, linear: nn.Linear, product: Int8Product, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype
        weight = linear.weight.detach().float()
        scales = weight.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / product.max_weight
        self.out_features, self.in_features = weight.shape
        self.bias = None if linear.bias is None else linear.bias.detach().to(torch.float32, copy=True)
        weight = (weight / scales[:, None]).round_().to(torch.int8)
        self._scales = scales
        self.bias_array = np.zeros(self.out_features, np.float32) if self.bias is None else self.bias.numpy()
        self._product = product.make(weight, scales)
        self._input_dtype = linear.weight.dtype

    @functools.cached_property
    def _kernels(self) -> RowKernels | None:
        # Compiled when they are used: `continuous/cpu/layers.py` does without most of them.
        return find_row_kernels(self._input_dtype, self._dtype, SMALLEST, ZERO_POINT)

    def forward(self, inputs: Tensor) -> Tensor:
        """Quantize each row, multiply, scale back."""
        rows = inputs.reshape(-1, self.in_features)
        if self._kernels is not None and rows.dtype == self._input_dtype:
            outputs = self._multiply_compiled(rows, self._kernels)
        else:
            outputs = self._multiply(rows)
        return outputs.view(*inputs.shape[:-1], self.out_features)

    def _multiply(self, rows: Tensor) -> Tensor:
        rows = rows.float()
        # Several times faster than a norm, or than the maximum of absolute values in bfloat16.
        largest = torch.maximum(rows.amax(dim=-1, keepdim=True), -rows.amin(dim=-1, keepdim=True))
        scales = largest.clamp_(min=SMALLEST) / 127
        quantized = (rows / scales).round_().add_(ZERO_POINT).to(torch.uint8)
        return self.finish(self._product(quantized), scales)

    def _multiply_compiled(self, rows: Tensor, kernels: RowKernels) -> Tensor:
        quantized, scales = torch.empty(rows.shape, dtype=torch.uint8), torch.empty((len(rows), 1))
        kernels.quantize(as_array(rows.contiguous()), quantized.numpy(), scales.view(-1).numpy())
        return self.finish(self._product(quantized), scales)

    def multiply_arrays(self, rows: Any, memory: Any) -> Any:
        """Rows that are quantized, times the weights: [rows, features] float32, in `memory` where the product can."""
        if isinstance(self._product, _TileProduct):
            return self._product.into(rows, memory)
        return self._product(torch.from_numpy(rows)).numpy()

    def finish(self, products: Tensor, scales: Tensor) -> Tensor:
        """The outputs, from what was multiplied and the rows' scales [rows, 1]; `products` are worked on in place."""
        if self._kernels is None:
            outputs = products.mul_(scales)
            if self.bias is not None:
                outputs += self.bias
            return outputs.to(self._dtype)
        outputs = products if self._dtype == torch.float32 else torch.empty(products.shape, dtype=self._dtype)
        self._kernels.finish(products.numpy(), scales.view(-1).numpy(), self.bias_array, as_array(outputs))
        return outputs


class _Joint:
    """The product of layers that take the same inputs, for all of them at once; each takes its own share of it."""

    def __init__(self, linear: Int8Linear, sizes: Sequence[int]) -> None:
        self.linear, self._sizes = linear, list(sizes)
        self._inputs: Tensor | None = None
        self._shares: Sequence[Tensor] = ()

    def share(self, index: int, inputs: Tensor) -> Tensor:
        """The outputs of one of the layers: computed for the first one that comes, let go of with the last layer's."""
        if inputs is not self._inputs:
            self._inputs, self._shares = inputs, self.linear(inputs).split(self._sizes, dim=-1)
        share = self._shares[index]
        if index == len(self._sizes) - 1:
            self._inputs, self._shares = None, ()
        return share


class Int8Share(nn.Module):
    """A linear layer in int8 whose product is a part of a larger one: [..., features] to [..., features].

    It has the bits of a layer of its own: an output's scale and sum are its own. But inputs are quantized once, and one
    product of many outputs is faster than several of few.
    """

    def __init__(self, joint: _Joint, index: int) -> None:
        super().__init__()
        self.joint, self._index = joint, index

    def forward(self, inputs: Tensor) -> Tensor:
        """Take its share of the product."""
        return self.joint.share(self._index, inputs)


def linear_of(module: nn.Module) -> Int8Linear | None:
    """The layer in int8 that multiplies for a module, with others or alone; None where it is none in int8."""
    linear = module.joint.linear if isinstance(module, Int8Share) else module
    return linear if isinstance(linear, Int8Linear) else None


def join(layer: nn.Module, names: Sequence[str], product: Int8Product, dtype: torch.dtype) -> None:
    """Quantize linear layers of `layer` that are called with the same inputs, in the order of `names`."""
    linears: list[Any] = [layer.get_submodule(name) for name in names]
    whole = nn.Linear(1, 1, bias=any(linear.bias is not None for linear in linears), device="meta")
    whole.weight = nn.Parameter(torch.cat([linear.weight for linear in linears]), requires_grad=False)
    if whole.bias is not None:
        zeros = [linear.weight.new_zeros(len(linear.weight)) for linear in linears]
        biases = [zero if linear.bias is None else linear.bias for linear, zero in zip(linears, zeros, strict=True)]
        whole.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    joint = _Joint(Int8Linear(whole, product, dtype), [len(linear.weight) for linear in linears])
    for index, name in enumerate(names):
        layer.set_submodule(name, Int8Share(joint, index))


def quantize(
    model: nn.Module,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    product: Int8Product | None = None,
    smoothing: Smoothing | None = None,
    quantization: str = "int8",
) -> None:
    """Quantize every linear layer of a model, in place; each original is released as soon as its layer is packed.

    For a model on its way to a GPU: `device` is the GPU, `dtype` what the model is to be in there. Layer by layer
    goes over in 8 bits, the rest in `dtype`, so that the GPU never holds more than the quantized model and a block of
    one weight. None leaves the model where and as it is. Layers that are quantized stay as they are. `quantization` is
    int8, or on a GPU fp8, which leaves the output layer as it is; `product` is how a CPU multiplies, None its fastest
    exact way. With `smoothing` each of the model's layers is smoothed first; for that it goes to the device as a whole.
    Raises ConfigError where the CPU or the GPU has no such products.
    """
    device = device or next(model.parameters()).device
    dtype = dtype or next(model.parameters()).dtype
    product = None if device.type == "cuda" else product or cpu_product()
    if quantization == "fp8":
        make = _fp8_layers(model, device, dtype)
    else:
        make = _cpu_layers(product) if product else _cuda_layers(device, dtype)
    for layer in smooth_layers(model, smoothing, device, dtype) if smoothing else ():
        if smoothing and product:
            _join_all(layer, smoothing, product, dtype)
        _pack_all(layer, dtype, make)
    _pack_all(model, dtype, make)
    for parameter in model.parameters():
        # Copies, all of them: the last tensor that lies in a mapped file would keep the whole file in memory.
        parameter.data = parameter.data.to(device=device, dtype=dtype, copy=True)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))  # in their own dtype: rotary tables are not rounded


def _join_all(layer: nn.Module, smoothing: Smoothing, product: Int8Product, dtype: torch.dtype) -> None:
    """Join the layers that are smoothed together: their inputs are the same."""
    for channels in smoothing.channels:
        if len(channels.products) > 1:
            join(layer, channels.products, product, dtype)


def _pack_all(model: nn.Module, dtype: torch.dtype, make: Callable[[nn.Linear, torch.dtype], nn.Module]) -> None:
    for module in [module for module in model.modules() if not isinstance(module, nn.Linear)]:
        for name in [name for name, child in module.named_children() if isinstance(child, nn.Linear)]:
            # Logits stay as exact as they come.
            output_dtype = torch.float32 if name == "lm_head" else dtype
            setattr(module, name, make(getattr(module, name), output_dtype))


def _fp8_layers(model: Any, device: torch.device, dtype: torch.dtype) -> Callable[[nn.Linear, torch.dtype], nn.Module]:
    """All but the output layer, where fp8 costs most and saves least."""
    kernels, output_layer = fp8_gpu.load_kernels(device), model.get_output_embeddings()
    return lambda linear, _: linear if linear is output_layer else CudaFp8Linear(linear, device, dtype, kernels)


def _cuda_layers(device: torch.device, dtype: torch.dtype) -> Callable[[nn.Linear, torch.dtype], nn.Module]:
    kernels = load_kernels(device)
    return lambda linear, output_dtype: CudaInt8Linear(linear, device, dtype, output_dtype, kernels)


def _cpu_layers(product: Int8Product) -> Callable[[nn.Linear, torch.dtype], nn.Module]:
    return lambda linear, output_dtype: Int8Linear(linear, product, output_dtype)


def cpu_product() -> Int8Product:
    """The fastest exact product of this CPU. Raises ConfigError where it has none."""
    for product in (TILES, PACKED, PACKED_7_BITS, PLAIN):
        if is_exact(product):
            return product
    raise ConfigError("model.quantization is 'int8', but this CPU's build of torch has no exact integer products")


def _packed_product(weight: Tensor, scales: Tensor) -> Multiply:
    """[rows, in] uint8 -> [rows, out] float32, each output times its scale; weights in oneDNN's own layout."""
    onednn: Any = torch.ops.onednn
    packed = onednn.qlinear_prepack(weight, None)
    zero_points = torch.zeros(len(scales), dtype=torch.int64)

    def multiply(rows: Tensor) -> Tensor:
        return onednn.qlinear_pointwise(  # type: ignore[no-any-return]
            rows, 1.0, ZERO_POINT, packed, scales, zero_points, None, 1.0, 0, torch.float32, "none", [], ""
        )

    return multiply


class _TileProduct:
    """As `_packed_product`, by AMX's tiles. Raises NotImplementedError where there are none."""

    def __init__(self, weight: Tensor, scales: Tensor) -> None:
        kernel = find_tile_multiply()
        if kernel is None:
            raise NotImplementedError("a product by AMX's tiles")
        from dolly_batch.engine.kernels.cpu import amx, tiles

        self._kernel = kernel
        self._num_features, depth = weight.shape
        self._num_missing = -depth % tiles.DEPTH  # of a row, to the next whole tile
        self._arrays = amx.TileWeights(weight.numpy(), scales.numpy(), ZERO_POINT).arrays

    def __call__(self, rows: Tensor) -> Tensor:
        memory = torch.empty(len(rows) * self._num_features).numpy()
        return torch.from_numpy(self.into(rows.numpy(), memory))

    def into(self, rows: Any, memory: Any) -> Any:
        """The same for arrays: the outputs lie where `memory` begins."""
        if self._num_missing:
            rows = np.pad(rows, ((0, 0), (0, self._num_missing)))
        outputs = memory[: len(rows) * self._num_features].reshape(len(rows), self._num_features)
        self._kernel(*self._arrays, rows, outputs)
        return outputs


def _plain_product(weight: Tensor, scales: Tensor) -> Multiply:
    """As `_packed_product`, by torch's integer product."""
    transposed = weight.t()

    def multiply(rows: Tensor) -> Tensor:
        signed = (rows.to(torch.int16) - ZERO_POINT).to(torch.int8)
        return torch._int_mm(signed, transposed).float().mul_(scales)

    return multiply


def is_exact(product: Int8Product) -> bool:
    """Whether a product is available, and exact for its largest and smallest sums."""
    numbers = torch.Generator().manual_seed(0)
    largest = product.max_weight
    weight = torch.randint(-largest, largest + 1, (64, 256), generator=numbers, dtype=torch.int8)
    rows = torch.randint(1, 256, (16, 256), generator=numbers, dtype=torch.uint8)
    weight[:8], weight[8:16], rows[:4] = largest, -largest, 255
    expected = (rows.long() - ZERO_POINT) @ weight.long().t()
    try:
        found = product.make(weight, torch.ones(64))(rows)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return torch.equal(found.long(), expected)


TILES = Int8Product(_TileProduct, 127)
PACKED = Int8Product(_packed_product, 127)
PACKED_7_BITS = Int8Product(_packed_product, 64)
PLAIN = Int8Product(_plain_product, 127)  # some forty times slower
