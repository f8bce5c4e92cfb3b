"""From an `EngineSpec` to an engine: the one door for the engine host. Imports torch only where a model is loaded."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dolly_batch.engine.echo import EchoEngine
from dolly_batch.engine.processes.machine import available_bytes, fit_to_machine, may_have_gpu, usable_cores
from dolly_batch.engine.processes.pool import WorkerPool
from dolly_batch.engine.protocol import Engine, no_heartbeat
from dolly_batch.errors import ConfigError
from dolly_batch.models.folder import read_config
from dolly_batch.prompt import PromptEncoder
from dolly_batch.records import EngineSpec

if TYPE_CHECKING:
    from dolly_batch.engine.weights.loading import LoadedModel

log = logging.getLogger("dolly_batch.engine")

_MEMORY_FRACTION = 0.5  # of a CPU's memory, which other programs use too


def load_engine(spec: EngineSpec, device: str | None = None, heartbeat: Callable[[], None] = no_heartbeat) -> Engine:
    """Load the model that `spec` names and return its engine, ready for requests.

    `device` is a torch device such as `cuda:0` or `cpu`; None takes the first GPU, else the CPU. `heartbeat` is called
    at least once per generated token. An echo engine reads config.json and tokenizer.json and no weights; the fast one
    loads them in processes of its own where it has more than one.
    Raises ModelError when the folder cannot be run or is not the planned model, ConfigError for a setting that cannot
    work on this device.
    """
    config = read_config(Path(spec.model_folder))
    if spec.kind == "echo":
        encoder = PromptEncoder.from_folder(spec.model_folder)
        return EchoEngine(encoder, spec.echo_delay_s, config.max_positions, heartbeat)
    on_cpu = _is_cpu(device)
    if not runs_fast(spec, config.architecture, on_cpu=on_cpu):
        return _load_plain(spec, device, heartbeat)
    if not on_cpu:
        return fast_engine(spec, load_weights(spec, device), heartbeat)
    spec = fit_to_machine(spec, config)
    if spec.processes is not None and spec.processes > 1:
        return WorkerPool(spec, spec.processes, heartbeat)
    # Imported here, so that echo engines, planning and whoever only leads other processes need no torch.
    import torch

    torch.set_num_threads(spec.num_threads or 1)
    return fast_engine(spec, load_packed(spec), heartbeat)


def runs_fast(spec: EngineSpec, architecture: str, *, on_cpu: bool) -> bool:
    """Whether the fast engine runs this. Raises ConfigError when it was asked for by name, or int8 was, and can't.

    On a GPU what it needs there is tried when the model is loaded; see `gpu_load`.
    """
    if spec.gpus > 1 and on_cpu and spec.kind != "echo":
        raise ConfigError(f"model.gpus is {spec.gpus}, and there are no GPUs; set model.gpus: 1")
    reasons = {
        "a model over several GPUs": spec.gpus > 1,
        "a GPT-J model": architecture != "gpt_neox",
        "float64 on a GPU": spec.dtype == "float64" and not on_cpu,
        "engine.kind plain": spec.kind == "plain",
    }
    why = next((reason for reason, holds in reasons.items() if holds), None)
    if why is None:
        return True
    if spec.kind == "fast":
        raise ConfigError(f"engine.kind is 'fast', which does not run {why} yet; use auto or plain")
    if spec.quantization != "none":
        raise ConfigError(f"model.quantization is {spec.quantization!r}, which {why} cannot have; use none")
    return False


def load_weights(spec: EngineSpec, device: str | None = None) -> "LoadedModel":
    """Load the model as the spec says, onto one device (None: the first GPU, else the CPU) or several GPUs."""
    from dolly_batch.engine.weights.loading import load_model

    return load_model(
        spec.model_folder,
        dtype=spec.dtype,
        device=device,
        expected_sha256=spec.model_sha256,
        prompt_format=spec.prompt_format,
        num_gpus=spec.gpus,
        quantization=spec.quantization,
    )


def load_packed(spec: EngineSpec) -> "LoadedModel":
    """Load the model onto the CPU, its weights packed, in int8 if the spec says so, and try whether it is invariant."""
    from dolly_batch.engine.continuous.cpu.invariance import is_batch_invariant
    from dolly_batch.engine.memory import trim_heap
    from dolly_batch.engine.weights.onednn import pack

    loaded = load_weights(spec, "cpu")
    if spec.quantization == "none":
        pack(loaded.model)
    if not is_batch_invariant(loaded):
        log.warning("on this machine a row's answer may change with its neighbours, in the last bits of its logits")
    trim_heap()
    return loaded


def fast_engine(
    spec: EngineSpec, loaded: "LoadedModel", heartbeat: Callable[[], None] = no_heartbeat, num_sharing: int = 1
) -> Engine:
    """The fast engine over a loaded model, on a CPU one of `num_sharing` that share the memory.

    On a GPU where a part of it fails, and it was not asked for by name, the plain one.
    """
    if loaded.device.type == "cuda":
        from dolly_batch.engine.continuous.gpu.load import gpu_engine

        return gpu_engine(spec, loaded, heartbeat)
    from dolly_batch.engine.continuous.cache import CacheShape
    from dolly_batch.engine.continuous.cpu.pools import Pools
    from dolly_batch.engine.continuous.engine import FastEngine
    from dolly_batch.engine.kernels.cpu.compiled import find_pool_kernels

    shape = CacheShape.of(loaded)
    fraction = _MEMORY_FRACTION if spec.memory_fraction is None else spec.memory_fraction
    num_bytes = spec.kv_bytes or int(available_bytes() * fraction)
    num_bytes //= num_sharing
    if spec.max_batch_tokens is not None:
        num_bytes = min(num_bytes, spec.max_batch_tokens * shape.token_bytes)
    pools = Pools(shape, num_bytes, find_pool_kernels(shape.num_heads, shape.head_size, shape.dtype))
    return FastEngine(loaded, pools, prefix_sharing=spec.prefix_sharing, heartbeat=heartbeat)


def _is_cpu(device: str | None) -> bool:
    if device is not None:
        return device.partition(":")[0] == "cpu"
    if not may_have_gpu():
        return True
    import torch

    return not torch.cuda.is_available()


def _load_plain(spec: EngineSpec, device: str | None, heartbeat: Callable[[], None]) -> Engine:
    import torch

    from dolly_batch.engine.plain.engine import PlainEngine

    if spec.num_threads is not None:
        torch.set_num_threads(spec.num_threads)
    elif spec.max_cores is not None:
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores(spec)))
    return PlainEngine(load_weights(spec, device), max_batch_tokens=spec.max_batch_tokens, heartbeat=heartbeat)
