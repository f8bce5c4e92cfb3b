"""The fast engine: every step schedules, runs and samples; a row leaves the moment it ends and the next takes its slot.

Prompts are fed in without padding, packed behind the decoding rows' tokens; modules are Hugging Face's own, attention
is the cache's (`cache.py`). A row's answer depends on its prompt, seed and parameters alone, not on its neighbours.
"""

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf

import torch
from torch import Tensor

from dolly_batch.engine.cache import Cache, install
from dolly_batch.engine.choose import next_tokens
from dolly_batch.engine.grammar import Grammars
from dolly_batch.engine.memory import OUT_OF_MEMORY, allocator_errors
from dolly_batch.engine.model import LoadedModel
from dolly_batch.engine.requests import EqualRequests, failed, refuse
from dolly_batch.engine.schedule import MAX_ROWS, Schedule
from dolly_batch.engine.score import Scorer, score_now
from dolly_batch.engine.sequence import Sequence, Step
from dolly_batch.engine.stream import no_heartbeat
from dolly_batch.prompt import PromptEncoder, TextEncoder
from dolly_batch.records import Completion, Failure, Request, ScoreRequest, Scores

_ROWS_STEP = 8  # products of fewer rows, or of an odd number in float64, give other bits
_SCORED_TOKENS = 4_096


class FastEngine:
    """Runs requests in continuous batches; see `stream.Engine` for the interface. GPT-NeoX only.

    `heartbeat` is called before every forward and grammar. Rows stop at `### End` only; a model without Dolly's markers
    runs to `max_new_tokens`.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        cache: Cache,
        *,
        max_rows: int = MAX_ROWS,
        prefix_sharing: bool = True,
        heartbeat: Callable[[], None] = no_heartbeat,
    ) -> None:
        self.encoder: TextEncoder = loaded.encoder
        self.max_positions = loaded.folder.max_positions
        self._model = loaded.model
        self._device = loaded.device
        self._vocab_size = loaded.folder.vocab_size
        self._stop_id = loaded.encoder.end_id if isinstance(loaded.encoder, PromptEncoder) else None
        self._cache = cache
        self._schedule = Schedule(cache, max_rows, prefix_sharing)
        self._equals = EqualRequests()
        self._grammars = Grammars(loaded.encoder, loaded.folder.vocab_size)
        self._scorer = Scorer(loaded.model, self.max_positions, _SCORED_TOKENS, heartbeat)
        self._heartbeat = heartbeat
        self._refused: list[Completion] = []
        install(loaded.model)

    @property
    def num_unfinished(self) -> int:
        """Requests submitted whose answer has not come out."""
        num_rows = len(self._schedule.waiting) + len(self._schedule.running)
        return num_rows + self._equals.num_followers + len(self._refused) + self._scorer.num_unfinished

    def stats(self) -> dict[str, float]:
        """What has been done so far: steps, tokens, slots used of those there were, bytes of keys and values."""
        return {**self._schedule.usage.summary(), "peak_kv_bytes": self._cache.peak_bytes}

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
        elif self._equals.leads(request):
            self._schedule.add(Sequence(request, constraint=self._grammars.constraint(request)))

    def step(self) -> list[Completion | Scores]:
        """Score one batch, or, where none waits to be scored, run one forward; return what ended with it.

        When memory runs out, half of the rows go back to wait.
        """
        if self._scorer.num_unfinished:
            return [*self._scorer.step()]
        completions, self._refused = self._refused, []
        ended = self._run_step()
        return [*completions, *(answer for row in ended for answer in self._equals.answer(self._complete(row)))]

    def score(self, prompt_ids: SequenceOf[int], continuations: SequenceOf[SequenceOf[int]]) -> list[float]:
        """Return the log-probability of each continuation's tokens after the prompt, in order; see `score_now`."""
        scorer = Scorer(self._model, self.max_positions, _SCORED_TOKENS, self._heartbeat)
        return score_now(scorer, prompt_ids, continuations)

    @torch.inference_mode()
    def _run_step(self) -> list[Sequence]:
        try:
            with allocator_errors():
                step = self._schedule.next_step()
                if not step:
                    return []
                self._heartbeat()
                rows, logits = self._forward(step)
                token_ids, sound = next_tokens(logits, rows)
        except OUT_OF_MEMORY:
            pass
        else:
            self._schedule.advance(step)
            return self._take(rows, token_ids, sound)
        # Out of the except block, where the error's traceback would keep the step's tensors alive.
        return self._give_way()

    def _forward(self, step: Step) -> tuple[list[Sequence], Tensor]:
        """Return the rows whose next token can be chosen, and their logits, [rows, vocabulary]."""
        decoding, attention = self._cache.plan(step)
        ids = [row.token_ids[-1] for row in decoding]
        positions = self._positions(decoding)
        rows, last = list(decoding), list(range(len(decoding)))
        for chunk in step.chunks:
            ids += chunk.row.ids(chunk.start, chunk.stop)
            positions += range(chunk.start, chunk.stop)
            if chunk.is_last:
                rows.append(chunk.row)
                last.append(len(ids) - 1)
        num_logits = len(last)
        for numbers in (ids, positions, last):
            _pad(numbers)
        output = self._model(
            input_ids=torch.tensor([ids], device=self._device),
            position_ids=torch.tensor([positions], device=self._device),
            attention_mask=torch.zeros(1, 1, 1, 1, device=self._device),  # of four dimensions: taken as it is
            use_cache=False,
            logits_to_keep=torch.tensor(last, dtype=torch.long, device=self._device),
            step=attention,
        )
        return rows, output.logits[0, :num_logits]

    def _positions(self, decoding: SequenceOf[Sequence]) -> list[int]:
        return [row.num_cached for row in decoding]

    def _take(self, rows: SequenceOf[Sequence], token_ids: SequenceOf[int], sound: SequenceOf[bool]) -> list[Sequence]:
        """Give the rows their tokens; return those that have ended."""
        ended = []
        for row, token_id, is_sound in zip(rows, token_ids, sound, strict=True):
            if is_sound:
                row.take(token_id, self._stop_id)
            else:
                number = len(row.token_ids) + 1
                row.failure = Failure("model_error", f"NaN or infinite logits at answer token {number}")
            if not row.is_open:
                self._schedule.end(row)
                ended.append(row)
        return ended

    def _give_way(self) -> list[Sequence]:
        """Go on with half of the rows; a row that has no memory even alone fails."""
        row = self._schedule.give_way()
        self._free_memory()
        if row is None:
            return []
        num_tokens = row.max_tokens + 1
        row.failure = Failure("out_of_memory", f"no memory for {num_tokens} tokens, with no other row in the batch")
        self._schedule.end(row)
        return [row]

    def _complete(self, row: Sequence) -> Completion:
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


def _pad(numbers: list[int]) -> None:
    """Make their count a multiple of `_ROWS_STEP`; what is computed for the padding is never read."""
    numbers += [0] * (-len(numbers) % _ROWS_STEP)
