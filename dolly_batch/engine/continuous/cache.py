"""The interface of a KV cache, and the attention function that Hugging Face's modules call.

A cache decides where keys and values are stored and how they are attended to; all else is the same on every device. The
modules' attention calls `attend` below with packed [1, heads, tokens, head size] tensors. A head of keys and values
serves a group of query heads, of one where a model has as many of both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from dolly_batch.engine.continuous.sequence import CachedSequence, Step
from dolly_batch.engine.eight_bits import EIGHT_BITS, SCALE_BYTES
from dolly_batch.engine.weights.loading import LoadedModel

ATTENTION = "dolly_batch"
HEADROOM = 16  # tokens that a sequence may grow before its first move


@dataclass(frozen=True)
class CacheShape:
    """The shape of a model's keys and values. `num_heads` are the queries': a multiple of `num_kv_heads`.

    `eight_bits` is the dtype that they are stored in, each token's and head's with a float32 scale; None for `dtype`.
    """

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    dtype: torch.dtype
    device: torch.device
    eight_bits: torch.dtype | None = None

    @classmethod
    def of(cls, loaded: LoadedModel, kv_dtype: str = "auto") -> "CacheShape":
        """The shape for a loaded model, and `engine.kv_dtype`."""
        config = loaded.folder.config
        sizes = (config.num_layers, config.num_heads, config.num_kv_heads, config.head_size)
        return cls(*sizes, loaded.dtype, loaded.device, EIGHT_BITS.get(kv_dtype))

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        vector = self.head_size * self.dtype.itemsize if self.eight_bits is None else self.head_size + SCALE_BYTES
        return 2 * self.num_layers * self.num_kv_heads * vector


class StepAttention(Protocol):
    """The attention of one step: it knows which packed token belongs to which sequence."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Store a layer's new keys and values and return [1, tokens, heads, head size]; inputs as the module says."""


class Cache(Protocol):
    """Where the keys and values of sequences are stored. Only `num_bytes` may be read at any time."""

    num_bytes: int
    peak_bytes: int

    def has_room(self, sequence: CachedSequence) -> bool:
        """Whether the sequence can be admitted now, to its full length. Always true while it would be the only one."""

    def allocate(self, sequence: CachedSequence, num_tokens: int) -> None:
        """Make room for the sequence's first `num_tokens` tokens, keeping what is cached.

        May run out of memory, and then leaves all as it was.
        """

    def share_prefix(self, source: CachedSequence, sequence: CachedSequence, num_tokens: int) -> None:
        """Give an allocated sequence the first tokens of another one."""

    def free(self, sequence: CachedSequence, has_nan: bool = False) -> None:
        """Forget the sequence. `has_nan` says that its keys and values may be NaN, and must not reach later ones."""

    def plan(self, step: Step) -> tuple[Sequence[CachedSequence], StepAttention]:
        """Return the decoding sequences in the order that suits the cache, and the step's attention.

        The packed tokens are one of each of those sequences, then the chunks' in the step's order, then padding.
        """


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """The attention function that Hugging Face's modules call; without a `step` it is torch's own, as for scoring."""
    step: StepAttention | None = kwargs.get("step")
    if step is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return output, None
    return step.attend(module.layer_idx, query, key, value, kwargs["scaling"]), None


def install(model: Any) -> None:
    """Make the model's modules call `attend`."""
    AttentionInterface.register(ATTENTION, attend)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    model.set_attn_implementation(ATTENTION)
