"""A Llama-like model in int8 as four integer products a layer, with one compiled pass between each two.

Hugging Face's modules run forty small operations a layer, each a step through Python: for few rows half of the time.
Here the residual stream stays in float32 from the embedding to the last norm; nothing is rounded but what products
take, to 8 bits, and the keys and values that are kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dolly_batch.engine.continuous.cache import Cache, CacheShape
from dolly_batch.engine.continuous.cpu.attention_numba import CompiledAttention
from dolly_batch.engine.continuous.cpu.pools import KVPools
from dolly_batch.engine.kernels.cpu.compiled import (
    LayerKernels,
    as_array,
    as_words,
    find_layer_kernels,
)
from dolly_batch.engine.weights.int8_cpu import SMALLEST, ZERO_POINT, Int8Linear, linear_of
from dolly_batch.engine.weights.loading import LoadedModel

# oneDNN prepares a product for each number of rows, so there are only some.
_ROWS_STEP, _MIN_ROWS = 8, 16


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer's norms, float32, and products."""

    norm: Any  # [hidden size]
    qkv: Int8Linear
    head_norms: Any  # of queries and of keys, [2, head size]; of no rows where there are none
    out: Int8Linear
    mlp_norm: Any
    gate_up: Int8Linear
    down: Int8Linear

    @classmethod
    def of(cls, layer: Any) -> "_Layer | None":
        """The layer of a model, None where a product is not in int8 or not joined with its neighbours'."""
        attention, mlp = layer.self_attn, layer.mlp
        qkv, key, value = map(linear_of, (attention.q_proj, attention.k_proj, attention.v_proj))
        gate_up, up = map(linear_of, (mlp.gate_proj, mlp.up_proj))
        out, down = map(linear_of, (attention.o_proj, mlp.down_proj))
        if qkv is None or gate_up is None or out is None or down is None:
            return None
        if qkv is not key or qkv is not value or gate_up is not up:
            return None
        norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        head_norms = np.array([_weight(norm) for norm in norms if norm is not None], np.float32)
        head_norms = head_norms.reshape(-1, attention.head_dim)
        norm, mlp_norm = _weight(layer.input_layernorm), _weight(layer.post_attention_layernorm)
        return cls(norm, qkv, head_norms, out, mlp_norm, gate_up, down)


class _Rows:
    """What all layers of a step work on: the residual stream [tokens, hidden size], and products' inputs in 8 bits."""

    def __init__(self, stream: Any, layer: _Layer) -> None:
        num_rows = len(stream)
        padded = _padded(num_rows)
        self.stream = stream
        self.scales = np.ones(num_rows, np.float32)
        self.hidden, self.attended, self.inner = (
            torch.empty((padded, linear.in_features), dtype=torch.uint8).numpy()
            for linear in (layer.qkv, layer.out, layer.down)
        )


class _Attention:
    """A step's attention in all layers: where its queries, keys and values are, and the angles of its positions."""

    def __init__(self, model: "CompiledLayers", positions: Sequence[int], attention: CompiledAttention) -> None:
        shape, num_rows = model.shape, len(positions)
        cosines, sines = model.rotary(torch.empty(0), torch.tensor([positions]))
        self._angles = cosines[0].numpy(), sines[0].numpy()
        self._queries = np.empty((num_rows, shape.num_heads, shape.head_size), np.float32)
        keys_values = torch.empty((num_rows, 2, shape.num_kv_heads, shape.head_size), dtype=shape.dtype)
        self._keys_values = as_array(keys_values)
        attended = np.empty_like(self._queries)
        self._attended = attended.reshape(num_rows, -1)
        self._calls = attention.calls(self._queries, as_words(keys_values), attended)
        self._model = model

    def attend(self, number: int, layer: _Layer, outputs: Any, scales: Any) -> Any:
        """The attended values [tokens, heads x head size] of layer `number`, from what its first product gave."""
        model = self._model
        model.kernels.rotate(
            outputs,
            scales,
            layer.qkv.bias_array,
            layer.head_norms,
            model.epsilon,
            *self._angles,
            model.scaling,
            self._queries,
            self._keys_values,
        )
        for kernel, arrays, arguments in self._calls:
            kernel(arrays[number], *arguments)
        return self._attended


