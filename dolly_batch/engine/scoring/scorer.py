"""Log-likelihoods of continuations: each prompt is run once, with all of its continuations after it as a trie.

The output layer is run at the prompt's last token and at the trie's nodes alone. What the prompts of a batch have in
common (the instruction and the labels of a classification) is run once, and kept for the next batch.
"""

from bisect import insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from dolly_batch.engine.memory import OUT_OF_MEMORY, allocator_errors
from dolly_batch.engine.protocol import no_heartbeat
from dolly_batch.engine.requests import refuse_score
from dolly_batch.engine.scoring.forward import Prefix, Prompts, run_branches, run_prefix, run_prompts
from dolly_batch.engine.scoring.log_probs import log_probs
from dolly_batch.engine.scoring.trie import ROOT, Trie, branches, build_trie
from dolly_batch.records import Failure, ScoreRequest, Scores

MAX_NODES = 1024  # of a trie that is run in one piece
MAX_ROWS = 256
MIN_PREFIX = 16  # shorter ones are run again with each row
# Pairs of (token, token seen) held at once in a mask.
_MAX_PAIRS = {"cpu": 2**24, "cuda": 2**26}
_SEEN_STEP = 64  # prompts of about the same length have their tries branched alike


@dataclass(frozen=True)
class _Branch:
    """A part of the trie of request number `number`: its continuations of the numbers `indices`."""

    number: int
    indices: tuple[int, ...]
    trie: Trie


