"""Self test of what runs between a layer's products: storage in pages, rotation, norms and gates.

Each is compared with torch's own operations in float64, in the shape and dtype of the model at hand; see `self_test`,
which calls these.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, silu

from dolly_batch.engine.continuous.cache import CacheShape
from dolly_batch.engine.continuous.gpu.layer_pages import LayerPages, Places
from dolly_batch.engine.continuous.gpu.trial import Unsupported, as_numbers, assert_close, random_heads
from dolly_batch.engine.eight_bits import quantize
from dolly_batch.engine.kernels.gpu import Rotation

# Relative distance of one rounding to the dtype; Triton's interpreter cuts off where a GPU rounds to two bytes.
_ROUNDING = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
_EPSILON = 1e-5
# A chunk over a page's border, one in a page's middle, and the start of a third sequence.
_CHUNKS = (([3, 1], 13, 18), ([4], 7, 9), ([2], 0, 3))
_NUM_PAGES, _PAGE = 5, 16


def check_storage(shape: CacheShape) -> None:
    """Compare what the kernels store and gather with what torch's own operations do; nothing is rotated."""
    numbers = torch.Generator(shape.device).manual_seed(6)
    places, num_keys = _places(shape)
    query, key, value = _heads(shape, numbers)
    found = []
    for use_kernels in (True, False):
        pages = _empty_pages(shape, shape.dtype, use_kernels)
        packed = key.new_zeros((2, num_keys + 3, *key.shape[1:]))
        pages.store(places, query, key, value, None, packed)
        pages.gather(Places.at(places.flat[2:5], _PAGE).packed_at([num_keys, num_keys + 1, num_keys + 2]), packed)
        found.append((*packed, as_numbers(pages.numbers, pages.scales)))
    for ours, theirs, what in zip(*found, ("keys", "values", "what is stored"), strict=True):
        assert_close(ours, theirs, _ROUNDING[shape.dtype] if what != "what is stored" else 1e-6, f"in {what}")


def check_rotation(shape: CacheShape, num_rotated: int, *, has_norms: bool) -> None:
    """Compare rotated queries, and keys as they are stored, with the same in float64; and each row alone and among all.

    `num_rotated` numbers of each vector are rotated, after a norm of each head if `has_norms`.
    """
    numbers = torch.Generator(shape.device).manual_seed(7)
    places, num_keys = _places(shape)
    query, key, value = _heads(shape, numbers)
    rotation = _rotation(shape, len(query), num_rotated, numbers, has_norms)
    pages = _empty_pages(shape, shape.dtype, use_kernels=True)
    packed = key.new_zeros((2, num_keys, *key.shape[1:]))
    queries = pages.store(places, query, key, value, rotation, packed)
    wide = _empty_pages(shape, torch.float64, use_kernels=False)
    expected = torch.zeros_like(packed, dtype=torch.float64)
    wide.store(places, query, rotate(key, rotation, 1), value.double(), None, expected)
    limit = _ROUNDING[shape.dtype]
    assert_close(queries, rotate(query, rotation, 0), limit, "in queries")
    # In 8 bits a number at the border between two steps may be rounded either way.
    limit = limit if shape.eight_bits is None else max(limit, 5e-3)
    assert_close(packed[0], expected[0], limit, "in keys")
    assert_close(packed[1], expected[1], limit, "in values")
    stored, exact = (as_numbers(each.numbers, each.scales) for each in (pages, wide))
    assert_close(stored, exact, limit, "in what is stored")
    for row in (0, len(query) - 1):
        own = slice(row, row + 1)
        at = Places.at(places.flat[own], _PAGE).packed_at([0])
        one = key.new_zeros((2, 1, *key.shape[1:]))
        alone = pages.store(at, query[own], key[own], value[own], rotation.of(own), one)
        if not (torch.equal(alone[0], queries[row]) and torch.equal(one[0, 0], packed[0, row])):
            raise Unsupported(f"a token's numbers change with its neighbours, token {row}")


def rotate(vectors: Tensor, rotation: Rotation, kind: int) -> Tensor:
    """Queries (`kind` 0) or keys (1), [tokens, heads, head size], rotated in float64."""
    wide = vectors.double()
    if rotation.norms is not None:
        wide = wide * (wide.square().mean(-1, keepdim=True) + rotation.epsilon).rsqrt() * rotation.norms[kind].double()
    cosines, sines = (angles.double()[:, None] for angles in (rotation.cosines, rotation.sines))
    half = cosines.shape[-1]
    first, second, rest = torch.split(wide, [half, half, wide.shape[-1] - 2 * half], dim=-1)
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines, rest], dim=-1)