class CompiledLayers:
    """Runs a model's layers for a step's packed tokens."""

    def __init__(self, loaded: LoadedModel, layers: Sequence[_Layer], head: Int8Linear, kernels: LayerKernels) -> None:
        base = loaded.model.base_model
        self.kernels = kernels
        self.shape = CacheShape.of(loaded)
        self.rotary = base.rotary_emb
        self.epsilon = np.float32(loaded.model.config.rms_norm_eps)
        self.scaling = np.float32(self.shape.head_size**-0.5)
        self._layers, self._head = layers, head
        self._embedding, self._norm = base.embed_tokens.weight, _weight(base.norm)
        # Of a product's outputs, which the next pass has read before the next product writes.
        self._memory = np.empty(0, np.float32)
        self._widest = max(linear.out_features for linear in (layers[0].qkv, layers[0].gate_up, layers[0].down))

    @classmethod
    def of(cls, loaded: LoadedModel, cache: Cache) -> "CompiledLayers | None":
        """For a model that can be run so over this cache, else None."""
        config = loaded.model.config
        if not (loaded.folder.architecture.llama_layers and config.hidden_act == "silu"):
            return None
        if not (isinstance(cache, KVPools) and cache.is_compiled and isinstance(loaded.model.lm_head, Int8Linear)):
            return None
        layers = [_Layer.of(layer) for layer in loaded.model.base_model.layers]
        kernels = find_layer_kernels(loaded.dtype, SMALLEST, ZERO_POINT)
        if kernels is None or any(layer is None for layer in layers):
            return None
        return cls(loaded, [layer for layer in layers if layer is not None], loaded.model.lm_head, kernels)

    def logits(
        self, ids: Sequence[int], positions: Sequence[int], last: Sequence[int], attention: CompiledAttention
    ) -> Tensor:
        """Of the tokens at the places `last`: [places, vocabulary] in float32, to be read before the next step."""
        self._make_room(len(ids), len(last))
        outputs = self._embedding[torch.tensor(ids)].float().numpy()
        bias = np.zeros(outputs.shape[1], np.float32)
        step, rows = _Attention(self, positions, attention), _Rows(np.zeros_like(outputs), self._layers[0])
        for number, layer in enumerate(self._layers):
            self._add_norm(rows, outputs, bias, layer.norm)
            attended = step.attend(number, layer, layer.qkv.multiply_arrays(rows.hidden, self._memory), rows.scales)
            if layer is self._layers[-1] and list(last) != list(range(len(ids))):
                # Nothing but their logits is left to compute.
                attended, rows = attended[list(last)], _Rows(rows.stream[list(last)], layer)
            outputs, bias = self._after_attention(layer, rows, attended), layer.down.bias_array
        self._add_norm(rows, outputs, bias, self._norm)
        products = self._head.multiply_arrays(rows.hidden, self._memory)[: len(last)]
        return self._head.finish(torch.from_numpy(products), torch.from_numpy(rows.scales)[:, None])

    def _make_room(self, num_tokens: int, num_logits: int) -> None:
        size = max(_padded(num_tokens) * self._widest, _padded(num_logits) * self._head.out_features)
        if len(self._memory) < size:
            self._memory = np.empty(size, np.float32)

    def _after_attention(self, layer: _Layer, rows: _Rows, attended: Any) -> Any:
        self.kernels.quantize(attended, rows.scales, rows.attended)
        outputs = layer.out.multiply_arrays(rows.attended, self._memory)
        self._add_norm(rows, outputs, layer.out.bias_array, layer.mlp_norm)
        outputs = layer.gate_up.multiply_arrays(rows.hidden, self._memory)
        self.kernels.gate(outputs, rows.scales, layer.gate_up.bias_array, rows.inner)
        return layer.down.multiply_arrays(rows.inner, self._memory)

    def _add_norm(self, rows: _Rows, outputs: Any, bias: Any, weight: Any) -> None:
        self.kernels.add_norm(rows.stream, outputs, rows.scales, bias, weight, self.epsilon, rows.hidden)


def _padded(num_rows: int) -> int:
    return max(_MIN_ROWS, -(-num_rows // _ROWS_STEP) * _ROWS_STEP)


def _weight(norm: Any) -> Any:
    return norm.weight.detach().float().numpy()
