"""The decode forward, recorded as a CUDA graph for each bucket size and replayed.

A decode step is a thousand small launches; from the host one by one they take longer than the GPU needs to run them.
A replayed graph has fixed arguments: so inputs are copied into buffers, and a step with fewer sequences than its bucket
is padded with null slots, which write to the null page.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dolly_batch.engine.continuous.gpu.layers import Forward
from dolly_batch.engine.continuous.gpu.pages import Pages
from dolly_batch.engine.host_device import upload
from dolly_batch.engine.protocol import no_heartbeat

log = logging.getLogger("dolly_batch.engine")

# (up to so many sequences, buckets are so far apart): a few rows more in a product cost next to nothing.
_BUCKET_STEPS = ((4, 1), (64, 8), (256, 16), (512, 32))
_LAST_BUCKET_STEP = 64


def bucket_for(num_sequences: int, max_sequences: int) -> int:
    """The smallest bucket size that holds so many sequences."""
    step = next((step for limit, step in _BUCKET_STEPS if num_sequences <= limit), _LAST_BUCKET_STEP)
    return min(max_sequences, -(-num_sequences // step) * step)


def bucket_sizes(max_sequences: int) -> list[int]:
    """All bucket sizes, largest first."""
    return sorted({bucket_for(number, max_sequences) for number in range(1, max_sequences + 1)}, reverse=True)


class Decoder:
    """Runs `forward` over one token of each decoding sequence. `last_ids` holds the newest token by slot, [slots].

    `record_all` records the buckets of the shortest reach (`Pages.reach_for`), which is the only one up to a window of
    2,048; those of a longer one are recorded when they run for the `record_at`-th time. None records nothing. A bucket
    whose recording fails runs unrecorded from then on; `why_not` is the last reason.
    """

    def __init__(
        self,
        forward: Forward,
        hidden_size: int,
        pages: Pages,
        last_ids: Tensor,
        max_sequences: int,
        record_at: int | None = None,
    ) -> None:
        self._run_layers = forward
        self._pages = pages
        self._last_ids = last_ids
        self._max_sequences = max_sequences
        device = last_ids.device
        self._inputs = torch.zeros((2, max_sequences), dtype=torch.int32, device=device)  # slots and positions
        self._hidden = torch.zeros((max_sequences, hidden_size), dtype=pages.shape.dtype, device=device)
        self._record_at = record_at
        self._num_runs: Counter[tuple[int, int]] = Counter()  # by bucket and reach
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self._memory: Any = None  # shared by all graphs: none is replayed while another runs
        self.why_not: str | None = None

    @property
    def num_graphs(self) -> int:
        """Graphs recorded so far."""
        return len(self._graphs)

    @torch.inference_mode()
    def record_all(self, heartbeat: Callable[[], None] = no_heartbeat) -> None:
        """Record the shortest reach, largest bucket first: the smaller ones then find their memory in its."""
        reach = self._pages.reach_for(0)
        self._inputs[0] = self._pages.null_slot
        self._inputs[1] = 0
        for size in bucket_sizes(self._max_sequences) if self._record_at is not None else ():
            heartbeat()
            self._try_to_record(size, reach, is_warm=False)
        if self.why_not is not None:
            log.warning("%d decode steps recorded, the others run unrecorded: %s", self.num_graphs, self.why_not)

    def run(self, slots: Sequence[int], positions: Sequence[int]) -> Tensor:
        """The hidden states, [sequences, hidden size], valid until the next run. Slots are distinct."""
        size = bucket_for(len(slots), self._max_sequences)
        padding = size - len(slots)
        values = [*slots, *[self._pages.null_slot] * padding, *positions, *[0] * padding]
        self._inputs[:, :size] = upload(values, torch.int32, self._inputs.device).view(2, size)
        reach = self._pages.reach_for(max(positions))
        graph = self._graphs.get((size, reach))
        if graph is not None:
            graph.replay()
        else:
            self._forward(size, reach)
            self._num_runs[size, reach] += 1
            if self._num_runs[size, reach] == self._record_at:
                self._try_to_record(size, reach)
        return self._hidden[: len(slots)]

    def _forward(self, size: int, reach: int) -> None:
        slots, positions = self._inputs[:, :size]
        attention = self._pages.attend_decoding(slots, positions, reach)
        self._hidden[:size] = self._run_layers(self._last_ids[slots.long()], positions.long(), attention, None)

    def _try_to_record(self, size: int, reach: int, *, is_warm: bool = True) -> None:
        """Record a bucket, after a run of it where it has not run yet. What fails is not tried again.

        Memory that runs out while recording comes as one of many errors, and a failed recording is no reason to end.
        """
        self._num_runs[size, reach] = max(self._num_runs[size, reach], self._record_at or 0)
        try:
            if not is_warm:
                self._forward(size, reach)
            self._graphs[size, reach] = self._record(size, reach)
        except Exception as error:
            self.why_not = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"
            self._memory = None  # the failed recording's pool: later ones take another

    def _record(self, size: int, reach: int) -> torch.cuda.CUDAGraph:
        """Record what has just run, so that everything compiled or allocated at first use exists."""
        self._memory = self._memory or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
                self._forward(size, reach)
        except Exception:
            # Where the end of a recording fails, torch leaves its stream the current one.
            torch.cuda.set_stream(stream)
            torch.cuda.synchronize()
            raise
        return graph
