"""The decoding rows' forward, with CUDA recorded once for each size of a ladder and replayed.

A decode step is a thousand small launches; from the host one by one they take longer than the GPU needs to run them.
Replayed, their arguments are fixed: so the inputs lie in buffers that each step writes anew, and a step with fewer rows
than its size fills up with lines of padding, which write to a page that is nobody's.
"""

from collections import Counter
from collections.abc import Sequence as SequenceOf
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from dolly_batch.engine.continuous.cache import StepAttention
from dolly_batch.engine.continuous.gpu.pages import Pages
from dolly_batch.engine.host_device import upload
from dolly_batch.engine.memory import OUT_OF_MEMORY

# Of so many rows, sizes stand so far apart: products of a few rows more cost next to nothing.
_RUNGS = ((4, 1), (64, 8), (256, 16), (512, 32))
_LAST_RUNG = 64


def size_for(num_rows: int, max_rows: int) -> int:
    """The smallest size of the ladder that holds so many rows."""
    rung = next((rung for limit, rung in _RUNGS if num_rows <= limit), _LAST_RUNG)
    return min(max_rows, -(-num_rows // rung) * rung)


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
    """Runs a token of each decoding row. `last_ids` holds the newest token by slot, [slots], on the device.

    A size is recorded when it is run for the `record_at`-th time: sizes that a batch only passes through are not worth
    it. With None nothing is.
    """

    def __init__(self, model: Any, pages: Pages, last_ids: Tensor, max_rows: int, record_at: int | None = None) -> None:
        self._model = model
        self._pages = pages
        self._last_ids = last_ids
        self._max_rows = max_rows
        device = last_ids.device
        self._inputs = torch.zeros((2, max_rows), dtype=torch.int32, device=device)  # slots and positions
        self._hidden = torch.zeros((max_rows, model.config.hidden_size), dtype=pages.shape.dtype, device=device)
        self._record_at = record_at
        self._num_runs: Counter[tuple[int, int]] = Counter()  # by size and reach
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self._memory: Any = None  # shared by all graphs: none is replayed while another runs

    @property
    def num_graphs(self) -> int:
        """Graphs recorded so far."""
        return len(self._graphs)

    def run(self, slots: SequenceOf[int], positions: SequenceOf[int]) -> Tensor:
        """The rows' hidden states, [rows, hidden size], good until the next run. No two rows have the same slot."""
        size = size_for(len(slots), self._max_rows)
        padding = size - len(slots)
        values = [*slots, *[self._pages.padding_slot] * padding, *positions, *[0] * padding]
        self._inputs[:, :size] = upload(values, torch.int32, self._inputs.device).view(2, size)
        reach = self._pages.reach(max(positions))
        graph = self._graphs.get((size, reach))
        if graph is not None:
            graph.replay()
        else:
            self._forward(size, reach)
            self._num_runs[size, reach] += 1
            if self._num_runs[size, reach] == self._record_at:
                with suppress(*OUT_OF_MEMORY):  # then this size goes on as it is
                    self._graphs[size, reach] = self._record(size, reach)
        return self._hidden[: len(slots)]

    def _forward(self, size: int, reach: int) -> None:
        slots, positions = self._inputs[:, :size]
        attention = self._pages.attend_decoding(slots, positions, reach)
        self._hidden[:size] = run_modules(self._model, self._last_ids[slots.long()], positions.long(), attention)

    def _record(self, size: int, reach: int) -> torch.cuda.CUDAGraph:
        """Record what has just been run, so that all that is compiled or allocated at first use is there."""
        self._memory = self._memory or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
            self._forward(size, reach)
        return graph
