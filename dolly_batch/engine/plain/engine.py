"""The plain engine: batches packed by token count, decoded to their end with Hugging Face's `forward`.

It is the reference for faster engines, and runs what they don't. A step takes the longest waiting requests that fit the
token budget, prefills them as one padded batch and decodes until all have ended.
"""

from bisect import insort
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dolly_batch.engine.base import ModelEngine, no_memory
from dolly_batch.engine.grammar import Constraint
from dolly_batch.engine.memory import OUT_OF_MEMORY, allocator_errors
from dolly_batch.engine.plain.batch import Batch, count_positions, pad_left
from dolly_batch.engine.plain.token_budget import TokenBudget, default_batch_tokens
from dolly_batch.engine.protocol import no_heartbeat
from dolly_batch.engine.requests import num_positions
from dolly_batch.engine.sampling import next_tokens
from dolly_batch.engine.sequence import SequenceState, append_tokens
from dolly_batch.engine.weights.loading import LoadedModel
from dolly_batch.records import Request


class PlainEngine(ModelEngine):
    """Runs requests in padded batches, each to its end. When memory runs out, a batch is halved and tried again.

    `max_batch_tokens` bounds sequences x (longest prompt + new tokens) of a batch; None chooses by device.
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
        self._waiting: list[SequenceState] = []  # longest first

    @property
    def _num_sequences(self) -> int:
        return len(self._waiting)

    def _add(self, request: Request, constraint: Constraint | None) -> None:
        sequence = SequenceState(request, constraint=constraint)
        insort(self._waiting, sequence, key=lambda waiting: -num_positions(waiting.request))

    def _generate(self) -> list[SequenceState]:
        """Run one batch to its end; a sequence too big alone fails."""
        while self._waiting:
            batch = self._waiting[: self._budget.num_sequences([sequence.request for sequence in self._waiting])]
            if self._try_batch(batch):
                self._budget.succeed()
            else:
                self._budget.fail([sequence.request for sequence in batch])
                if len(batch) > 1:
                    continue
                batch[0].failure = no_memory(batch[0].request)
            del self._waiting[: len(batch)]
            return batch
        return []

    def _try_batch(self, sequences: Sequence[SequenceState]) -> bool:
        """Run a batch; False, and nothing has been answered, when it ran out of memory."""
        try:
            with allocator_errors():
                self._run_batch(sequences)
                return True
        except OUT_OF_MEMORY:
            pass
        # Out of the except block, where the error's traceback would keep the batch's tensors alive.
        for sequence in sequences:
            sequence.restart()
        self._free_memory()
        return False

    @torch.inference_mode()
    def _run_batch(self, sequences: Sequence[SequenceState]) -> None:
        ids, mask = self._pad([sequence.request.prompt_ids for sequence in sequences])
        batch = Batch(list(sequences), ids, mask, self._count_positions(mask))
        while batch.sequences:
            self._heartbeat()
            logits = self._forward(batch)
            token_ids, sound = next_tokens(logits, batch.sequences)
            num_before = [len(sequence.token_ids) for sequence in batch.sequences]
            append_tokens(batch.sequences, token_ids, sound, self._stop_ids)
            new = (sequence.token_ids[n:] for sequence, n in zip(batch.sequences, num_before, strict=True))
            batch.append([ids or [chosen] for ids, chosen in zip(new, token_ids, strict=True)])
            batch.drop_ended()

    def _forward(self, batch: Batch) -> Tensor:
        """Return the logits after each sequence's last token, [sequences, vocabulary]."""
        output = self._model(
            input_ids=batch.input_ids,
            attention_mask=batch.mask,
            # Ended sequences run on with the others, possibly past the last position; their tokens are never read.
            position_ids=batch.positions.clamp(max=self.max_positions - 1),
            past_key_values=batch.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    # Methods of their own so that tests can break them and see the comparison with `generate` fail.
    def _pad(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        return pad_left(prompts, self._device)

    def _count_positions(self, mask: Tensor) -> Tensor:
        return count_positions(mask)
