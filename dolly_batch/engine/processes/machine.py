"""The machine under the engine: memory, cores, and how many processes and threads they carry. No torch."""

import os
import sys
from dataclasses import replace
from pathlib import Path

from dolly_batch.engine.processes import cgroup
from dolly_batch.models.config import ModelConfig
from dolly_batch.records import EngineSpec

PROCESS_BYTES = 600_000_000  # of a process's own: torch, tokens, a step's activations and logits
_GPU_FILES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")
_MIN_ROWS = 4


def fit_to_machine(spec: EngineSpec, config: ModelConfig) -> EngineSpec:
    """The spec with what it leaves open of `processes` and `num_threads`, for a model on the CPU.

    As many processes of one thread as this host may use cores, as far as memory goes; where that is fewer, more threads
    each. A process needs its own memory and room for a few rows of full length; the weights are there once for all.
    """
    if spec.processes is not None:
        return replace(spec, num_threads=spec.num_threads or 1)
    num_cores = usable_cores(spec)
    weight_bytes = sum(file.stat().st_size for file in Path(spec.model_folder).glob("*.safetensors"))
    row_bytes = 2 * config.num_layers * config.kv_size * 2 * config.max_positions
    num_fitting = (available_bytes() - weight_bytes) // (PROCESS_BYTES + _MIN_ROWS * row_bytes)
    processes = max(1, min(num_cores // (spec.num_threads or 1), num_fitting))
    return replace(spec, processes=processes, num_threads=spec.num_threads or max(1, num_cores // processes))


def usable_cores(spec: EngineSpec) -> int:
    """Cores that an engine may use: this machine's, and of them its host's share."""
    num_cores = available_cores()
    return num_cores if spec.max_cores is None else max(1, min(num_cores, spec.max_cores))


def available_cores() -> int:
    """Cores that this process may use: its affinity, and its container's quota in whole cores."""
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup.num_cores()
    return max(1, num_cores if quota is None else min(num_cores, int(quota)))


def available_bytes() -> int:
    """Memory that may still be taken without swapping, within the container's limit; 4 GiB where nothing says so."""
    available = 4 * 2**30
    try:
        meminfo = Path("/proc/meminfo").read_text(encoding="ascii")
        available = 1024 * int(meminfo.partition("MemAvailable:")[2].split()[0])
    except (OSError, ValueError, IndexError):
        pass
    within = cgroup.free_bytes()
    return available if within is None else min(available, within)


def may_have_gpu() -> bool:
    """Whether it is worth asking torch for a GPU, which takes seconds to import."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return False
    return sys.platform != "linux" or any(os.path.exists(file) for file in _GPU_FILES)
