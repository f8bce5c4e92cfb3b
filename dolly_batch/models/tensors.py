"""How an architecture's entry writes down the tensors of its checkpoints. Standard library only."""

from dataclasses import dataclass
from typing import Literal

OLD_BUFFERS = (
    *(f"{attention}.{name}" for attention in ("attention", "attn") for name in ("bias", "masked_bias")),
    *("attn.embed_positions", "rotary_emb.inv_freq"),
)
"""Masks and rotary tables that older versions of transformers saved with the weights; modules make them anew."""

Size = Literal["vocab", "hidden", "inner", "head", "queries", "keys", "qkv"]
"""A size by config.json: `head` one head's, `queries` all heads', `keys` all key-value heads', `qkv` all three."""

Switch = tuple[str, bool]
"""A key of config.json that must be true for a tensor to be there, and its default."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor of the checkpoint: its name and shape, [outputs, inputs] for a matrix; `switch` may leave it out."""

    name: str
    shape: tuple[Size, ...]
    switch: Switch | None = None


def linear(name: str, outputs: Size, inputs: Size, *, bias: bool | Switch = True) -> tuple[Weight, ...]:
    """A linear layer; `bias` may be the switch of its bias."""
    matrix = Weight(f"{name}.weight", (outputs, inputs))
    if bias is False:
        return (matrix,)
    return (matrix, Weight(f"{name}.bias", (outputs,), None if bias is True else bias))


def norm(name: str) -> tuple[Weight, ...]:
    """A layer norm of the hidden size, with its bias."""
    return (Weight(f"{name}.weight", ("hidden",)), Weight(f"{name}.bias", ("hidden",)))
