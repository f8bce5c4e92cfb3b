"""What the continuous engine asks of a cache of keys and values, and the door by which it sees the model's attention.

A cache decides where keys and values lie and how they are attended to; all else is the same on every device. The
modules are Hugging Face's: their attention calls `attend` below with packed [1, heads, tokens, head size] tensors.
"""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from dolly_batch.engine.continuous.sequence import Sequence, Step
from dolly_batch.engine.weights.loading import LoadedModel

ATTENTION = "dolly_batch"
HEADROOM = 16  # tokens that a row may grow before its first move


@dataclass(frozen=True)
class CacheShape:
    """The shape of a model's keys and values."""

    num_layers: int
    num_heads: int
    head_size: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, loaded: LoadedModel) -> "CacheShape":
        """The shape for a loaded model."""
        config = loaded.folder.config
        return cls(config.num_layers, config.num_heads, config.head_size, loaded.dtype, loaded.device)

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        return 2 * self.num_layers * self.num_heads * self.head_size * self.dtype.itemsize


class StepAttention(Protocol):
    """The attention of one step: it knows which packed token belongs to which row."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Store a layer's new keys and values and return [1, tokens, heads, head size]; inputs as the module says."""


class Cache(Protocol):
    """Where the keys and values of rows lie. Only `num_bytes` may be read at any time."""

    num_bytes: int
    peak_bytes: int

    def has_room(self, row: Sequence) -> bool:
        """Whether the row can be taken in now, to its full length. Always true while no other row is in."""

    def place(self, row: Sequence, num_tokens: int) -> None:
        """Make room for the row's first `num_tokens` tokens, keeping what it holds.

        May run out of memory, and then leaves all as it was.
        """

    def copy_prefix(self, donor: Sequence, row: Sequence, num_tokens: int) -> None:
        """Copy the donor's first tokens to a row that is placed."""

    def release(self, row: Sequence, spoilt: bool = False) -> None:
        """Forget the row. `spoilt` says that it may hold NaN, which nobody must find in its place."""

    def plan(self, step: Step) -> tuple[SequenceOf[Sequence], StepAttention]:
        """Return the decoding rows in the order that suits the cache, and the step's attention.

        The packed tokens are one of each of those rows, then the chunks' in the step's order, then padding.
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
