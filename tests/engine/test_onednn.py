"""bfloat16 products of packed weights: a row's sums are the same in any company, with AMX too."""

import pytest
import torch
from torch import nn

from dolly_batch.engine.weights.onednn import PackedLinear, multiply_in_blocks

SHAPES = [(576, 576), (768, 3072), (1536, 576), (2048, 512)]


def packed_layer(num_inputs: int, num_outputs: int) -> PackedLinear:
    torch.manual_seed(0)
    try:
        layer = PackedLinear(nn.Linear(num_inputs, num_outputs, dtype=torch.bfloat16))
    except (AttributeError, RuntimeError) as error:
        pytest.skip(f"this torch or CPU packs no weights: {error}")
    multiply_in_blocks(nn.ModuleList([layer]))
    return layer


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).bfloat16()


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_row_has_the_same_bits_in_any_number_of_rows_and_at_any_place(shape: tuple[int, int]) -> None:
    layer, rows = packed_layer(*shape), numbers(300, shape[0])
    expected = layer(rows)
    for count in (1, 2, 8, 16, 17, 31, 33, 63, 64, 65, 130):
        assert torch.equal(layer(rows[:count]), expected[:count]), count
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(2))
    assert torch.equal(layer(rows[order]), expected[order])


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_blocks_keep_shapes_and_are_the_same_product(shape: tuple[int, int]) -> None:
    layer, rows = packed_layer(*shape), numbers(3, 27, shape[0])
    in_blocks = layer(rows)
    layer.in_blocks = False
    at_once = layer(rows)
    assert in_blocks.shape == at_once.shape == (3, 27, shape[1])
    torch.testing.assert_close(in_blocks, at_once, rtol=0.02, atol=0.02)
