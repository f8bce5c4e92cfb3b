"""A model's layers over packed tokens: Hugging Face's modules as they are, or their products with kernels between them.

A module's forward launches some twenty small kernels a layer between its products, each of which reads and writes the
hidden states. `FusedLayers` runs the modules' own linear layers, in 8 bits perhaps, and what is between two of them in
one kernel: heads, rotation and storage; the gate; residual and the next norms.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dolly_batch.engine.continuous.gpu.attention import PageAttention
from dolly_batch.engine.kernels.gpu import Rotation
from dolly_batch.engine.weights.loading import LoadedModel

# (ids, positions, attention, last) -> the hidden states before the output layer, [places, hidden size], at the places
# `last` of the packed tokens; of all of them where it is None.
Forward = Callable[[Tensor, Tensor, PageAttention, Tensor | None], Tensor]


def forward_of(loaded: LoadedModel, *, is_fused: bool) -> Forward:
    """The forward of a model, of which `install` has been done."""
    return FusedLayers(loaded).run if is_fused else Modules(loaded.model).run


class Modules:
    """Runs Hugging Face's modules."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def run(self, ids: Tensor, positions: Tensor, attention: PageAttention, last: Tensor | None) -> Tensor:
        """See `Forward`."""
        output = self._model.base_model(
            input_ids=ids[None],
            position_ids=positions[None],
            attention_mask=torch.zeros(1, 1, 1, 1, device=ids.device),  # of four dimensions: taken as it is
            use_cache=False,
            step=attention,
        )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden if last is None else hidden[last]


@dataclass(frozen=True, slots=True)
class _Layer:
    """What a layer computes with. `qkv` gives queries, keys and values, each [tokens, their heads, head size]."""

    qkv: Callable[[Tensor], Sequence[Tensor]]
    out: Callable[[Tensor], Tensor]
    mlp: Callable[[Tensor], Tensor]
    norms: tuple[Any, Any]  # before the attention, and before the inner layer
    head_norms: tuple[Tensor, Tensor] | None
    head_epsilon: float

    @classmethod
    def of(cls, layer: Any, head_size: int, *, is_llama: bool, gates: bool) -> "_Layer":
        """Of a module: a layer of GPT-NeoX's, or one of Llama's family, whose inner layer has a gate by silu or not."""
        from dolly_batch.engine.kernels.gpu.gate import gate  # needs triton
        from dolly_batch.engine.kernels.gpu.norms import Norm

        norms = (Norm.of(layer.input_layernorm), Norm.of(layer.post_attention_layernorm))
        mlp = layer.mlp
        if not is_llama:
            joined = layer.attention.query_key_value

            def split(hidden: Tensor) -> Sequence[Tensor]:
                return joined(hidden).view(len(hidden), -1, 3 * head_size).split(head_size, dim=-1)  # type: ignore[no-any-return]

            return cls(split, layer.attention.dense, mlp, norms, None, 0.0)
        attention = layer.self_attn
        products = (attention.q_proj, attention.k_proj, attention.v_proj)
        head_norms = (attention.q_norm, attention.k_norm) if hasattr(attention, "q_norm") else None

        def apart(hidden: Tensor) -> Sequence[Tensor]:
            return [product(hidden).view(len(hidden), -1, head_size) for product in products]

        def gated(hidden: Tensor) -> Tensor:
            inner: Tensor = mlp.down_proj(gate(mlp.gate_proj(hidden), mlp.up_proj(hidden)))
            return inner

        weights = head_norms and (head_norms[0].weight, head_norms[1].weight)
        epsilon = head_norms[0].variance_epsilon if head_norms else 0.0
        return cls(apart, attention.o_proj, gated if gates else mlp, norms, weights, epsilon)


class FusedLayers:
    """Runs a model of GPT-NeoX's or of Llama's family, on a GPU or in Triton's interpreter."""

    def __init__(self, loaded: LoadedModel) -> None:
        from dolly_batch.engine.kernels.gpu.norms import Norm, add_norms  # needs triton

        base, config = loaded.model.base_model, loaded.model.config
        head_size = loaded.folder.config.head_size
        is_llama, gates = loaded.folder.architecture.llama_layers, config.hidden_act == "silu"
        self._embedding = base.get_input_embeddings()
        self._rotary = base.rotary_emb
        self._layers = [_Layer.of(layer, head_size, is_llama=is_llama, gates=gates) for layer in base.layers]
        self._last_norm = Norm.of(base.norm if is_llama else base.final_layer_norm)
        self._is_parallel = not is_llama and config.use_parallel_residual
        self._scaling = head_size**-0.5
        self._add_norms = add_norms

    def run(self, ids: Tensor, positions: Tensor, attention: PageAttention, last: Tensor | None) -> Tensor:
        """See `Forward`."""
        cosines, sines = self._angles(positions)
        first = self._layers[0].norms
        stream, normed = self._add_norms(self._embedding(ids), (), first if self._is_parallel else first[:1])
        for number, layer in enumerate(self._layers):
            query, key, value = layer.qkv(normed[0])
            rotation = Rotation(cosines, sines, layer.head_norms, layer.head_epsilon)
            attended = attention.attend_tokens(number, query, key, value, self._scaling, rotation)
            if last is not None and layer is self._layers[-1]:
                # Nothing but these is left to compute.
                attended, stream, normed = attended[last], stream[last], [each[last] for each in normed]
            outputs = layer.out(attended.flatten(1))
            following = self._layers[number + 1].norms if number + 1 < len(self._layers) else (self._last_norm,)
            if self._is_parallel:
                added: tuple[Tensor, ...] = (layer.mlp(normed[1]), outputs)
                stream, normed = self._add_norms(stream, added, following)
            else:
                stream, normed = self._add_norms(stream, (outputs,), layer.norms[1:])
                stream, normed = self._add_norms(stream, (layer.mlp(normed[0]),), following[:1])
        return normed[0]

    def _angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines in float32, [tokens, half of the numbers that are rotated]: modules have them twice."""
        like = torch.empty(0, device=positions.device)  # for its dtype
        cosines, sines = self._rotary(like, positions[None])
        half = cosines.shape[-1] // 2
        return cosines[0, :, :half].contiguous(), sines[0, :, :half].contiguous()
