"""A whole launch with CUDA tensors that are fake: devices, dtypes and shapes are real, numbers and the GPU are not.

Torch refuses there what is wrong on a GPU: an operation between host and device, and a number that the host reads.
"""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from benchmarks.gpu.work import Shape, random_model
from dolly_batch.engine import sampling
from dolly_batch.engine.continuous.cache import CacheShape
from dolly_batch.engine.continuous.gpu import attention, graphs, layer_pages, pages
from dolly_batch.engine.continuous.gpu import engine as gpu
from dolly_batch.engine.continuous.gpu.attention import Packing
from dolly_batch.engine.kernels.gpu import copy_pages as copying
from dolly_batch.engine.kernels.gpu import decode, eight_bits, sample
from dolly_batch.records import GenerationParams, Request

CUDA = torch.device("cuda:0")
COSTS_NOTHING = {
    *(
        "view",
        "_unsafe_view",
        "reshape",
        "transpose",
        "t",
        "unsqueeze",
        "squeeze",
        "expand",
        "slice",
        "select",
        "split",
    ),
    *("unbind", "alias", "detach", "empty", "new_empty", "empty_like", "as_strided", "permute", "split_with_sizes"),
    *("lift_fresh", "empty_strided", "chunk", "narrow", "device"),
}


class Operations(TorchDispatchMode):
    """Counts what would be launched."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name not in COSTS_NOTHING:
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))


class Kernel:
    """Stands for a Triton kernel: counts launches, and refuses a pointer that is not the GPU's."""

    def __init__(self, counts: Counter[str], name: str) -> None:
        self.counts, self.name = counts, name

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*args: Any, **constants: Any) -> None:
            assert all(arg.device == CUDA for arg in args if isinstance(arg, Tensor)), self.name
            assert all(size > 0 for size in grid)
            self.counts[self.name] += 1

        return launch


class NoDownload:
    def __init__(self, tensor: Tensor) -> None:
        assert tensor.dtype == torch.int64
        assert tensor.device == CUDA


class NoTimestamp:
    def __init__(self, device: torch.device) -> None:
        assert device == CUDA


def prefill(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scaling: float) -> Tensor:
    """In place of `varlen_attn`, one launch."""
    assert packing.query_starts.device == packing.key_starts.device == query.device
    return torch.empty_like(query)


def launch(monkeypatch: pytest.MonkeyPatch, num_layers: int, kv_dtype: str = "auto") -> list[Counter[str]]:
    """What three steps launch: prompts; decoding rows and prompts that share a prefix; decoding rows alone."""
    found = []
    counts: Counter[str] = Counter()
    for module, name in (
        *((decode, "_attend"), (decode, "_join"), (sample, "_choose"), (copying, "_copy_pages")),
        *((eight_bits, "_store"), (eight_bits, "_gather")),
    ):
        monkeypatch.setattr(module, name, Kernel(counts, name))
    for module in (sampling, attention, layer_pages, pages, graphs):
        monkeypatch.setattr(
            module, "upload", lambda values, dtype, device: torch.tensor(values, dtype=dtype, device=device)
        )
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, device: module)  # fake parameters cannot be moved
    monkeypatch.setattr(gpu, "Download", NoDownload)
    monkeypatch.setattr(gpu, "Timestamp", NoTimestamp)
    with FakeTensorMode(), torch.no_grad():
        loaded = random_model(Shape(160, num_layers, 2, vocab_size=304), CUDA, torch.bfloat16)
        shape = CacheShape.of(loaded, kv_dtype)
        cache = pages.Pages(shape, 2**22, max_sequences=8, max_positions=2048, prefill=prefill, use_kernel=True)
        engine = gpu.GpuEngine(loaded, cache, max_sequences=8, use_kernels=True)
        params = GenerationParams(9, top_k=20)
        for step_number in range(3):
            rows = [Request(f"{step_number} {row}", (*range(5, 40), row), params, row) for row in range(4)]
            for row in rows[: 1 if step_number == 0 else 4 if step_number == 1 else 0]:
                engine.submit(row)
            step = engine._scheduler.next_step()
            with Operations() as operations:
                launched = engine._launch(step)
            engine._scheduler.launched(step, launched.sequences)
            if step_number == 0:  # its prompt may be shared
                engine._scheduler.collected(launched.sequences, [7], [True])
            found.append(operations.counts + counts)
            counts.clear()
    assert all(number for number in found)
    return found


def test_nothing_crosses_between_host_and_device_and_a_layer_has_its_budget_of_launches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    two, three = (launch(monkeypatch, num_layers) for num_layers in (2, 3))
    prompts, both, decoding = (more - less for more, less in zip(three, two, strict=True))
    assert two[0]["_attend"] == 0
    assert two[1]["_attend"] == two[1]["_join"] == two[2]["_attend"] == two[2]["_join"] == 2
    assert two[2]["_choose"] == 1
    assert two[1]["_copy_pages"] == three[1]["_copy_pages"] == 1  # for all rows and layers
    assert decoding["_attend"] == decoding["_join"] == 1
    assert prompts["index_put_"] + prompts["_index_put_impl_"] == 2
    assert decoding.total() <= 23, decoding
    assert prompts.total() <= 24, prompts
    assert both.total() <= prompts.total() + 5, both  # the gathered keys and values, the two kernels, and joining both


def test_8_bits_of_keys_and_values_cost_no_launch_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding is on the way into the pages, restoring on the way out: a kernel each for keys and for values."""
    own, eight = ([launch(monkeypatch, layers, kv_dtype) for layers in (2, 3)] for kv_dtype in ("auto", "int8"))
    for step, (two, three) in enumerate(zip(*eight, strict=True)):
        a_layer = three - two
        assert a_layer["_store"] == (2 if step < 2 else 0)
        assert a_layer["_gather"] == (2 if step == 1 else 0)
        assert a_layer["_attend"] == (1 if step else 0)
        assert a_layer.total() <= (own[1][step] - own[0][step]).total()
    assert eight[0][1]["_copy_pages"] == 2  # of numbers and of scales


def test_the_guard_sees_a_crossing_and_a_number_that_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    right = sampling.uniform
    monkeypatch.setattr(sampling, "uniform", lambda *args: right(*args).cpu() + right(*args))
    with pytest.raises(RuntimeError, match="device"):
        launch(monkeypatch, 1)
    monkeypatch.setattr(sampling, "uniform", lambda *args: right(*args) * float(right(*args).sum()))
    with pytest.raises(Exception, match=r"item|data-dependent|_local_scalar_dense"):
        launch(monkeypatch, 1)
