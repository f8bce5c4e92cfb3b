"""Log-likelihoods of continuations: each prompt is run once, with all of its continuations behind it as a trie.

    [ common prefix, cached | rest of the prompt, trie nodes, padding ]   one row of a batch

Every node sees the prompt and the nodes above it, by a mask of four dimensions, at the position that its depth gives.
The output layer is run at the prompt's last token and at the nodes alone. What the prompts of a batch have in common
(the instruction and the list of labels of a classification) is run once, and kept for the next batch.
"""

from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from dolly_batch.engine.memory import OUT_OF_MEMORY, allocator_errors
from dolly_batch.engine.stream import no_heartbeat
from dolly_batch.engine.trie import Trie, build_trie, split
from dolly_batch.records import Failure, ScoreRequest, Scores

MAX_NODES = 1024  # of one row; larger tries are run in parts
MAX_ROWS = 256
MIN_PREFIX = 16  # shorter ones are run again with each row
# Held at once: pairs of (token, token seen) in a mask, and numbers of the output layer.
_MAX_PAIRS = {"cpu": 2**24, "cuda": 2**26}
_MAX_LOGITS = {"cpu": 2**24, "cuda": 2**26}


@dataclass(frozen=True)
class _Item:
    """One row of a batch: the prompt of request number `number`, and its continuations of the numbers `indices`."""

    number: int
    prompt_ids: tuple[int, ...]
    indices: tuple[int, ...]
    trie: Trie


