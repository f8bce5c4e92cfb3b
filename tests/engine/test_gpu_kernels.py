"""The decode kernels where keys and values are in 8 bits, and where heads share keys: against float64 and torch."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import triton.language as tl

from dolly_batch.engine.continuous.gpu.attention import decode_by_sdpa
from dolly_batch.engine.continuous.gpu.layer_checks import check_storage
from dolly_batch.engine.continuous.gpu.self_test import check_copies, check_decode
from dolly_batch.engine.continuous.gpu.trial import Unsupported
from dolly_batch.engine.eight_bits import EIGHT_BITS, quantize
from dolly_batch.engine.kernels.gpu import SPLIT_KEYS, decode, keys_values
from tests.engine.test_kernels_gpu import DEVICE, shape

pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")


@pytest.fixture
def products() -> Iterator[None]:
    """Triton's interpreter multiplies the bits of bfloat16 as if they were integers: not with this."""
    if DEVICE.type == "cuda":
        yield
        return
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    right = InterpreterBuilder.create_dot

    def wide(handle: Any) -> Any:
        is_bfloat16 = handle.dtype == tl.bfloat16
        data = (handle.data.astype("uint32") << 16).view("float32") if is_bfloat16 else handle.data
        return TensorHandle(data, tl.float32) if is_bfloat16 else handle

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return right(self, wide(a), wide(b), *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpreterBuilder, "create_dot", create_dot)
        yield


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize(
    ("dtype", "kv_dtype", "group"),
    [
        (torch.bfloat16, "auto", 3),
        (torch.float16, "auto", 8),
        (torch.bfloat16, "int8", 17),  # more heads than a product has rows at least
        (torch.bfloat16, "fp8", 4),
        (torch.float16, "int8", 4),
    ],
    ids=str,
)
def test_heads_of_a_group_read_its_keys_together(
    dtype: torch.dtype, kv_dtype: str, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By products, in numbers of two bytes; also in parts, with the same bits alone and among others."""
    settings, groups = decode.group_settings, []
    monkeypatch.setattr(decode, "group_settings", lambda *given: groups.append(given[0]) or settings(*given))
    check_decode(shape(80, dtype, num_heads=2, group=group, kv_dtype=kv_dtype), 2048, (40, 0, 63, 64))
    if group == 3 or dtype == torch.float16:
        check_decode(shape(16, dtype, group=group, kv_dtype=kv_dtype), 2048, (0, SPLIT_KEYS, SPLIT_KEYS + 9))
    assert set(groups) == {group}


def test_gpus_without_products_of_tritons_read_a_groups_keys_head_by_head(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, has_products in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert decode._has_products.__wrapped__(torch.device("cuda")) == has_products


@pytest.mark.parametrize("kv_dtype", EIGHT_BITS)
def test_8_bits_are_stored_and_read_as_torch_does(kv_dtype: str) -> None:
    check_decode(shape(80, torch.bfloat16, kv_dtype=kv_dtype), 2048, (0, 33))
    check_decode(shape(48, torch.float32, group=2, kv_dtype=kv_dtype), 2048, (3, 17))
    check_decode(shape(16, torch.float32, kv_dtype=kv_dtype), 2048, (0, SPLIT_KEYS + 1))
    check_storage(shape(80, torch.float32, num_heads=2, kv_dtype=kv_dtype))
    check_copies(shape(48, torch.float32, num_heads=2, kv_dtype=kv_dtype))


@pytest.mark.parametrize("kv_dtype", ["auto", *EIGHT_BITS])
def test_how_far_decoding_is_from_float64(kv_dtype: str) -> None:
    """Of keys that float32 holds, before they are rounded: what 8 bits cost one attention, and the kernel beside it."""
    sizes, numbers = shape(64, torch.float32, num_heads=2, kv_dtype=kv_dtype), torch.Generator(DEVICE).manual_seed(1)
    query = torch.randn((1, 2, 64), generator=numbers, device=DEVICE)
    vectors = torch.randn((2, 9, 2, 16, 64), generator=numbers, device=DEVICE)
    tables, at = torch.arange(9, device=DEVICE, dtype=torch.int32)[None], torch.tensor([90], device=DEVICE)
    slots = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    exact = decode_by_sdpa(query.double(), vectors.double(), tables, slots, at, 0.125, 1)
    pages, scales = (vectors.clone(), None) if sizes.eight_bits is None else quantize(vectors, sizes.eight_bits)
    found = decode.paged_decode(query, pages, tables, slots, at, 0.125, 1, scales)
    distance = ((found - exact).norm() / exact.norm()).item()
    print(f"{kv_dtype}: {distance:.1e} from float64")
    assert distance < {"auto": 1e-6, "int8": 2e-2, "fp8": 6e-2}[kv_dtype]


def test_the_trials_see_a_fault_of_the_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of another token, and one that is not stored."""
    sizes = shape(48, torch.bfloat16, kv_dtype="int8")
    attend, store = decode.paged_decode, keys_values.store
    monkeypatch.setattr(decode, "paged_decode", lambda *given: attend(*given[:7], given[7].roll(1, dims=-1)))
    monkeypatch.setattr(keys_values, "store", lambda *given: store(*given[:4], given[4].clone(), *given[5:]))
    with pytest.raises(Unsupported, match=r"off by .* keys"):
        check_decode(sizes, 2048, (40, 17, 18))
    with pytest.raises(Unsupported, match=r"off by .* in keys"):
        check_storage(sizes)
