"""bfloat16 weights packed in oneDNN's layout: the same sums, without repacking the weights for every product."""

from typing import Any

import torch
from torch import Tensor, nn

_PACKED_FOR_ROWS = 64
_BLOCK_ROWS = 64  # a multiple of the rows of two tiles; of 16 to 128 the fastest in most shapes


class PackedLinear(nn.Module):
    """A linear layer with packed weights, [..., features] to [..., features].

    With AMX the order in which oneDNN adds depends on the number of rows. `in_blocks` has it multiply as many at once
    each time, the last ones padded: a row's sums are then the same in any company.
    """

    in_blocks = False

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._weight = _mkldnn()._reorder_linear_weight(linear.weight.detach(), _PACKED_FOR_ROWS)
        self._bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, inputs: Tensor) -> Tensor:
        """Multiply and add the bias."""
        if not self.in_blocks:
            return self._multiply(inputs)
        rows = inputs.reshape(-1, inputs.shape[-1])
        rows = nn.functional.pad(rows, (0, 0, 0, -len(rows) % _BLOCK_ROWS))
        blocks = [self._multiply(block) for block in torch.split(rows, _BLOCK_ROWS)]
        outputs = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
        return outputs[: inputs.shape[:-1].numel()].view(*inputs.shape[:-1], -1)

    def _multiply(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = _mkldnn()._linear_pointwise(inputs, self._weight, self._bias, "none", [], "")
        return outputs


def pack(model: nn.Module) -> None:
    """Pack every bfloat16 linear layer of a model, in place, where this torch and CPU can and give the same bits."""
    same = _is_same()
    for module in [module for module in model.modules() if not isinstance(module, nn.Linear)]:
        # By name: a list of the layers would keep the originals of all of them.
        for name in [name for name, child in module.named_children() if isinstance(child, nn.Linear)]:
            linear: nn.Linear = getattr(module, name)
            if same and linear.weight.dtype == torch.bfloat16:
                setattr(module, name, PackedLinear(linear))
            del linear


def multiply_in_blocks(model: nn.Module) -> None:
    """Have every packed layer multiply the same number of rows each time."""
    for module in model.modules():
        if isinstance(module, PackedLinear):
            module.in_blocks = True


def _is_same() -> bool:
    numbers = torch.Generator().manual_seed(0)
    linear = nn.Linear(256, 96, dtype=torch.bfloat16)
    inputs = torch.randn(24, 256, generator=numbers).bfloat16()
    try:
        packed = PackedLinear(linear)
        return all(torch.equal(packed(inputs[:count]), linear(inputs[:count])) for count in (8, 24))
    except (AttributeError, RuntimeError):
        return False


def _mkldnn() -> Any:
    return torch.ops.mkldnn
