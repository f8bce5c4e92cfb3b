"""The continuous engine on a GPU: the host lays out and launches the next step while the GPU is still at the last one.

Each step is schedule, run, sample, as on the CPU, but nothing waits for its tokens: chosen tokens stay on the device,
where the next step finds them, and the host reads them one step late. A row that ended meanwhile has computed one token
too many, which nobody sees. Rows whose tokens so far must be known to choose the next one (grammars, repetition
penalties) are waited for. Decoding rows are run by a recorded graph, prompts by themselves and whole: a GPU gains
nothing by mixing them.
"""

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dolly_batch.engine.continuous.engine import ContinuousEngine
from dolly_batch.engine.continuous.gpu.graphs import Decoder, run_modules
from dolly_batch.engine.continuous.gpu.pages import Pages, PagesSpent
from dolly_batch.engine.continuous.scheduler import Pace
from dolly_batch.engine.continuous.sequence import Chunk, Sequence, Step
from dolly_batch.engine.host_device import Download, Mark
from dolly_batch.engine.memory import allocator_errors
from dolly_batch.engine.protocol import no_heartbeat
from dolly_batch.engine.sampler import needs_reading, unread_tokens
from dolly_batch.engine.weights.loading import LoadedModel

MAX_ROWS = 1024
STEP_TOKENS = 8_192  # of prompts; enough to keep the matrix units busy, few enough for their activations
RECORD_AT = 4
_PARTS = ("decode_s", "prefill_s", "choose_s")  # the last with the output layer
PACE = Pace(chunk_tokens=2**30, step_tokens=STEP_TOKENS, admit_every=4)


@dataclass(frozen=True, slots=True)
class Flight:
    """A step that was launched: the rows whose next tokens it chooses, the tokens, and when its parts were run."""

    rows: list[Sequence]
    token_ids: Download
    marks: list[Mark]  # between its parts, as `_PARTS` names them


class GpuEngine(ContinuousEngine):
    """Runs requests over pages, one step ahead of what it has read; see `ContinuousEngine`.

    `use_kernels` is whether tokens are chosen by the Triton kernel, `use_graphs` whether decode steps are recorded.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        pages: Pages,
        *,
        max_rows: int = MAX_ROWS,
        prefix_sharing: bool = True,
        pace: Pace = PACE,
        use_kernels: bool = False,
        use_graphs: bool = False,
        heartbeat: Callable[[], None] = no_heartbeat,
    ) -> None:
        super().__init__(
            loaded, pages, max_rows=max_rows, prefix_sharing=prefix_sharing, pace=pace, heartbeat=heartbeat
        )
        self._pages = pages
        self._use_kernels = use_kernels
        # The newest token of each row, by slot.
        self._last_ids = torch.zeros(len(pages.tables), dtype=torch.int64, device=loaded.device)
        self._decoder = Decoder(loaded.model, pages, self._last_ids, max_rows, RECORD_AT if use_graphs else None)
        self._flight: Flight | None = None
        self._marks: list[Mark] = []
        self._landed: list[Sequence] = []  # ended, and not yet returned
        self._seconds = dict.fromkeys((*_PARTS, "waiting_s"), 0.0)

    def stats(self) -> dict[str, float]:
        """As on the CPU; and the device's seconds in the parts of the steps, and the host's that it waited for them."""
        own = {"kv_bytes": self._pages.data.nbytes, "num_graphs": self._decoder.num_graphs}
        return {**super().stats(), **self._seconds, **own}

    def _run_step(self) -> list[Sequence]:
        if any(needs_reading(row) for row in self._schedule.running):
            self._land()
        with allocator_errors():
            step = self._next_step()
            flight = self._launch(step) if step else None
        if flight is not None:
            self._schedule.advance(step)
            for row in flight.rows:
                row.num_pending += 1
        self._land()
        self._flight = flight
        return self._take_landed()

    def _next_step(self) -> Step:
        """The next step; where rows have outgrown the pages, some are suspended first."""
        while True:
            try:
                return self._schedule.next_step()
            except PagesSpent:
                if self._flight is not None:
                    self._land()  # the rows that ended have left their pages
                else:
                    self._schedule.suspend()

    def _launch(self, step: Step) -> Flight:
        """Run a step's rows and choose their tokens, without waiting for any of it."""
        self._heartbeat()
        rows, logits = self._forward(step)
        token_ids = unread_tokens(logits, rows, self._use_kernels)
        slots = self._pages.upload_slots(rows)
        marks = [*self._marks, Mark(self._device)]
        flight = Flight(rows, Download(token_ids), marks)  # once these have come, the device has passed the marks
        self._last_ids[slots] = token_ids.clamp(min=0)  # last, when nothing can run out of memory any more
        return flight

    def _forward(self, step: Step) -> tuple[list[Sequence], Tensor]:
        """Return the rows whose next token can be chosen, and their logits, [rows, vocabulary]."""
        self._marks = [Mark(self._device)]
        self._pages.write_tables()
        rows, parts = list(step.decoding), []
        if rows:
            parts.append(self._decoder.run([row.place.slot for row in rows], self._positions(rows)))
        self._marks.append(Mark(self._device))
        if step.chunks:
            started, hidden = self._prefill(step.chunks)
            rows += started
            parts.append(hidden)
        self._marks.append(Mark(self._device))
        return rows, self._model.get_output_embeddings()(torch.cat(parts))

    def _prefill(self, chunks: SequenceOf[Chunk]) -> tuple[list[Sequence], Tensor]:
        """Run chunks of prompts. Returns the rows that are through, and their last hidden states, [rows, size]."""
        ids: list[int] = []
        positions: list[int] = []
        rows, last = [], []
        for chunk in chunks:
            ids += chunk.row.ids(chunk.start, chunk.stop)
            positions += range(chunk.start, chunk.stop)
            if chunk.is_last:
                rows.append(chunk.row)
                last.append(len(ids) - 1)
        _, attention = self._pages.plan(Step(chunks=list(chunks)))
        upload = self._pages.upload
        hidden = run_modules(self._model, upload(ids), upload(positions), attention)
        return rows, hidden[upload(last)]

    def _land(self) -> None:
        """Wait for the step in flight, if there is one, and give its rows their tokens."""
        flight, self._flight = self._flight, None
        if flight is None:
            return
        token_ids = flight.token_ids.wait()
        self._seconds["waiting_s"] += flight.token_ids.waited_s
        for part, (start, end) in zip(_PARTS, pairwise(flight.marks), strict=True):
            self._seconds[part] += end.since(start)
        for row in flight.rows:
            row.num_pending -= 1
        ended = self._take(flight.rows, token_ids, [token_id >= 0 for token_id in token_ids])
        self._schedule.read(flight.rows)
        for row in ended:
            self._schedule.end(row)
        self._landed += ended

    def _take_landed(self) -> list[Sequence]:
        landed, self._landed = self._landed, []
        return landed

    def _give_way(self) -> list[Sequence]:
        """As on the CPU, once it is known which rows still run; where some have ended, their memory may be enough."""
        self._land()
        ended = self._take_landed()
        if ended:
            self._free_memory()
            return ended
        return super()._give_way()
