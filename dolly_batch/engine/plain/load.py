"""Whether the plain engine runs a model, and loading it. Imports torch only to load."""

from collections.abc import Callable

from dolly_batch.engine.continuous.load import why_not_continuous
from dolly_batch.engine.processes.machine import usable_cores
from dolly_batch.engine.protocol import Engine
from dolly_batch.models.architectures import Architecture
from dolly_batch.models.config import ModelConfig
from dolly_batch.records import EngineSpec


def runs(spec: EngineSpec, architecture: Architecture, device: str) -> str | None:
    """Why the plain engine cannot run this, None when it can: it lacks quantized weights, keys and values alone."""
    if spec.gpus > 1 and device == "cpu":
        return f"model.gpus is {spec.gpus}, and there are no GPUs; set model.gpus: 1"
    reason = why_not_continuous(spec, architecture, device) or "engine.kind plain"
    if spec.kv_dtype != "auto":
        where = "a CPU" if device == "cpu" else reason
        return f"engine.kv_dtype is {spec.kv_dtype!r}, which {where} cannot have; use auto"
    if spec.quantization == "none":
        return None
    if spec.quantization == "fp8" and device == "cpu":
        return "model.quantization is 'fp8', which a CPU cannot have; use int8 or none"
    return f"model.quantization is {spec.quantization!r}, which {reason} cannot have; use none"


def load(spec: EngineSpec, config: ModelConfig, device: str, heartbeat: Callable[[], None]) -> Engine:
    """Load the model, onto one device or several GPUs, and return its engine."""
    import torch

    from dolly_batch.engine.plain.engine import PlainEngine
    from dolly_batch.engine.weights.loading import load_from_spec

    if spec.num_threads is not None:
        torch.set_num_threads(spec.num_threads)
    elif spec.max_cores is not None:
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores(spec)))
    return PlainEngine(load_from_spec(spec, device), max_batch_tokens=spec.max_batch_tokens, heartbeat=heartbeat)
