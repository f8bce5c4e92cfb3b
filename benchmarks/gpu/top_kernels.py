"""`benchmarks/gpu/main.py --profile`: which kernels take longest, over some steps in the middle of a full batch."""

import time
from collections.abc import Callable, Sequence

import torch
from torch.profiler import ProfilerActivity, profile

from dolly_batch.engine.protocol import Engine
from dolly_batch.records import Request

_WARM_STEPS, _STEPS = 40, 20


def print_kernels(
    engine: Engine, requests: Sequence[Request], device: torch.device, say: Callable[[str], None]
) -> None:
    """Print the table, and for how much of the time the device was busy. Leaves the rows unfinished."""
    on_gpu = device.type == "cuda"
    for request in requests:
        engine.submit(request)
    for _ in range(_WARM_STEPS):
        engine.step()
    started = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiled:
        for _ in range(_STEPS):
            engine.step()
        if on_gpu:
            torch.cuda.synchronize()
        wall_s = time.perf_counter() - started
    events = profiled.key_averages()
    busy_s = sum(event.self_device_time_total for event in events) / 1e6
    say(f"{_STEPS} steps in {1e3 * wall_s:.0f} ms (slowed by the profiler), the device busy for {1e3 * busy_s:.0f} ms")
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    print(events.table(sort_by=order, row_limit=25, max_name_column_width=70), flush=True)