def check_norms(size: int, dtype: torch.dtype, device: torch.device, *, centers: bool, num_rows: int = 5) -> None:
    """Compare sums and their norms, of rows of `size`, with torch's in float64; and a row alone and among all."""
    from dolly_batch.engine.kernels.gpu.norms import Norm, add_norms

    numbers = torch.Generator(device).manual_seed(8)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=numbers, device=device).to(dtype)

    norms = tuple(Norm(1 + draw(size), draw(size) if centers else None, _EPSILON, centers) for _ in range(2))
    stream, *others = (3 + draw(num_rows, size) for _ in range(3))
    for num_added in range(3):
        added = tuple(others[:num_added])
        for used in (norms, norms[:1]):
            summed, found = add_norms(stream, added, used)
            exact = sum((each.double() for each in added), stream.double())
            assert_close(summed, exact, _ROUNDING[dtype], f"in a sum of {1 + num_added}")
            for ours, norm in zip(found, used, strict=True):
                where = f"in a norm of {1 + num_added} tensors"
                assert_close(ours, _by_torch(summed.double(), norm.weight, norm.bias, centers), _ROUNDING[dtype], where)
            one, alone = add_norms(stream[2:3], tuple(each[2:3] for each in added), used)
            pairs: Sequence[tuple[Tensor, Tensor]] = [(one, summed), *zip(alone, found, strict=True)]
            if not all(torch.equal(ours[0], among[2]) for ours, among in pairs):
                raise Unsupported("a row's numbers change with its neighbours")


def _by_torch(rows: Tensor, weight: Tensor, bias: Tensor | None, centers: bool) -> Tensor:
    if centers:
        return layer_norm(rows, rows.shape[-1:], weight.double(), None if bias is None else bias.double(), _EPSILON)
    return rows * (rows.square().mean(-1, keepdim=True) + _EPSILON).rsqrt() * weight.double()


def check_gate(size: int, dtype: torch.dtype, device: torch.device) -> None:
    """Compare the gate of rows of `size` with torch's in float64."""
    from dolly_batch.engine.kernels.gpu.gate import gate

    numbers = torch.Generator(device).manual_seed(9)
    gates, values = (4 * torch.randn((3, size), generator=numbers, device=device) for _ in range(2))
    gates[0, :2] = torch.tensor([90.0, -90.0])
    gates, values = gates.to(dtype), values.to(dtype)
    assert_close(gate(gates, values), silu(gates.double()) * values.double(), _ROUNDING[dtype], "in gated numbers")


def _places(shape: CacheShape) -> tuple[Places, int]:
    num_tokens = sum(stop - start for _, start, stop in _CHUNKS)
    return Places.of(_CHUNKS, _PAGE, shape.device).packed_at(range(num_tokens)), num_tokens


def _heads(shape: CacheShape, numbers: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values as products give them, side by side; of very different size, one of zeros."""
    num_tokens = _places(shape)[1]
    num_heads = shape.num_heads + 2 * shape.num_kv_heads
    heads = random_heads(shape, (num_tokens, num_heads), numbers)
    sizes = torch.logspace(-2, 2, num_tokens, device=shape.device).to(shape.dtype)[:, None, None]
    query, key, value = torch.split(heads * sizes, [shape.num_heads, *[shape.num_kv_heads] * 2], dim=1)
    return query, key, value.index_fill(0, torch.tensor([6], device=shape.device), 0.0)


def _empty_pages(shape: CacheShape, dtype: torch.dtype, use_kernels: bool) -> LayerPages:
    sizes = (2, _NUM_PAGES, shape.num_kv_heads, _PAGE, shape.head_size)
    empty = torch.full(sizes, torch.nan, device=shape.device)
    if shape.eight_bits is not None:
        return LayerPages(*quantize(empty, shape.eight_bits), use_kernels)
    return LayerPages(empty.to(dtype), None, use_kernels)


def _rotation(
    shape: CacheShape, num_tokens: int, num_rotated: int, numbers: torch.Generator, has_norms: bool
) -> Rotation:
    angles = torch.rand((num_tokens, num_rotated // 2), generator=numbers, device=shape.device) * 6
    if not has_norms:
        return Rotation(angles.cos(), angles.sin())
    weights = (1 + random_heads(shape, (2,), numbers)).unbind(0)
    return Rotation(angles.cos(), angles.sin(), (weights[0], weights[1]), _EPSILON)
