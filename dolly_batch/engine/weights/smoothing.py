"""int8's smoothing: a layer's channels are scaled against each other, so that none takes a row's scale for itself.

An int8 product has one scale a row, and Llama-like models have channels a hundred times as large as the others, which
are left with a few steps. Such a channel's inputs are divided by a scale, and its weights multiplied: by the power of
two next to sqrt(largest input / largest weight), as in SmoothQuant (arXiv 2211.10438). The division is folded into the
norm or the matrix that the channel comes from, so that a forward has nothing more to do. Powers of two change no digit
of a number: in floating point, a smoothed model is the same model to the bit.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dolly_batch.models.architectures import Channels

_MAX_EXPONENT = 8  # of a scale, so that channels that the text leaves silent, or without weights, stay in bounds


@dataclass(frozen=True, slots=True)
class Smoothing:
    """Which channels of every layer are scaled, and the token ids that show how large they get."""

    channels: Sequence[Channels]
    token_ids: Sequence[int]


@torch.no_grad()
def smooth_layers(model: Any, smoothing: Smoothing, device: torch.device, dtype: torch.dtype) -> Iterator[nn.Module]:
    """Run the token ids through a model, and yield each of its layers, smoothed, before the next one runs.

    A layer goes to `device` and `dtype` when it runs: who packs each at once has only one there in floating point. What
    runs is a copy in float32, whose last bits alone depend on threads and machines, and hardly ever change a scale.
    """
    base = model.base_model
    token_ids = torch.tensor([smoothing.token_ids])
    hidden = base.get_input_embeddings()(token_ids).to(device=device, dtype=dtype).float()
    positions = torch.arange(token_ids.shape[1], device=device)[None]
    known = {"position_ids": positions, "position_embeddings": base.rotary_emb(hidden, positions)}
    for layer in base.layers:
        layer.to(device=device, dtype=dtype)
        with _largest_inputs(layer, smoothing.channels) as largest:
            wide = {name: parameter.float() for name, parameter in layer.named_parameters()}
            hidden = functional_call(layer, wide, (hidden,), {"attention_mask": None, **known})
            del wide
        for channels in smoothing.channels:
            scale(layer, channels, _scales(layer, channels, largest[channels.products[0]]))
        yield layer


def scale(layer: nn.Module, channels: Channels, scales: Tensor) -> None:
    """Divide what channels' source gives by the scales [channels], and multiply their weights in the products.

    Parameters get new memory: the old one may be a mapped file.
    """
    source = layer.get_submodule(channels.source)
    for parameter in source.parameters(recurse=False):  # its weight and bias: [channels, ...]
        parameter.data = parameter.data / scales.to(parameter.dtype).view(-1, *[1] * (parameter.dim() - 1))
    for name in channels.products:
        weight = layer.get_submodule(name).get_parameter("weight")
        weight.data = weight.data * scales.to(weight.dtype)


@contextmanager
def _largest_inputs(layer: nn.Module, watched: Sequence[Channels]) -> Iterator[dict[str, Tensor]]:
    """The largest inputs [features] of each watched product that runs meanwhile, by its name."""
    largest: dict[str, Tensor] = {}

    def note(name: str, inputs: Tensor) -> None:
        largest[name] = inputs.abs().amax(dim=(0, 1)).float()

    names = [channels.products[0] for channels in watched]
    hooks = [
        layer.get_submodule(name).register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs[0]))
        for name in names
    ]
    try:
        yield largest
    finally:
        for hook in hooks:
            hook.remove()


def _scales(layer: nn.Module, channels: Channels, largest: Tensor) -> Tensor:
    """The scales [channels] for inputs that are at most `largest` [channels]."""
    matrices = [layer.get_submodule(name).get_parameter("weight") for name in channels.products]
    weights = torch.stack([matrix.abs().amax(dim=0).float() for matrix in matrices]).amax(dim=0)
    return nearest_powers(largest / weights)


def nearest_powers(ratios: Tensor) -> Tensor:
    """The powers of two next to the ratios' square roots, by their exponents alone: exact on any machine."""
    bound = 2.0 ** (2 * _MAX_EXPONENT)
    bounded = torch.where(ratios > 0, ratios, 1.0).clamp(min=1 / bound, max=bound)
    # frexp: in [2^(e-1), 2^e). The square root of [2^(2k-1), 2^(2k+1)) is nearest to 2^k.
    exponents = torch.frexp(bounded).exponent.div(2, rounding_mode="floor")
    return torch.ldexp(torch.ones_like(bounded), exponents)
