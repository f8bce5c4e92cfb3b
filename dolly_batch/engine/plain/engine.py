"""The plain engine: batches packed by token count, decoded to their end with Hugging Face's `forward`.

It is the reference for faster engines, and runs what they don't. A step takes the longest waiting requests that fit the
token budget, prefills them as one padded batch and decodes until every row has ended.
"""

from bisect import insort
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dolly_batch.engine.base import ModelEngine, no_memory
from dolly_batch.engine.grammar import Constraint
from dolly_batch.engine.memory import OUT_OF_MEMORY, allocator_errors
from dolly_batch.engine.plain.batch import Batch, Row, count_positions, pad_left
from dolly_batch.engine.plain.token_budget import TokenBudget, default_batch_tokens
from dolly_batch.engine.protocol import no_heartbeat
from dolly_batch.engine.requests import num_positions
from dolly_batch.engine.sampler import next_tokens
from dolly_batch.engine.weights.loading import LoadedModel
from dolly_batch.records import Request


class PlainEngine(ModelEngine):
    """Runs requests in padded batches, each to its end. When memory runs out, a batch is halved and tried again.

    `max_batch_tokens` bounds rows x (longest prompt + new tokens) of a batch; None chooses by device.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        max_batch_tokens: int | None = None,
        heartbeat: Callable[[], None] = no_heartbeat,
    ) -> None:
        max_tokens = default_batch_tokens(loaded) if max_batch_tokens is None else max_batch_tokens
        super().__init__(loaded, max_tokens, heartbeat)
        self._budget = TokenBudget(max_tokens)
        self._waiting: list[Row] = []  # longest first

    @property
    def _num_rows(self) -> int:
        return len(self._waiting)

    def _add(self, request: Request, constraint: Constraint | None) -> None:
        insort(self._waiting, Row(request, constraint=constraint), key=lambda waiting: -num_positions(waiting.request))

    def _generate(self) -> list[Row]:
        """Run one batch to its end; a row too big alone fails."""
        while self._waiting:
            batch = self._waiting[: self._budget.num_rows([row.request for row in self._waiting])]
            if self._try_batch(batch):
                self._budget.succeed()
            else:
                self._budget.fail([row.request for row in batch])
                if len(batch) > 1:
                    continue
                batch[0].failure = no_memory(batch[0].request)
            del self._waiting[: len(batch)]
            return batch
        return []

    def _try_batch(self, rows: Sequence[Row]) -> bool:
        """Run a batch; False, and nothing has been answered, when it ran out of memory."""
        try:
            with allocator_errors():
                self._run_batch(rows)
                return True
        except OUT_OF_MEMORY:
            pass
        # Out of the except block, where the error's traceback would keep the batch's tensors alive.
        for row in rows:
            row.restart()
        self._free_memory()
        return False

    @torch.inference_mode()
    def _run_batch(self, rows: Sequence[Row]) -> None:
        ids, mask = self._pad([row.request.prompt_ids for row in rows])
        batch = Batch(list(rows), ids, mask, self._count_positions(mask))
        while batch.rows:
            self._heartbeat()
            logits = self._forward(batch)
            token_ids, sound = next_tokens(logits, batch.rows)
            num_before = [len(row.token_ids) for row in batch.rows]
            self._take(batch.rows, token_ids, sound)
            taken = (row.token_ids[before:] for row, before in zip(batch.rows, num_before, strict=True))
            batch.append([ids or [chosen] for ids, chosen in zip(taken, token_ids, strict=True)])
            batch.drop_ended()

    def _forward(self, batch: Batch) -> Tensor:
        """Return the logits after each row's last token, [rows, vocabulary]."""
        output = self._model(
            input_ids=batch.input_ids,
            attention_mask=batch.mask,
            # Rows that have ended go on beside longer ones, maybe past the last position; nobody reads what they give.
            position_ids=batch.positions.clamp(max=self.max_positions - 1),
            past_key_values=batch.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _pad(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        return pad_left(prompts, self._device)

    def _count_positions(self, mask: Tensor) -> Tensor:
        return count_positions(mask)