@dataclass(frozen=True)
class _Prefix:
    """What prompts begin with, and its keys and values: per layer, [1, heads, tokens, head size] each."""

    ids: tuple[int, ...] = ()
    layers: tuple[tuple[Tensor, Tensor], ...] = ()


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
        self._heartbeat = heartbeat
        self._waiting: list[ScoreRequest] = []  # longest first
        self._refused: list[Scores] = []
        self._prefix = _Prefix()

    @property
    def num_unfinished(self) -> int:
        """Requests submitted whose scores have not come out."""
        return len(self._waiting) + len(self._refused)

    def submit(self, request: ScoreRequest) -> None:
        """Take a request; one that can't be run comes out of the next step as a failure."""
        failure = refuse(request, self._max_positions, self._model.config.vocab_size)
        if failure:
            self._refused.append(Scores(request.key, (), failure, len(request.prompt_ids)))
        else:
            insort(self._waiting, request, key=lambda waiting: -_size(waiting))

    def step(self) -> list[Scores]:
        """Score one batch. When memory runs out, halve the batch and try again; a row too big alone fails."""
        scores, self._refused = self._refused, []
        while self._waiting:
            batch = self._waiting[: self._num_requests()]
            found = self._try_batch(batch)
            if found is None and len(batch) > 1:
                self._max_tokens = len(batch) // 2 * _size(batch[0])
                continue
            if found is None:
                message = f"no memory to score {_size(batch[0])} tokens, with no other row in the batch"
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
        self._prefix = _Prefix()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _num_requests(self) -> int:
        """How many of the waiting requests, longest first, make one batch."""
        width = _size(self._waiting[0])
        limit = min(self._max_tokens // width, _limit(_MAX_PAIRS, self._device) // width**2, MAX_ROWS)
        return max(1, limit)

    @torch.inference_mode()
    def _score(self, batch: Sequence[ScoreRequest]) -> list[Scores]:
        items = [
            _Item(number, request.prompt_ids, tuple(sorted(part)), build_trie(_chosen(request, sorted(part))))
            for number, request in enumerate(batch)
            for part in split(request.continuations, MAX_NODES)
        ]
        prefix = self._common_prefix(items)
        found = [[0.0] * len(request.continuations) for request in batch]
        rows = len(items) if len(batch) > 1 else 1  # the parts of one large trie go one by one
        for start in range(0, len(items), rows):
            part = items[start : start + rows]
            self._heartbeat()
            for item, log_probs in zip(part, self._run(prefix, part), strict=True):
                for index, log_prob in zip(item.indices, log_probs, strict=True):
                    found[item.number][index] = log_prob
        return [_scores(request, log_probs) for request, log_probs in zip(batch, found, strict=True)]

    def _common_prefix(self, items: Sequence[_Item]) -> _Prefix:
        """What all prompts begin with, their last tokens not counted; nothing where it is not worth keeping."""
        prompts = [item.prompt_ids for item in items]
        if not prompts:
            return _Prefix()
        low, high = min(prompts), max(prompts)  # of sorted sequences, the first and the last differ first
        longest = min(len(prompt) for prompt in prompts) - 1
        length = next((at for at in range(longest) if low[at] != high[at]), longest)
        kept = self._prefix.ids
        if kept and length >= len(kept) >= length - MIN_PREFIX and low[: len(kept)] == kept:
            return self._prefix
        if length < MIN_PREFIX or len(prompts) == 1:
            return _Prefix()
        self._prefix = _Prefix()
        self._heartbeat()
        cache: Any = DynamicCache()
        ids = torch.tensor([low[:length]], device=self._device)
        self._model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
        layers = tuple((layer.keys, layer.values) for layer in cache.layers)
        self._prefix = _Prefix(low[:length], layers)
        return self._prefix

    def _run(self, prefix: _Prefix, items: Sequence[_Item]) -> list[list[float]]:
        """One forward. Returns per item the log-probabilities of its continuations."""
        known = len(prefix.ids)
        rests = [item.prompt_ids[known:] for item in items]
        width = max(len(rest) + item.trie.num_nodes for rest, item in zip(rests, items, strict=True))
        seen = torch.zeros(len(items), width, known + width, dtype=torch.bool)
        seen[:, range(width), range(known, known + width)] = True  # padding sees itself, and is seen by nobody else
        ids, positions = [], []
        for row, (rest, item) in enumerate(zip(rests, items, strict=True)):
            start, end = len(rest), len(rest) + item.trie.num_nodes
            seen[row, :end, :known] = True
            seen[row, :start, known : known + start] = torch.ones(start, start, dtype=torch.bool).tril()
            seen[row, start:end, known : known + start] = True
            seen[row, start:end, known + start : known + end] = item.trie.ancestors
            first = known + start
            padding = width - end
            ids.append([*rest, *item.trie.token_ids, *[rest[0]] * padding])
            positions.append([*range(known, first), *(first + depth for depth in item.trie.depths), *[0] * padding])
        dtype = self._model.dtype
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
        hidden = self._model.base_model(
            input_ids=torch.tensor(ids, device=self._device),
            attention_mask=mask[:, None].to(self._device),
            position_ids=torch.tensor(positions, device=self._device),
            past_key_values=_expanded(prefix, len(items)),
            use_cache=bool(known),
        ).last_hidden_state
        return self._read(hidden, [len(rest) for rest in rests], [item.trie for item in items])

    def _read(self, hidden: Tensor, starts: Sequence[int], tries: Sequence[Trie]) -> list[list[float]]:
        """[rows, width, hidden size] and where each row's nodes start -> log-probabilities per row and continuation."""
        width = hidden.shape[1]
        firsts = [row * width + start for row, start in enumerate(starts)]
        # A row's root stands right before its nodes, and is edge number -1.
        nodes = [
            at for first, trie in zip(firsts, tries, strict=True) for at in range(first - 1, first + trie.num_nodes)
        ]
        asked = hidden.flatten(0, 1)[torch.tensor(nodes, device=self._device)]
        offsets = [0, *accumulate(1 + trie.num_nodes for trie in tries)]
        edges = [
            (offset + 1 + node, token)
            for offset, trie in zip(offsets, tries, strict=False)
            for node, token in trie.edges
        ]
        log_probs = self._ask(asked, edges)
        result, start = [], 0
        for trie in tries:
            own = log_probs[start : start + len(trie.edges)]
            result.append([sum(own[edge] for edge in path) for path in trie.paths])
            start += len(trie.edges)
        return result

    def _ask(self, asked: Tensor, edges: Sequence[tuple[int, int]]) -> list[float]:
        """The log-probability of each edge's token at its node; `asked` is [nodes, hidden size]."""
        head = self._model.get_output_embeddings()
        log_probs = [0.0] * len(edges)
        order = sorted(range(len(edges)), key=lambda index: edges[index][0])
        rows = max(1, _limit(_MAX_LOGITS, self._device) // self._model.config.vocab_size)
        done = 0
        for start in range(0, len(asked), rows):
            end = done
            while end < len(order) and edges[order[end]][0] < start + rows:
                end += 1
            if end == done:
                continue
            logits = head(asked[start : start + rows])
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            at = torch.tensor([edges[index][0] - start for index in order[done:end]], device=self._device)
            tokens = torch.tensor([edges[index][1] for index in order[done:end]], device=self._device)
            values = (logits[at, tokens] - logits.logsumexp(dim=-1)[at]).tolist()
            for index, value in zip(order[done:end], values, strict=True):
                log_probs[index] = value
            done = end
        return log_probs


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


def refuse(request: ScoreRequest, max_positions: int, vocab_size: int) -> Failure | None:
    """Why a request cannot be scored, or None."""
    longest = max((len(continuation) for continuation in request.continuations), default=0)
    if not request.prompt_ids:
        return Failure("model_error", "the prompt holds no tokens")
    if len(request.prompt_ids) + longest > max_positions:
        message = (
            f"{len(request.prompt_ids)} prompt tokens + {longest} of the longest continuation exceed "
            f"{max_positions} positions"
        )
        return Failure("too_long", message)
    ids = (request.prompt_ids, *request.continuations)
    if any(not 0 <= min(part) <= max(part) < vocab_size for part in ids if part):
        return Failure("model_error", f"the request holds ids outside of 0 to {vocab_size - 1}")
    return None


def _chosen(request: ScoreRequest, part: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Some of a request's continuations; all of them as the one tuple that the trie is kept under."""
    whole = len(part) == len(request.continuations)
    return request.continuations if whole else tuple(request.continuations[index] for index in part)


def _size(request: ScoreRequest) -> int:
    """The tokens that a request's row will hold at most."""
    return len(request.prompt_ids) + min(MAX_NODES, build_trie(request.continuations).num_nodes)


def _scores(request: ScoreRequest, log_probs: Sequence[float]) -> Scores:
    num_prompt_tokens = len(request.prompt_ids)
    # Of a broken model the sum is NaN or +inf; -inf is the score of a token that cannot be.
    if any(value != value or value == float("inf") for value in log_probs):
        return Scores(request.key, (), Failure("model_error", "NaN or infinite logits"), num_prompt_tokens)
    return Scores(request.key, tuple(log_probs), None, num_prompt_tokens)


def _expanded(prefix: _Prefix, num_rows: int) -> DynamicCache | None:
    """The prefix's cache for so many rows, without a copy: what is appended to it goes into new tensors."""
    if not prefix.ids:
        return None
    cache = DynamicCache()
    for number, (keys, values) in enumerate(prefix.layers):
        cache.update(keys.expand(num_rows, -1, -1, -1), values.expand(num_rows, -1, -1, -1), number)
    return cache


def _limit(limits: dict[str, int], device: torch.device) -> int:
    return limits.get(device.type, limits["cpu"])
