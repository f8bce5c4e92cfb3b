"""The machine under the engine: memory, cores, and how many processes they carry. No torch."""

import os
import sys
from pathlib import Path

from dolly_batch.engine.config import ModelConfig
from dolly_batch.records import EngineSpec

PROCESS_BYTES = 600_000_000  # of a process's own: torch, tokens, a step's activations and logits
_CGROUP = Path("/sys/fs/cgroup")
_GPU_FILES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")
_MIN_ROWS = 4


def num_processes(spec: EngineSpec, config: ModelConfig) -> int:
    """How many engine processes share a host's rows: as asked, else one for each core, as far as memory goes.

    A process needs its own memory and room for a few rows of full length; the weights are there once for all.
    """
    if spec.processes is not None:
        return spec.processes
    num_cores = available_cores() // (spec.num_threads or 1)
    weight_bytes = sum(file.stat().st_size for file in Path(spec.model_folder).glob("*.safetensors"))
    row_bytes = 2 * config.num_layers * config.hidden_size * 2 * config.max_positions
    num_fitting = (available_bytes() - weight_bytes) // (PROCESS_BYTES + _MIN_ROWS * row_bytes)
    return max(1, min(num_cores, num_fitting))


def available_cores() -> int:
    """Cores that this process may use: its affinity, and its container's quota in whole cores."""
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (_CGROUP / "cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            num_cores = min(num_cores, int(quota) // int(period))
    except (OSError, ValueError):
        pass
    return max(1, num_cores)


def available_bytes() -> int:
    """Memory that may still be taken without swapping, within the container's limit; 4 GiB where nothing says so."""
    available = 4 * 2**30
    try:
        meminfo = Path("/proc/meminfo").read_text(encoding="ascii")
        available = 1024 * int(meminfo.partition("MemAvailable:")[2].split()[0])
    except (OSError, ValueError, IndexError):
        pass
    try:
        limit = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = (_CGROUP / "memory.current").read_text(encoding="ascii")
        if limit != "max":
            available = min(available, int(limit) - int(used))
    except (OSError, ValueError):
        pass
    return max(0, available)


def may_have_gpu() -> bool:
    """Whether it is worth asking torch for a GPU, which takes seconds to import."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return False
    return sys.platform != "linux" or any(os.path.exists(file) for file in _GPU_FILES)
