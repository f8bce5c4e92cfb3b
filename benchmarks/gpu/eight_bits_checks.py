"""The part of `benchmarks/gpu/main.py --check` that is about 8 bits: keys and values in int8 and fp8.

The reference is the same model in transformers, with its keys and values rounded before it attends to them.
"""

from collections.abc import Callable

import torch

from benchmarks.gpu.answers import answers, compare, generate_alone, mixed, require, stats_of
from benchmarks.gpu.work import Shape, make_engine, random_model
from benchmarks.kv_cost import by_vector, round_keys_and_values
from dolly_batch.engine.continuous.cache import CacheShape
from dolly_batch.engine.continuous.gpu.engine import GpuEngine
from dolly_batch.engine.continuous.gpu.pages import Pages
from dolly_batch.engine.eight_bits import EIGHT_BITS
from dolly_batch.engine.protocol import Engine
from dolly_batch.engine.weights.loading import LoadedModel
from dolly_batch.models.sizing import FP8_FROM

_SHAPES = {torch.float32: Shape(160, 2, 2, vocab_size=1200), torch.bfloat16: Shape(256, 2, 2, vocab_size=1200)}
_SPREAD, _ROOMY = 0.2, 2**28


def keys_in(kv_dtype: str, dtype: torch.dtype) -> Callable[[torch.device], str]:
    """Greedy answers are those of transformers over rounded keys and values; alone and after other rows the same."""

    def check(device: torch.device) -> str:
        if kv_dtype == "fp8" and device.type == "cuda" and torch.cuda.get_device_capability(device) < FP8_FROM:
            return "this GPU has no fp8"
        shape = _SHAPES[dtype]
        loaded, rounded = (random_model(shape, device, dtype, _SPREAD) for _ in range(2))
        rounding = by_vector(EIGHT_BITS[kv_dtype])
        round_keys_and_values(rounded.model, rounding, rounding)
        requests = mixed(device, shape, 24)
        reference = {request.key: generate_alone(rounded, request) for request in requests}
        engine = _engine(loaded, kv_dtype)
        found = answers(engine, requests)
        told = compare(rounded, requests, reference, found)
        for request in requests[::6]:
            alone = answers(engine, [request])
            compare(rounded, [request], {request.key: found[request.key].token_ids}, alone)
        own = answers(make_engine(loaded, kv_bytes=_ROOMY), requests)
        others = sum(own[key].token_ids != found[key].token_ids for key in own)
        require(stats_of(engine).get("num_preempted", 0) == 0, "rows were preempted")
        return f"{told}; {others} of {len(own)} rows differ from those of {str(dtype).removeprefix('torch.')} keys"

    return check


def _engine(loaded: LoadedModel, kv_dtype: str) -> Engine:
    """As a job gets it; on a CPU, where a job gets none, the same without kernels."""
    if loaded.device.type == "cuda":
        return make_engine(loaded, kind="fast", kv_dtype=kv_dtype, kv_bytes=_ROOMY)
    pages = Pages(CacheShape.of(loaded, kv_dtype), _ROOMY, max_sequences=64, max_positions=2048)
    return GpuEngine(loaded, pages, max_sequences=64)


EIGHT_BITS_CHECKS: dict[str, Callable[[torch.device], str]] = {
    f"keys in {kv_dtype}, {str(dtype).removeprefix('torch.')}": keys_in(kv_dtype, dtype)
    for kv_dtype in EIGHT_BITS
    for dtype in _SHAPES
}
