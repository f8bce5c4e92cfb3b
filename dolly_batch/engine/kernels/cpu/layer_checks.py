"""The passes of `layer_rows` compared with the same in float64, when they are compiled."""

import numpy as np
import torch
from torch import Tensor

from dolly_batch.engine.kernels.cpu.compiled import LayerKernels, as_array, assert_close

_ROWS, _FEATURES = 9, 90  # a number of features that is no multiple of a vector's
_HEADS, _KV_HEADS, _HEAD_SIZE = 3, 1, 18
_EPSILON = 1e-5
_ERROR = 1e-5


class LayerChecks:
    """Compares each pass; rows are of small numbers and of large ones, one more of outputs than are used."""

    def __init__(self, kernels: LayerKernels, dtype: torch.dtype, zero_point: int) -> None:
        self._kernels, self._dtype, self._zero_point = kernels, dtype, zero_point
        self._numbers = torch.Generator().manual_seed(7)
        self._sizes = torch.logspace(-4, 4, _ROWS)

    def run(self) -> None:
        """Raises Mismatch."""
        self._add_norm()
        self._gate()
        for num_norms in (0, 2):
            self._rotate(num_norms)
        rows, scales = self._random(_ROWS, _FEATURES) * self._sizes[:, None], torch.empty(_ROWS)
        quantized = self._quantized(_FEATURES)
        self._kernels.quantize(rows.numpy(), scales.numpy(), quantized.numpy())
        self._assert_quantized(quantized, scales, rows.double())

    def _random(self, *sizes: int) -> Tensor:
        return torch.randn(sizes, generator=self._numbers)

    def _quantized(self, num_features: int) -> Tensor:
        return torch.empty((_ROWS + 1, num_features), dtype=torch.uint8)

    def _assert_quantized(self, quantized: Tensor, scales: Tensor, expected: Tensor) -> None:
        expected_scales = expected.abs().amax(dim=1) / 127
        assert_close(scales / expected_scales, torch.ones(_ROWS), _ERROR)
        assert_close(quantized[:_ROWS], expected / expected_scales[:, None] + self._zero_point, 0.502)

    def _add_norm(self) -> None:
        stream, outputs = self._random(_ROWS, _FEATURES), self._random(_ROWS + 1, _FEATURES)
        scales, bias, weight = self._sizes.clone(), self._random(_FEATURES), self._random(_FEATURES)
        expected = stream.double() + outputs[:_ROWS].double() * scales[:, None] + bias
        quantized = self._quantized(_FEATURES)
        arrays = (tensor.numpy() for tensor in (stream, outputs, scales, bias, weight))
        self._kernels.add_norm(*arrays, np.float32(_EPSILON), quantized.numpy())
        _assert_near(stream, expected, _ERROR)
        self._assert_quantized(quantized, scales, _normalize(expected) * weight)

    def _gate(self) -> None:
        outputs, scales, bias = self._random(_ROWS + 1, 2 * _FEATURES), self._sizes.clone(), self._random(2 * _FEATURES)
        opening, other = (outputs[:_ROWS].double() * scales[:, None] + bias).split(_FEATURES, dim=1)
        quantized = self._quantized(_FEATURES)
        self._kernels.gate(*(tensor.numpy() for tensor in (outputs, scales, bias, quantized)))
        self._assert_quantized(quantized, scales, torch.nn.functional.silu(opening) * other)

    def _rotate(self, num_norms: int) -> None:
        num_all = _HEADS + 2 * _KV_HEADS
        outputs, scales = self._random(_ROWS + 1, num_all * _HEAD_SIZE), self._sizes.clone()
        bias, norms, angles = (
            self._random(num_all * _HEAD_SIZE),
            self._random(num_norms, _HEAD_SIZE),
            self._random(_ROWS, _HEAD_SIZE),
        )
        heads = (outputs[:_ROWS].double() * scales[:, None] + bias).view(_ROWS, num_all, _HEAD_SIZE)
        queries = torch.empty((_ROWS, _HEADS, _HEAD_SIZE))
        keys_values = torch.empty((_ROWS, 2, _KV_HEADS, _HEAD_SIZE), dtype=self._dtype)
        given = (tensor.numpy() for tensor in (outputs, scales, bias, norms))
        turns = (tensor.numpy() for tensor in (angles.cos(), angles.sin()))
        self._kernels.rotate(
            *given, np.float32(_EPSILON), *turns, np.float32(0.3), queries.numpy(), as_array(keys_values)
        )
        own, keys, values = heads.split((_HEADS, _KV_HEADS, _KV_HEADS), dim=1)
        if num_norms:
            own, keys = _normalize(own) * norms[0], _normalize(keys) * norms[1]
        _assert_near(queries, _turn(own, angles.double()) * 0.3, _ERROR)
        _assert_near(
            keys_values,
            torch.stack((_turn(keys, angles.double()), values), dim=1),
            _ERROR + torch.finfo(self._dtype).eps,
        )


def _normalize(numbers: Tensor) -> Tensor:
    return numbers * (numbers.square().mean(dim=-1, keepdim=True) + _EPSILON).rsqrt()


def _turn(heads: Tensor, angles: Tensor) -> Tensor:
    """By the angles of the first half of a head's numbers."""
    half = angles[:, None, : _HEAD_SIZE // 2]
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * half.cos() - second * half.sin(), second * half.cos() + first * half.sin()), dim=-1)


def _assert_near(found: Tensor, expected: Tensor, limit: float) -> None:
    """Next to the largest number of each head."""
    sizes = expected.abs().amax(dim=-1, keepdim=True)
    assert_close(found / sizes, expected / sizes, limit)
