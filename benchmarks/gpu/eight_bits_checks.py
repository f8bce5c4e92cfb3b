"""The part of `benchmarks/gpu/main.py --check` that is about 8 bits: keys and values in int8 and fp8, weights in fp8.

The reference is the same model in transformers, with its keys and values rounded before it attends to them, or with the
same layers.
"""

from collections.abc import Callable

import torch
from torch import nn

from benchmarks.gpu.answers import answers, compare, generate_alone, mixed, require, stats_of
from benchmarks.gpu.int8_checks import record_and_replay
from benchmarks.gpu.work import Shape, make_engine, random_model
from benchmarks.int8_cost import put_into_fp8
from benchmarks.kv_cost import by_vector, round_keys_and_values
from dolly_batch.engine.continuous.cache import CacheShape
from dolly_batch.engine.continuous.gpu.engine import GpuEngine
from dolly_batch.engine.continuous.gpu.pages import Pages
from dolly_batch.engine.eight_bits import EIGHT_BITS, restore
from dolly_batch.engine.eight_bits import quantize as quantize_vectors
from dolly_batch.engine.protocol import Engine
from dolly_batch.engine.weights import fp8_gpu
from dolly_batch.engine.weights.fp8_gpu import FP8, CudaFp8Linear
from dolly_batch.engine.weights.int8_cpu import quantize
from dolly_batch.engine.weights.loading import LoadedModel
from dolly_batch.models.sizing import FP8_FROM

_SHAPES = {torch.float32: Shape(160, 2, 2, vocab_size=1200), torch.bfloat16: Shape(256, 2, 2, vocab_size=1200)}
_SPREAD, _ROOMY = 0.2, 2**28
_NO_FP8 = "this GPU has no fp8"


def keys_in(kv_dtype: str, dtype: torch.dtype) -> Callable[[torch.device], str]:
    """Greedy answers are those of transformers over rounded keys and values; alone and after other rows the same."""

    def check(device: torch.device) -> str:
        if kv_dtype == "fp8" and _lacks_fp8(device):
            return _NO_FP8
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


def fp8_layers(device: torch.device) -> str:
    """Layers multiply what was rounded, in float64 but for bfloat16's last bit, at any number of rows."""
    if _lacks_fp8(device):
        return _NO_FP8
    kernels, worst = fp8_gpu.load_kernels(device) if device.type == "cuda" else None, 0.0
    for inputs, outputs in ((2560, 640), (320, 200)):
        linear = nn.Linear(inputs, outputs, device=device, dtype=torch.bfloat16)
        weight = restore(*quantize_vectors(linear.weight.detach(), FP8), torch.float64)
        for used in {kernels, None}:
            layer = CudaFp8Linear(linear, device, torch.bfloat16, used)
            for num_rows in (1, 16, 17, 100, 335, 1030):
                rows = torch.randn(num_rows, inputs, device=device).bfloat16()
                exact = restore(*quantize_vectors(rows, FP8), torch.float64) @ weight.t() + linear.bias.double()
                found = layer(rows).double()
                worst = max(worst, ((found - exact).norm() / exact.norm()).item())
    require(worst < 2**-8, f"off by {worst:.1e}")
    return f"at most {worst:.1e} off"


def fp8_in_cuda_graphs(device: torch.device) -> str:
    """A layer can be recorded and replayed with other inputs."""
    if device.type != "cuda" or _lacks_fp8(device):
        return "only on a GPU that has fp8"
    linear = nn.Linear(512, 1536, device=device, dtype=torch.bfloat16)
    layer = CudaFp8Linear(linear, device, torch.bfloat16, fp8_gpu.load_kernels(device))
    for num_rows in (8, 335, 1030):
        record_and_replay(layer, torch.randn(num_rows, 512, device=device, dtype=torch.bfloat16))
    return "recorded and replayed at 8, 335 and 1,030 rows"


def fp8_near_float(device: torch.device) -> str:
    """A model in fp8 is near itself in float32: KL of the next token, on random weights as they are trained from."""
    if _lacks_fp8(device):
        return _NO_FP8
    loaded = random_model(Shape(256, 6, 4, vocab_size=5000), device, torch.float32)
    ids = torch.randint(0, 5000, (4, 64), device=device)
    with torch.inference_mode():
        wanted = loaded.model(input_ids=ids, use_cache=False).logits.double().log_softmax(-1)
        _put_into_fp8(loaded)
        found = loaded.model(input_ids=ids, use_cache=False).logits.double().log_softmax(-1)
    divergence = (wanted.exp() * (wanted - found)).sum(-1).mean().item()
    require(0 < divergence <= 5e-3, f"KL {divergence:.1e}")
    return f"KL {divergence:.1e}"


def engine_in_fp8(device: torch.device) -> str:
    """The engine over a model in fp8 answers as Hugging Face's modules over the same layers, but for near ties."""
    if _lacks_fp8(device):
        return _NO_FP8
    shape = _SHAPES[torch.bfloat16]
    loaded = random_model(shape, device, torch.bfloat16, _SPREAD)
    _put_into_fp8(loaded)
    requests = mixed(device, shape, 16)
    reference = {request.key: generate_alone(loaded, request) for request in requests}
    quantization = "fp8" if device.type == "cuda" else "none"
    engine = make_engine(loaded, quantization=quantization, kv_bytes=_ROOMY)
    return compare(loaded, requests, reference, answers(engine, requests))


def _put_into_fp8(loaded: LoadedModel) -> None:
    """As a job's model is; on a CPU, where no job's is, the same layers."""
    if loaded.device.type == "cuda":
        quantize(loaded.model, loaded.device, quantization="fp8")
    else:
        put_into_fp8(loaded.model, loaded.dtype)


def _lacks_fp8(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) < FP8_FROM


EIGHT_BITS_CHECKS: dict[str, Callable[[torch.device], str]] = {
    f"keys in {kv_dtype}, {str(dtype).removeprefix('torch.')}": keys_in(kv_dtype, dtype)
    for kv_dtype in EIGHT_BITS
    for dtype in _SHAPES
} | {
    "fp8 layers": fp8_layers,
    "fp8 in CUDA graphs": fp8_in_cuda_graphs,
    "fp8 near float32": fp8_near_float,
    "fp8 in the engine": engine_in_fp8,
}
