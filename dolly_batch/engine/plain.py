"""The plain engine: batches packed by token count, decoded to their end with Hugging Face's `forward`.

It is the reference for faster engines, and runs what they don't. A step takes the longest waiting requests that fit the
token budget, prefills them as one padded batch and decodes until every row has ended.
"""

from bisect import insort
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dolly_batch.engine.batch import Batch, Row, count_positions, pad_left
from dolly_batch.engine.budget import TokenBudget, default_batch_tokens
from dolly_batch.engine.choose import next_tokens
from dolly_batch.engine.grammar import Grammars
from dolly_batch.engine.memory import OUT_OF_MEMORY, allocator_errors
from dolly_batch.engine.model import LoadedModel
from dolly_batch.engine.requests import failed, num_positions, refuse
from dolly_batch.engine.score import Scorer, score_now
from dolly_batch.engine.stream import no_heartbeat
from dolly_batch.prompt import PromptEncoder, TextEncoder
from dolly_batch.records import Completion, Failure, Request, ScoreRequest, Scores


class PlainEngine:
    """Runs requests in padded batches; see `stream.Engine` for the interface.

    `max_batch_tokens` bounds rows x (longest prompt + new tokens) of a batch; None chooses by device. `heartbeat` is
    called before every forward and grammar. Rows stop at `### End` only; a model without Dolly's markers runs to
    `max_new_tokens`.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        max_batch_tokens: int | None = None,
        heartbeat: Callable[[], None] = no_heartbeat,
    ) -> None:
        self.encoder: TextEncoder = loaded.encoder
        self.max_positions = loaded.folder.max_positions
        self._model = loaded.model
        self._device = loaded.device
        self._vocab_size = loaded.folder.vocab_size
        self._stop_id = loaded.encoder.end_id if isinstance(loaded.encoder, PromptEncoder) else None
        max_tokens = default_batch_tokens(loaded) if max_batch_tokens is None else max_batch_tokens
        self._budget = TokenBudget(max_tokens)
        self._grammars = Grammars(loaded.encoder, loaded.folder.vocab_size)
        self._scorer = Scorer(loaded.model, self.max_positions, max_tokens, heartbeat)
        self._heartbeat = heartbeat
        self._waiting: list[Request] = []  # longest first
        self._refused: list[Completion] = []

    @property
    def num_unfinished(self) -> int:
        """Requests submitted whose answer has not come out."""
        return len(self._waiting) + len(self._refused) + self._scorer.num_unfinished

    def submit(self, request: Request | ScoreRequest) -> None:
        """Take a request; one that can't be run comes out of the next step as a failure."""
        if isinstance(request, ScoreRequest):
            self._scorer.submit(request)
            return
        if request.grammar is not None:
            self._heartbeat()  # compiling one may take its time, and rows come with many
        failure = refuse(request, self._vocab_size, self.max_positions) or self._grammars.refuse(request)
        if failure:
            self._refused.append(failed(request, failure))
        else:
            insort(self._waiting, request, key=lambda waiting: -num_positions(waiting))

    def step(self) -> list[Completion | Scores]:
        """Score one batch, or, where none waits to be scored, generate one to its end.

        When memory runs out, the batch is halved and tried again; a row too big alone fails.
        """
        return [*self._scorer.step()] if self._scorer.num_unfinished else [*self._generate()]

    def _generate(self) -> list[Completion]:
        completions, self._refused = self._refused, []
        while self._waiting:
            batch = self._waiting[: self._budget.num_rows(self._waiting)]
            rows = self._try_batch(batch)
            if rows is not None:
                self._budget.succeed()
                del self._waiting[: len(batch)]
                return completions + [self._complete(row) for row in rows]
            self._budget.fail(batch)
            if len(batch) == 1:
                del self._waiting[0]
                message = f"no memory for {num_positions(batch[0])} tokens, with no other row in the batch"
                return [*completions, failed(batch[0], Failure("out_of_memory", message))]
        return completions

    def score(self, prompt_ids: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[float]:
        """Return the log-probability of each continuation's tokens after the prompt, in order.

        Ids of prompt and continuation are joined as they are; log-softmax in float32, or float64 if the model is.
        Raises ValueError for an empty prompt, more tokens than the model has positions, or broken logits, and torch's
        OutOfMemoryError when not even one row fits.
        """
        scorer = Scorer(self._model, self.max_positions, self._budget.max_tokens, self._heartbeat)
        return score_now(scorer, prompt_ids, continuations)

    def _try_batch(self, requests: Sequence[Request]) -> list[Row] | None:
        """Run a batch; None when it ran out of memory."""
        try:
            with allocator_errors():
                return self._run_batch(requests)
        except OUT_OF_MEMORY:
            pass
        # Out of the except block, where the error's traceback would keep the batch's tensors alive.
        self._free_memory()
        return None

    @torch.inference_mode()
    def _run_batch(self, requests: Sequence[Request]) -> list[Row]:
        rows = [Row(request, constraint=self._grammars.constraint(request)) for request in requests]
        ids, mask = self._pad([request.prompt_ids for request in requests])
        batch = Batch(list(rows), ids, mask, self._count_positions(mask))
        while batch.rows:
            self._heartbeat()
            logits = self._forward(batch)
            token_ids, sound = next_tokens(logits, batch.rows)
            batch.append(self._take(token_ids, sound, batch.rows))
            batch.drop_ended()
        return rows

    def _forward(self, batch: Batch) -> Tensor:
        """Return the logits after each row's last token, [rows, vocabulary]."""
        output = self._model(
            input_ids=batch.input_ids,
            attention_mask=batch.mask,
            position_ids=batch.positions,
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

    def _take(self, token_ids: Sequence[int], sound: Sequence[bool], rows: Sequence[Row]) -> list[Sequence[int]]:
        """Give the open rows their tokens; return what each row is to be fed, an ended one anything."""
        fed: list[Sequence[int]] = []
        for row, token_id, is_sound in zip(rows, token_ids, sound, strict=True):
            num_before = len(row.token_ids)
            if row.is_open and is_sound:
                row.take(token_id, self._stop_id)
            elif row.is_open:
                row.failure = Failure("model_error", f"NaN or infinite logits at answer token {num_before + 1}")
            fed.append(row.token_ids[num_before:] or [token_id])
        return fed

    def _complete(self, row: Row) -> Completion:
        if row.failure:
            return failed(row.request, row.failure)
        text = self.encoder.decode(row.token_ids).strip()
        ids, num_prompt_tokens = tuple(row.token_ids), len(row.request.prompt_ids)
        return Completion(
            row.request.key, text, ids, row.finish_reason, num_prompt_tokens, num_begun_tokens=row.num_begun
        )

    def _free_memory(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
