"""Copies between host and device that do not wait: through pinned memory, in the order of the device's work."""

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import torch
from torch import Tensor


def upload(values: Sequence[int] | Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The values on the device, [values]; on CUDA they are there for what is launched from now on."""
    if device.type != "cuda":
        return torch.tensor(values, dtype=dtype, device=device)
    # Pinned blocks are reused only when the copy is done: torch's allocator sees to that.
    return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)


class Download:
    """A tensor that is being copied to the host, while the device continues."""

    def __init__(self, tensor: Tensor) -> None:
        self.waited_s = 0.0
        self._event: Any = None  # torch's class is untyped
        if tensor.device.type != "cuda":
            self._host = tensor.clone()
            return
        self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._host.copy_(tensor, non_blocking=True)
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record()

    def wait(self) -> list[int]:
        """Wait for the copy and return its numbers."""
        if self._event is not None:
            start = perf_counter()
            self._event.synchronize()
            self.waited_s = perf_counter() - start
        numbers: list[int] = self._host.tolist()
        return numbers


class Timestamp:
    """A point in time of the device's work."""

    def __init__(self, device: torch.device) -> None:
        self._event: Any = None
        self._time = perf_counter()
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self._event.record()

    def since(self, earlier: "Timestamp") -> float:
        """Seconds from an earlier timestamp to this one, which the device must have passed."""
        if self._event is None or earlier._event is None:
            return self._time - earlier._time
        return float(earlier._event.elapsed_time(self._event)) / 1000.0
