"""What the engines that run a model share: taking requests, scoring, and completions of ended sequences."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch

from dolly_batch.engine.grammar import Constraint, Grammars
from dolly_batch.engine.protocol import no_heartbeat
from dolly_batch.engine.requests import Deduplication, failed, num_positions, refuse
from dolly_batch.engine.scoring.scorer import Scorer, score_now
from dolly_batch.engine.sequence import SequenceState
from dolly_batch.engine.weights.loading import LoadedModel
from dolly_batch.prompt import PromptEncoder
from dolly_batch.records import Completion, Failure, Request, ScoreRequest, Scores
from dolly_batch.tokenizer import TextEncoder


class ModelEngine(ABC):
    """An engine over a loaded model; see `protocol.Engine` for the interface.

    `heartbeat` is called before every forward and grammar; `max_scored_tokens` bounds a batch of scores. Answers stop
    at the stop tokens of the model's prompt format; a model without one runs to `max_new_tokens`.
    """

    def __init__(
        self, loaded: LoadedModel, max_scored_tokens: int, heartbeat: Callable[[], None] = no_heartbeat
    ) -> None:
        self.encoder: TextEncoder = loaded.encoder
        self.max_positions = loaded.folder.max_positions
        self._model = loaded.model
        self._device = loaded.device
        self._vocab_size = loaded.folder.vocab_size
        self._stop_ids = frozenset(loaded.encoder.stop_ids if isinstance(loaded.encoder, PromptEncoder) else ())
        self._max_scored_tokens = max_scored_tokens
        self._heartbeat = heartbeat
        self._grammars = Grammars(loaded.encoder, loaded.folder.vocab_size)
        self._scorer = self._new_scorer()
        self._deduplication = Deduplication()
        self._refused: list[Completion] = []

    @abstractmethod
    def _add(self, request: Request, constraint: Constraint | None) -> None:
        """Queue a request that passed all checks."""

    @property
    @abstractmethod
    def _num_sequences(self) -> int:
        """Sequences that wait or run."""

    @abstractmethod
    def _generate(self) -> Sequence[SequenceState]:
        """Generate for a while; return the sequences that ended."""

    @property
    def num_unfinished(self) -> int:
        """Requests submitted whose answer has not come out."""
        num_duplicates = self._deduplication.num_duplicates
        return self._num_sequences + num_duplicates + len(self._refused) + self._scorer.num_unfinished

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
        elif self._deduplication.is_primary(request):
            self._add(request, self._grammars.constraint(request))

    def step(self) -> list[Completion | Scores]:
        """Score one batch, or, where none waits to be scored, generate for a while; return what ended with it."""
        if self._scorer.num_unfinished:
            return [*self._scorer.step()]
        completions: list[Completion | Scores] = [*self._refused]
        self._refused = []
        for sequence in self._generate():
            completions += self._deduplication.with_duplicates(self._complete(sequence))
        return completions

    def score(self, prompt_ids: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[float]:
        """Return the log-probability of each continuation's tokens after the prompt, in order; see `score_now`."""
        return score_now(self._new_scorer(), prompt_ids, continuations)

    def _complete(self, sequence: SequenceState) -> Completion:
        request = sequence.request
        if sequence.failure:
            return failed(request, sequence.failure)
        text = self.encoder.decode(sequence.token_ids).strip()
        ids, num_prompt_tokens = tuple(sequence.token_ids), len(request.prompt_ids)
        return Completion(
            request.key, text, ids, sequence.finish_reason, num_prompt_tokens, num_partial_tokens=sequence.num_partial
        )

    def _new_scorer(self) -> Scorer:
        return Scorer(self._model, self.max_positions, self._max_scored_tokens, self._heartbeat)

    def _free_memory(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def no_memory(request: Request) -> Failure:
    """The failure of a request that has no memory even alone."""
    message = f"no memory for {num_positions(request)} tokens, with no other row in the batch"
    return Failure("out_of_memory", message)
