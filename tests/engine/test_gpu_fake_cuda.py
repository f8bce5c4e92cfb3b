"""A whole launch with CUDA tensors that are fake: devices, dtypes and shapes are real, numbers and the GPU are not.

Torch refuses there what is wrong on a GPU: an operation between host and device, and a number that the host reads.
"""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.gpu.between import LAUNCHES, Between
from benchmarks.gpu.work import Shape, random_model
from dolly_batch.engine import sampling
from dolly_batch.engine.continuous.cache import CacheShape
from dolly_batch.engine.continuous.gpu import attention, graphs, layer_pages, pages
from dolly_batch.engine.continuous.gpu import engine as gpu
from dolly_batch.engine.continuous.gpu.attention import Packing
from dolly_batch.engine.kernels.gpu import copy_pages as copying
from dolly_batch.engine.kernels.gpu import decode, gate, gather, keys_values, norms, sample
from dolly_batch.engine.weights.loading import LoadedModel
from dolly_batch.models.config import check_config
from dolly_batch.models.folder import ModelFolder
from dolly_batch.records import GenerationParams, Request
from dolly_batch.tiny import MODEL_FOLDER
from dolly_batch.tokenizer import TextEncoder

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
        self.num_bytes = 0  # that torch's operations but products read and write

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        result = function(*args, **(kwargs or {}))
        if name not in COSTS_NOTHING:
            self.counts[name] += 1
            self.num_bytes += 0 if name in ("mm", "addmm", "index_put_") else _bytes((args, result))
        return result


def _bytes(found: Any) -> int:
    """Of all tensors; numbers that are expanded are read once."""
    if isinstance(found, Tensor):
        sizes = [size for size, stride in zip(found.shape, found.stride(), strict=True) if stride]
        return math.prod(sizes) * found.element_size()
    return sum(map(_bytes, found)) if isinstance(found, (list, tuple)) else 0


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


def random_llama(num_layers: int) -> LoadedModel:
    """Two query heads for each head of keys."""
    sizes = {"hidden_size": 256, "num_hidden_layers": num_layers, "num_attention_heads": 4, "intermediate_size": 512}
    sizes |= {"num_key_value_heads": 2, "max_position_embeddings": 2048, "vocab_size": 304}
    folder = ModelFolder(Path("llama"), check_config(Path("config.json"), {"model_type": "llama", **sizes}), ())
    with CUDA:
        model: Any = AutoModelForCausalLM.from_config(LlamaConfig(**sizes), dtype=torch.bfloat16)
    return LoadedModel(model.eval(), TextEncoder.from_folder(MODEL_FOLDER), CUDA, torch.bfloat16, folder)


def launch(
    monkeypatch: pytest.MonkeyPatch,
    num_layers: int,
    kv_dtype: str = "auto",
    is_fused: bool = True,
    architecture: str = "gpt_neox",
    moved: list[int] | None = None,
) -> list[Counter[str]]:
    """What three steps launch: prompts; decoding rows and prompts that share a prefix; decoding rows alone.

    `moved` gets the bytes that torch's operations move in each.
    """
    found = []
    counts: Counter[str] = Counter()
    for module, name in (
        *((decode, "_attend"), (decode, "_attend_group"), (decode, "_join"), (sample, "_choose")),
        (copying, "_copy_pages"),
        *((keys_values, "_store"), (gather, "_gather"), (norms, "_add_norms"), (gate, "_gate")),
    ):
        monkeypatch.setattr(module, name, Kernel(counts, name))
    for module in (sampling, attention, layer_pages, pages, graphs):
        monkeypatch.setattr(
            module, "upload", lambda values, dtype, device: torch.tensor(values, dtype=dtype, device=device)
        )
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, device: module)  # fake parameters cannot be moved
    monkeypatch.setattr(decode, "_has_products", lambda device: True)
    monkeypatch.setattr(gpu, "Download", NoDownload)
    monkeypatch.setattr(gpu, "Timestamp", NoTimestamp)
    with FakeTensorMode(), torch.no_grad():
        if architecture == "llama":
            loaded = random_llama(num_layers)
        else:
            loaded = random_model(Shape(160, num_layers, 2, vocab_size=304), CUDA, torch.bfloat16)
        shape = CacheShape.of(loaded, kv_dtype)
        cache = pages.Pages(shape, 2**22, max_sequences=8, max_positions=2048, prefill=prefill, use_kernel=True)
        engine = gpu.GpuEngine(loaded, cache, max_sequences=8, use_kernels=True, is_fused=is_fused)
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
            if moved is not None:
                moved.append(operations.num_bytes)
    assert all(number for number in found)
    return found


