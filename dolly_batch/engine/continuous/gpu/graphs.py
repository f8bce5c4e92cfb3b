"""The decode forward, recorded as a CUDA graph for each bucket size and replayed.

A decode step is a thousand small launches; from the host one by one they take longer than the GPU needs to run them.
A replayed graph has fixed arguments: so inputs are copied into buffers, and a step with fewer sequences than its bucket
is padded with null slots, which write to the null page.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from dolly_batch.engine.continuous.cache import StepAttention
from dolly_batch.engine.continuous.gpu.pages import Pages
from dolly_batch.engine.host_device import upload
from dolly_batch.engine.memory import OUT_OF_MEMORY

# (up to so many sequences, buckets are so far apart): a few rows more in a product cost next to nothing.
_BUCKET_STEPS = ((4, 1), (64, 8), (256, 16), (512, 32))
_LAST_BUCKET_STEP = 64


def bucket_for(num_sequences: int, max_sequences: int) -> int:
    """The smallest bucket size that holds so many sequences."""
    step = next((step for limit, step in _BUCKET_STEPS if num_sequences <= limit), _LAST_BUCKET_STEP)
    return min(max_sequences, -(-num_sequences // step) * step)


def run_modules(model: Any, ids: Tensor, positions: Tensor, attention: StepAttention) -> Tensor:
    """The hidden states before the output layer, [tokens, hidden size], of packed ids and positions, both [tokens]."""
    output = model.base_model(
        input_ids=ids[None],
        position_ids=positions[None],
        attention_mask=torch.zeros(1, 1, 1, 1, device=ids.device),  # of four dimensions: taken as it is
        use_cache=False,
        step=attention,
    )
    hidden: Tensor = output.last_hidden_state[0]
    return hidden


class Decoder:
    """Runs one token of each decoding sequence. `last_ids` holds the newest token by slot, [slots], on the device.

    A bucket is recorded when it runs for the `record_at`-th time: buckets that a batch only passes through are not
    worth it. None records nothing.
    """

    def __init__(
        self, model: Any, pages: Pages, last_ids: Tensor, max_sequences: int, record_at: int | None = None
    ) -> None:
        self._model = model
        self._pages = pages
        self._last_ids = last_ids
        self._max_sequences = max_sequences
        device = last_ids.device
        self._inputs = torch.zeros((2, max_sequences), dtype=torch.int32, device=device)  # slots and positions
        self._hidden = torch.zeros((max_sequences, model.config.hidden_size), dtype=pages.shape.dtype, device=device)
        self._record_at = record_at
        self._num_runs: Counter[tuple[int, int]] = Counter()  # by bucket and rounded position
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self._memory: Any = None  # shared by all graphs: none is replayed while another runs

    @property
    def num_graphs(self) -> int:
        """Graphs recorded so far."""
        return len(self._graphs)

    def run(self, slots: Sequence[int], positions: Sequence[int]) -> Tensor:
        """The hidden states, [sequences, hidden size], valid until the next run. Slots are distinct."""
        size = bucket_for(len(slots), self._max_sequences)
        padding = size - len(slots)
        values = [*slots, *[self._pages.null_slot] * padding, *positions, *[0] * padding]
        self._inputs[:, :size] = upload(values, torch.int32, self._inputs.device).view(2, size)
        max_position = self._pages.round_up_position(max(positions))
        graph = self._graphs.get((size, max_position))
        if graph is not None:
            graph.replay()
        else:
            self._forward(size, max_position)
            self._num_runs[size, max_position] += 1
            if self._num_runs[size, max_position] == self._record_at:
                with suppress(*OUT_OF_MEMORY):  # then this bucket stays unrecorded
                    self._graphs[size, max_position] = self._record(size, max_position)
        return self._hidden[: len(slots)]

    def _forward(self, size: int, max_position: int) -> None:
        slots, positions = self._inputs[:, :size]
        attention = self._pages.attend_decoding(slots, positions, max_position)
        self._hidden[:size] = run_modules(self._model, self._last_ids[slots.long()], positions.long(), attention)

    def _record(self, size: int, max_position: int) -> torch.cuda.CUDAGraph:
        """Record what has just run, so that everything compiled or allocated at first use exists."""
        self._memory = self._memory or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
            self._forward(size, max_position)
        return graph
