"""The int8 part of `benchmarks/gpu/main.py --check`: kernels to the bit, layers in CUDA graphs, models in int8."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.answers import answers, compare, generate_alone, mixed, require, save
from benchmarks.gpu.work import Shape, make_engine, random_model
from dolly_batch.engine.eight_bits import quantize as quantize_vectors
from dolly_batch.engine.load import load_engine
from dolly_batch.engine.weights import int8_gpu
from dolly_batch.engine.weights.int8_cpu import PLAIN, Int8Linear, quantize
from dolly_batch.engine.weights.int8_gpu import CudaInt8Linear, load_kernels
from dolly_batch.engine.weights.loading import load_model
from dolly_batch.records import EngineSpec

_ROWS = (1, 8, 16, 17, 33, 64, 100, 128, 335, 511, 513, 1030)


def kernels_to_the_bit(device: torch.device) -> str:
    """Quantized rows and fused products equal exact integer arithmetic, at every number of rows and odd sizes."""
    if device.type != "cuda":
        return "only on a GPU"
    kernels = load_kernels(device)
    if kernels is None:
        return "no Triton on this GPU: torch's own operations are used"
    for inputs, outputs in ((2560, 7680), (5120, 5120), (208, 80), (20_480, 528)):
        weight = torch.randint(-127, 128, (outputs, inputs), device=device, dtype=torch.int8)
        weight[0] = 127
        scales = torch.rand(outputs, device=device) + 0.5
        for num_rows in _ROWS:
            rows = torch.randn(num_rows, inputs, device=device) * torch.rand(num_rows, 1, device=device)
            quantized, row_scales = kernels.quantize_rows(rows.bfloat16(), inputs)
            expected, expected_scales = quantize_vectors(rows.bfloat16(), torch.int8)
            what = f"{num_rows} rows, {inputs} to {outputs}"
            require(torch.equal(row_scales, expected_scales), f"{what}: scales differ")
            require(torch.equal(quantized, expected), f"{what}: integers differ")
            sums = (quantized.double() @ weight.double().t()).int()  # exact: far below 2^53
            exact = sums.float() * scales * row_scales[:, None] + scales
            for dtype in (torch.float32, torch.bfloat16):
                found = kernels.multiply(quantized, row_scales, weight, scales, scales, dtype)
                require(torch.equal(found, exact.to(dtype)), f"{what}: fused {dtype} product differs")
                found = kernels.scale_sums(sums, row_scales, scales, scales, dtype)
                require(torch.equal(found, exact.to(dtype)), f"{what}: scaled {dtype} sums differ")
            if num_rows > int8_gpu.MAX_FUSED_ROWS:  # fewer are never cuBLAS's where there are kernels
                require(torch.equal(torch._int_mm(quantized, weight.t()), sums), f"{what}: cuBLAS differs")
    return f"{len(_ROWS)} numbers of rows, 4 sizes"


def layers_to_the_bit(device: torch.device) -> str:
    """Layers on the device give the bits of the CPU's, with and without Triton, at both sides of the threshold."""
    kernels = load_kernels(device) if device.type == "cuda" else None
    linear = nn.Linear(320, 200)
    reference = Int8Linear(linear, PLAIN, torch.float32)
    for used in {kernels, None}:
        layer = CudaInt8Linear(linear, device, torch.float32, torch.float32, used)
        for num_rows in (1, 40, int8_gpu.MAX_FUSED_ROWS + 9):
            rows = torch.randn(1, num_rows, 320)
            found = layer(rows.to(device)).cpu()
            require(torch.equal(found, reference(rows)), f"{num_rows} rows, kernels {used}: bits differ")
    return "the CPU's bits"


def in_cuda_graphs(device: torch.device) -> str:
    """A layer can be recorded and replayed with other inputs."""
    if device.type != "cuda":
        return "only on a GPU"
    kernels = load_kernels(device)
    for num_rows in (8, 335, int8_gpu.MAX_FUSED_ROWS + 8):
        linear = nn.Linear(512, 1536, device=device, dtype=torch.bfloat16)
        layer = CudaInt8Linear(linear, device, torch.bfloat16, torch.bfloat16, kernels)
        record_and_replay(layer, torch.randn(num_rows, 512, device=device, dtype=torch.bfloat16))
    return "recorded and replayed at 8, 335 and more rows"