def a_layer(monkeypatch: pytest.MonkeyPatch, *given: Any) -> list[Counter[str]]:
    """What a layer adds to each of the steps."""
    two, three = (launch(monkeypatch, num_layers, *given) for num_layers in (2, 3))
    return [more - less for more, less in zip(three, two, strict=True)]


def test_nothing_crosses_between_host_and_device_and_a_layer_has_its_budget_of_launches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = launch(monkeypatch, 2)
    assert steps[0]["_attend"] == 0
    assert steps[1]["_attend"] == steps[1]["_join"] == steps[2]["_attend"] == steps[2]["_join"] == 2
    assert steps[2]["_choose"] == 1
    assert steps[1]["_copy_pages"] == 1  # for all rows and layers
    prompts, both, decoding = a_layer(monkeypatch)
    for each in (prompts, decoding):
        assert each["_store"] == each["_add_norms"] == 1
        assert each["addmm"] == 4
    assert prompts["_gather"] == decoding["_gather"] == 0
    known = LAUNCHES[False, True]
    assert prompts.total() == known.prompts - 1, prompts  # these continue nothing
    assert decoding.total() == known.decoding == 9, decoding
    assert both.total() == known.both == 12, both  # storing twice, the cached keys, two kernels, joining both


def test_a_layer_that_is_gated_has_its_budget_too(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, both, decoding = a_layer(monkeypatch, "int8", True, "llama")
    assert decoding["_attend_group"] == decoding["_gate"] == decoding["_store"] == 1
    assert decoding["_add_norms"] == 2
    known = LAUNCHES[True, True]
    assert [each.total() for each in (prompts, both, decoding)] == [known.prompts - 1, known.both, known.decoding]


def test_modules_as_they_are_take_twice_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, both, decoding = a_layer(monkeypatch, "auto", False)
    assert decoding.total() <= 24, decoding
    assert prompts.total() <= 24, prompts
    assert both.total() <= prompts.total() + 5, both


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama"])
@pytest.mark.parametrize("is_fused", [False, True])
def test_the_calculator_counts_the_bytes_that_are_moved(
    architecture: str, is_fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of eight rows that decode; weights and angles are small beside them, the kernels' own bytes are left out."""
    moved: list[list[int]] = [[], []]
    for num_layers, each in ((2, moved[0]), (3, moved[1])):
        launch(monkeypatch, num_layers, "auto", is_fused, architecture, each)
    is_llama, hidden_size = architecture == "llama", 256 if architecture == "llama" else 160
    found = (moved[1][2] - moved[0][2]) / (8 * 2 * hidden_size)
    between = Between(is_llama, False, kv_share=0.5 if is_llama else 1.0, inner=2.0 if is_llama else 4.0)
    counted = between.decoding - 4 * between.kv_share  # which the kernels store
    if is_fused:
        counted = 0.0 if is_llama else between._inner  # an activation, and nothing else
    assert counted <= found <= counted + 1.5


def test_8_bits_of_keys_and_values_cost_no_launch_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding is on the way into the pages, restoring on the way out."""
    own, eight = (launch(monkeypatch, 2, kv_dtype) for kv_dtype in ("auto", "int8"))
    for step, (ours, plain) in enumerate(zip(eight, own, strict=True)):
        assert ours - plain == Counter({"_copy_pages": 1} if step == 1 else {})  # of numbers and of scales


def test_the_guard_sees_a_crossing_and_a_number_that_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    right = sampling.uniform
    monkeypatch.setattr(sampling, "uniform", lambda *args: right(*args).cpu() + right(*args))
    with pytest.raises(RuntimeError, match="device"):
        launch(monkeypatch, 1)
    monkeypatch.setattr(sampling, "uniform", lambda *args: right(*args) * float(right(*args).sum()))
    with pytest.raises(Exception, match=r"item|data-dependent|_local_scalar_dense"):
        launch(monkeypatch, 1)