class Scorer:
    """Takes score requests and answers them in batches; the part of an engine that scores.

    `max_tokens` bounds rows x tokens of a batch. It is halved for good when memory runs out.
    """

    def __init__(
        self,
        model: Any,
        max_positions: int,
        max_tokens: int,
        heartbeat: Callable[[], None] = no_heartbeat,
    ) -> None:
        self._model = model
        self._device: torch.device = model.device
        self._max_positions = max_positions
        self._max_tokens = max_tokens
        self._max_pairs = _MAX_PAIRS.get(self._device.type, _MAX_PAIRS["cpu"])
        self._heartbeat = heartbeat
        self._waiting: list[ScoreRequest] = []  # longest first
        self._refused: list[Scores] = []
        self._prefix = Prefix()

    @property
    def num_unfinished(self) -> int:
        """Requests submitted whose scores have not come out."""
        return len(self._waiting) + len(self._refused)

    def submit(self, request: ScoreRequest) -> None:
        """Take a request; one that can't be run comes out of the next step as a failure."""
        failure = refuse_score(request, self._model.config.vocab_size, self._max_positions)
        if failure:
            self._refused.append(Scores(request.key, (), failure, len(request.prompt_ids)))
        else:
            insort(self._waiting, request, key=lambda waiting: -_size(waiting))

    def step(self) -> list[Scores]:
        """Score one batch. When memory runs out, halve the batch and try again; a request too big alone fails."""
        scores, self._refused = self._refused, []
        while self._waiting:
            batch = self._waiting[: self._num_requests()]
            found = self._try_batch(batch)
            size = _size(batch[0])
            if found is None and (len(batch) > 1 or self._max_tokens > size):
                self._max_tokens = max(1, len(batch) // 2) * size
                continue
            if found is None:
                message = f"no memory to score {size} tokens, with no other row in the batch"
                found = [Scores(batch[0].key, (), Failure("out_of_memory", message), len(batch[0].prompt_ids))]
            del self._waiting[: len(batch)]
            return scores + found
        return scores

    def _try_batch(self, batch: Sequence[ScoreRequest]) -> list[Scores] | None:
        """Score a batch; None when it ran out of memory."""
        try:
            with allocator_errors():
                return self._score(batch)
        except OUT_OF_MEMORY:
            pass
        # Out of the except block, where the error's traceback would keep the batch's tensors alive.
        self._prefix = Prefix()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _num_requests(self) -> int:
        """How many of the waiting requests, longest first, make one batch."""
        width = _size(self._waiting[0])
        limit = min(self._max_tokens // width, self._max_pairs // width**2, MAX_ROWS)
        return max(1, limit)

    @torch.inference_mode()
    def _score(self, batch: Sequence[ScoreRequest]) -> list[Scores]:
        prefix = self._common_prefix([request.prompt_ids for request in batch])
        self._heartbeat()
        prompts = run_prompts(self._model, prefix, [request.prompt_ids for request in batch])
        parts = [part for number, request in enumerate(batch) for part in self._branches(number, request)]
        parts.sort(key=lambda part: -part.trie.num_nodes)  # those of a size in one forward, for less padding
        at_root = [(part.number, token) for part in parts for node, token in part.trie.edges if node == ROOT]
        from_root = iter(self._log_probs(prompts.hidden, at_root))
        found = [[0.0] * len(request.continuations) for request in batch]
        for part, from_nodes in self._run_branches(prefix, prompts, parts):
            below = iter(from_nodes)
            values = [next(from_root if node == ROOT else below) for node, _ in part.trie.edges]
            for index, path in zip(part.indices, part.trie.paths, strict=True):
                found[part.number][index] = sum(values[edge] for edge in path)
        return [_scores(request, values) for request, values in zip(batch, found, strict=True)]

    def _branches(self, number: int, request: ScoreRequest) -> Iterator[_Branch]:
        num_seen = -(-len(request.prompt_ids) // _SEEN_STEP) * _SEEN_STEP
        hidden_size = self._model.config.hidden_size
        for indices, trie in branches(request.continuations, num_seen, hidden_size, MAX_NODES):
            yield _Branch(number, indices, trie)

    def _run_branches(
        self, prefix: Prefix, prompts: Prompts, parts: Sequence[_Branch]
    ) -> Iterator[tuple[_Branch, list[float]]]:
        """Yield each branch, in order, with the log-probabilities of the edges below its nodes."""
        num_seen = len(prefix.ids) + max(prompts.lengths)
        start = 0
        while start < len(parts):
            run = parts[start : start + self._num_branches(num_seen, parts[start:])]
            start += len(run)
            fed = [(part.number, part.trie) for part in run if part.trie.num_nodes]
            values: Iterator[float] = iter(())
            if fed:
                self._heartbeat()
                hidden = run_branches(self._model, prefix, prompts, fed)
                firsts = accumulate((part.trie.num_nodes for part in run), initial=0)
                asked = zip(firsts, run, strict=False)
                edges = [(at + node, token) for at, part in asked for node, token in part.trie.edges if node != ROOT]
                values = iter(self._log_probs(hidden, edges))
            for part in run:
                yield part, [next(values) for node, _ in part.trie.edges if node != ROOT]

    def _num_branches(self, num_seen: int, waiting: Sequence[_Branch]) -> int:
        """How many of the branches go into one forward, by their padded tokens and the tokens that they see."""
        width = 0
        for count, part in enumerate(waiting):
            width = max(width, part.trie.num_nodes)
            rows, tokens = count + 1, num_seen + width
            if count and (rows * tokens > self._max_tokens or rows * width * tokens > self._max_pairs):
                return count
        return len(waiting)

    def _log_probs(self, hidden: Tensor, edges: Sequence[tuple[int, int]]) -> list[float]:
        return log_probs(self._model.get_output_embeddings(), self._model.config.vocab_size, hidden, edges)

    def _common_prefix(self, prompts: Sequence[tuple[int, ...]]) -> Prefix:
        """The prompts' common prefix, their last tokens not counted; empty where it is not worth keeping."""
        low, high = min(prompts), max(prompts)  # of sorted sequences, the first and the last differ first
        longest = min(len(prompt) for prompt in prompts) - 1
        length = next((at for at in range(longest) if low[at] != high[at]), longest)
        kept = self._prefix.ids
        if kept and length >= len(kept) >= length - MIN_PREFIX and low[: len(kept)] == kept:
            return self._prefix
        if length < MIN_PREFIX or len(prompts) == 1:
            return Prefix()
        self._prefix = Prefix()
        self._heartbeat()
        self._prefix = run_prefix(self._model, low[:length])
        return self._prefix


def score_now(scorer: Scorer, prompt_ids: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[float]:
    """Return the log-probability of each continuation's tokens after the prompt, in order.

    Raises ValueError for an empty prompt, more tokens than the model has positions, or broken logits, and torch's
    OutOfMemoryError when not even one row fits.
    """
    scorer.submit(ScoreRequest("", tuple(prompt_ids), tuple(tuple(continuation) for continuation in continuations)))
    scores = scorer.step()[0]
    if scores.failure:
        kind = torch.OutOfMemoryError if scores.failure.status == "out_of_memory" else ValueError
        raise kind(scores.failure.message)
    return list(scores.log_probs)


def _size(request: ScoreRequest) -> int:
    """Most tokens that a request needs in a batch."""
    return len(request.prompt_ids) + min(MAX_NODES, build_trie(request.continuations).num_nodes)


def _scores(request: ScoreRequest, log_probs: Sequence[float]) -> Scores:
    num_prompt_tokens = len(request.prompt_ids)
    # Of a broken model the sum is NaN or +inf; -inf is the score of a token that cannot be.
    if any(value != value or value == float("inf") for value in log_probs):
        return Scores(request.key, (), Failure("model_error", "NaN or infinite logits"), num_prompt_tokens)
    return Scores(request.key, tuple(log_probs), None, num_prompt_tokens)
