"""Whether the continuous engine (`engine.kind: fast`) runs a model, and loading it. Imports torch only to load."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from dolly_batch.engine.processes.machine import available_bytes, fit_to_machine
from dolly_batch.engine.processes.pool import WorkerPool
from dolly_batch.engine.protocol import Engine, no_heartbeat
from dolly_batch.models.architectures import Architecture
from dolly_batch.models.config import ModelConfig
from dolly_batch.records import EngineSpec

if TYPE_CHECKING:
    from dolly_batch.engine.weights.loading import LoadedModel

log = logging.getLogger("dolly_batch.engine")

_MEMORY_FRACTION = 0.5  # of a CPU's memory, which other programs use too


def runs(spec: EngineSpec, architecture: Architecture, device: str) -> str | None:
    """Why the continuous engine cannot run this, None when it can.

    On a GPU its parts are tested when the model is loaded; see `gpu.load`.
    """
    if spec.gpus > 1 and device == "cpu":
        return f"model.gpus is {spec.gpus}, and there are no GPUs; set model.gpus: 1"
    if spec.kv_dtype != "auto" and device == "cpu":
        return f"engine.kv_dtype is {spec.kv_dtype!r}, which is for GPUs; use auto"
    if spec.quantization == "fp8" and device == "cpu":
        return "model.quantization is 'fp8', which is for GPUs; use int8 or none"
    reason = why_not_continuous(spec, architecture, device)
    return reason and f"engine.kind is 'fast', which does not run {reason} yet; use auto or plain"


def why_not_continuous(spec: EngineSpec, architecture: Architecture, device: str) -> str | None:
    """What the continuous engine lacks for this: the object of "does not run"."""
    if spec.gpus > 1:
        return "a model over several GPUs"
    if not architecture.continuous or (spec.quantization != "none" and not architecture.int8):
        return f"a {architecture.title} model"
    if spec.dtype == "float64" and device != "cpu":
        return "float64 on a GPU"
    return None


def load(spec: EngineSpec, config: ModelConfig, device: str, heartbeat: Callable[[], None]) -> Engine:
    """Load the model and return its engine: on a GPU, in this process, or in several processes on a CPU."""
    if not device.startswith("cpu"):
        from dolly_batch.engine.weights.loading import load_from_spec

        return continuous_engine(spec, load_from_spec(spec, device), heartbeat)
    spec = fit_to_machine(spec, config)
    if spec.processes is not None and spec.processes > 1:
        return WorkerPool(spec, spec.processes, heartbeat)
    # Imported here, so that neither planning nor a process that only leads others needs torch.
    import torch

    torch.set_num_threads(spec.num_threads or 1)
    return continuous_engine(spec, load_packed(spec), heartbeat)


def load_packed(spec: EngineSpec) -> "LoadedModel":
    """Load the model onto the CPU with packed weights, in int8 if the spec says so, and test its batch invariance."""
    import torch

    from dolly_batch.engine.continuous.cpu.invariance import is_batch_invariant
    from dolly_batch.engine.memory import trim_heap
    from dolly_batch.engine.weights.loading import load_from_spec
    from dolly_batch.engine.weights.norms import compile_norms
    from dolly_batch.engine.weights.onednn import multiply_in_blocks, pack

    loaded = load_from_spec(spec, "cpu")
    if spec.quantization == "none":
        pack(loaded.model)
    compile_norms(loaded.model)
    invariant = is_batch_invariant(loaded)
    if not invariant and loaded.dtype == torch.bfloat16:
        multiply_in_blocks(loaded.model)
        invariant = is_batch_invariant(loaded)
    if not invariant:
        log.warning("on this machine a row's answer may change with its neighbours, in the last bits of its logits")
    trim_heap()
    return loaded


def continuous_engine(
    spec: EngineSpec, loaded: "LoadedModel", heartbeat: Callable[[], None] = no_heartbeat, num_sharing: int = 1
) -> Engine:
    """The continuous engine over a loaded model; on a CPU it is one of `num_sharing` that share the memory.

    On a GPU where a part of it fails, and it was not asked for by name, the plain one.
    """
    if loaded.device.type == "cuda":
        from dolly_batch.engine.continuous.gpu.load import gpu_engine

        return gpu_engine(spec, loaded, heartbeat)
    from dolly_batch.engine.continuous.cache import CacheShape
    from dolly_batch.engine.continuous.cpu.pools import KVPools
    from dolly_batch.engine.continuous.engine import ContinuousEngine

    shape = CacheShape.of(loaded)
    fraction = _MEMORY_FRACTION if spec.memory_fraction is None else spec.memory_fraction
    num_bytes = spec.kv_bytes or int(available_bytes() * fraction)
    num_bytes //= num_sharing
    if spec.max_batch_tokens is not None:
        num_bytes = min(num_bytes, spec.max_batch_tokens * shape.token_bytes)
    pools = KVPools.with_kernels(shape, num_bytes)
    return ContinuousEngine(loaded, pools, prefix_sharing=spec.prefix_sharing, heartbeat=heartbeat)