def record_and_replay(layer: nn.Module, inputs: Tensor) -> None:
    """Record a layer in a CUDA graph, and require of replays with other inputs the layer's own bits."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.inference_mode(), torch.cuda.stream(side):
        layer(inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph: Any = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        outputs = layer(inputs)
    for _ in range(3):
        inputs.copy_(torch.randn_like(inputs))
        graph.replay()
        with torch.inference_mode():
            expected = layer(inputs)
        require(torch.equal(outputs, expected), f"{len(inputs)} rows: replayed bits differ")


def near_float(device: torch.device) -> str:
    """A model in int8 is near itself in float32: KL of the next token, on random weights as they are trained from."""
    loaded = random_model(Shape(256, 6, 4, vocab_size=5000), device, torch.float32)
    ids = torch.randint(0, 5000, (4, 64), device=device)
    with torch.inference_mode():
        wanted = loaded.model(input_ids=ids, use_cache=False).logits.double().log_softmax(-1)
        quantize(loaded.model, device)
        found = loaded.model(input_ids=ids, use_cache=False).logits.double().log_softmax(-1)
    divergence = (wanted.exp() * (wanted - found)).sum(-1).mean().item()
    require(0 < divergence <= 1e-3, f"KL {divergence:.1e}")
    return f"KL {divergence:.1e}"


def engine_in_int8(device: torch.device) -> str:
    """The engine over a model in int8 answers as Hugging Face's modules over the same layers, but for near ties."""
    shape = Shape(160, 2, 2, vocab_size=1200)
    loaded = random_model(shape, device, torch.float32, 0.2)
    quantize(loaded.model, device)
    requests = mixed(device, shape, 16)
    reference = {request.key: generate_alone(loaded, request) for request in requests}
    engine = make_engine(loaded, quantization="int8", kv_bytes=2**28)
    return compare(loaded, requests, reference, answers(engine, requests))


def loads_layer_by_layer(device: torch.device) -> str:
    """On its way from the files into int8 a model never takes much more of the device than it does in int8."""
    shape = Shape(1024, 12, 8, vocab_size=8000) if device.type == "cuda" else Shape(128, 2, 4, vocab_size=1600)
    with tempfile.TemporaryDirectory() as name:
        folder = save(random_model(shape, torch.device("cpu"), torch.bfloat16), Path(name))
        if device.type != "cuda":
            spec = EngineSpec("auto", str(folder), quantization="int8", processes=1, kv_bytes=2**28)
            found = answers(load_engine(spec, str(device)), mixed(device, shape, 4))
            return f"{len(found)} rows"
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        loaded = load_model(folder, device=str(device), quantization="int8")
        peak = torch.cuda.max_memory_allocated(device) - before
        left = torch.cuda.memory_allocated(device) - before
        in_float = 2 * (shape.layer_weights + 2 * shape.head_weights)
        spec = EngineSpec("auto", str(folder), quantization="int8", processes=1, kv_bytes=2**28)
        found = answers(load_engine(spec, str(device)), mixed(device, shape, 8))
    del loaded
    told = f"peak {peak >> 20} MiB, then {left >> 20}; in bfloat16 it would be {in_float >> 20}"
    require(peak <= left + (200 << 20) and left < 0.62 * in_float, told)
    require(all(completion.failure is None for completion in found.values()), "rows failed")
    return told


INT8_CHECKS: dict[str, Callable[[torch.device], str]] = {
    "int8 kernels": kernels_to_the_bit,
    "int8 layers": layers_to_the_bit,
    "int8 in CUDA graphs": in_cuda_graphs,
    "int8 near float32": near_float,
    "int8 in the engine": engine_in_int8,
    "int8 from the files": loads_layer_by_layer,
}
