"""Choosing the next token, so that a row's choice depends on nothing but its seed, its position and its logits.

The random number of (seed, position, attempt) is a hash of the three (SplitMix64's finalizer, Steele et al. 2014), not
the next of a shared generator: neighbours, batches and restarts can't shift it. Temperature, top-k and top-p mean what
Hugging Face's warpers mean, in that order. Top-p needs no sort: draw from the whole distribution by inverse CDF in
vocabulary order, accept the token if the mass that ranks above it is less than top_p, else draw again. What is accepted
is distributed exactly as top-p's kept tokens are. Of equal logits the higher id ranks above (the warper leaves it to an
unstable sort). All sums are in float64, so that the rounding of a batch hardly ever decides a choice.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from dolly_batch.records import GenerationParams

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64
# Bounds the float64 copies, of 0.4 MB for a row of 50,280 tokens. On a CPU 32 rows cost 2.5 times what 8 do: they are
# out of the cache, and of the allocator's too.
_ROWS_AT_ONCE = {"cpu": 8, "cuda": 64}
MAX_ATTEMPTS = 16
_BLOCK = 512


def choose_tokens(
    logits: Tensor, params: Sequence[GenerationParams], seeds: Sequence[int], positions: Sequence[int]
) -> Tensor:
    """Return each row's next token: [rows, vocabulary] logits -> [rows] ids, on the logits' device.

    `positions` count the row's answer tokens so far. Logits must be finite.
    """
    logits = logits.float()  # as `generate` does, whatever the model's dtype
    tokens = _argmax(logits)
    sampled = [row for row, row_params in enumerate(params) if row_params.do_sample]
    num_rows = _ROWS_AT_ONCE.get(logits.device.type, 8)
    for start in range(0, len(sampled), num_rows):
        rows = sampled[start : start + num_rows]
        index = torch.tensor(rows, device=logits.device)
        tokens[index] = _sample(
            logits[index].double(),
            [params[row] for row in rows],
            torch.tensor([signed(seeds[row]) for row in rows], device=logits.device),
            torch.tensor([positions[row] for row in rows], device=logits.device),
        )
    return tokens


def _argmax(logits: Tensor) -> Tensor:
    """As `argmax`, the first of equals: seven times faster on a CPU, where only the maximum of a dimension is fast."""
    num_rows, vocab_size = logits.shape
    num_blocks = vocab_size // _BLOCK
    best = logits.new_full((num_rows, num_blocks + 1), -torch.inf)
    best[:, :num_blocks] = logits[:, : num_blocks * _BLOCK].view(num_rows, num_blocks, _BLOCK).amax(dim=-1)
    if num_blocks * _BLOCK < vocab_size:
        best[:, num_blocks] = logits[:, num_blocks * _BLOCK :].amax(dim=-1)
    start = (best.argmax(dim=-1, keepdim=True) * _BLOCK).clamp(max=max(0, vocab_size - _BLOCK))
    block = start + torch.arange(min(_BLOCK, vocab_size), device=logits.device)
    return start[:, 0] + logits.gather(-1, block).argmax(dim=-1)


def penalize_repetition(logits: Tensor, token_ids: Iterable[int], penalty: float) -> None:
    """Make tokens of the text so far less likely, in place, as Hugging Face's processor does. [vocabulary] logits."""
    seen = torch.tensor(sorted(set(token_ids)), device=logits.device)
    scores = logits[seen]
    logits[seen] = torch.where(scores < 0, scores * penalty, scores / penalty)


def uniform(seeds: Tensor, positions: Tensor, attempt: int | Tensor) -> Tensor:
    """Return one number in (0, 1) per row, float64, from int64 seeds and positions, all of one shape or broadcast."""
    step = (attempt + 1) * _GOLDEN
    state = _mix(_mix(_mix(seeds) + (positions + 1) * _GOLDEN) + (step if isinstance(step, Tensor) else signed(step)))
    return (_shift(state, 12).double() + 0.5) * 2.0**-52


def _sample(logits: Tensor, params: Sequence[GenerationParams], seeds: Tensor, positions: Tensor) -> Tensor:
    """Draw one token per row. `logits` is float64 [rows, vocabulary]."""
    scores = logits / _column([row.temperature for row in params], logits)
    scores = _keep_top_k(scores, [row.top_k for row in params])
    probabilities = scores.softmax(dim=-1)
    top_p = _column([row.top_p for row in params], logits)
    tokens = torch.empty_like(seeds)
    pending = torch.arange(len(params), device=logits.device)
    for attempt in range(MAX_ATTEMPTS):
        at = slice(None) if attempt == 0 else pending  # all rows at first, without a copy of them
        drawn = _invert(probabilities[at], uniform(seeds[at], positions[at], attempt))
        tokens[at] = drawn
        accepted = _mass_above(scores[at], probabilities[at], drawn) < top_p[at, 0]
        pending = pending[~(accepted | (top_p[at, 0] >= 1.0))]
        if not len(pending):
            return tokens
    # A small top_p refuses most draws. The rows still pending are independent of those refused: finish them by a sort.
    kept = _keep_top_p(scores[pending], probabilities[pending], top_p[pending])
    tokens[pending] = _invert(kept, uniform(seeds[pending], positions[pending], MAX_ATTEMPTS))
    return tokens


def _keep_top_k(scores: Tensor, top_k: Sequence[int]) -> Tensor:
    """Put -inf where a score is below the row's k-th best; ties with the k-th stay."""
    largest = min(max(top_k), scores.shape[-1])
    if not largest:
        return scores
    best = scores.topk(largest, dim=-1).values
    index = torch.tensor([[min(k or 1, largest) - 1] for k in top_k], device=scores.device)
    limit = best.gather(-1, index)
    limit[torch.tensor([k == 0 for k in top_k], device=scores.device)] = -torch.inf
    return scores.masked_fill(scores < limit, -torch.inf)


def _mass_above(scores: Tensor, probabilities: Tensor, tokens: Tensor) -> Tensor:
    """Return the probability of all tokens that rank above the row's token."""
    own = scores.gather(-1, tokens[:, None])
    ids = torch.arange(scores.shape[-1], device=scores.device)
    above = (scores > own) | ((scores == own) & (ids > tokens[:, None]))
    mass: Tensor = torch.where(above, probabilities, 0.0).sum(dim=-1)
    return mass


def _keep_top_p(scores: Tensor, probabilities: Tensor, top_p: Tensor) -> Tensor:
    """Return the probabilities with 0 for tokens that have at least `top_p` of the mass above them."""
    order = scores.sort(dim=-1, stable=True).indices.flip(-1)
    ranked = probabilities.gather(-1, order)
    kept = torch.where(ranked.cumsum(dim=-1) - ranked < top_p, ranked, 0.0)
    return torch.zeros_like(probabilities).scatter(-1, order, kept)


def _invert(weights: Tensor, numbers: Tensor) -> Tensor:
    """Return, per row, the first token whose cumulative weight exceeds the number's share of the total."""
    cumulative = weights.cumsum(dim=-1)
    target = numbers[:, None] * cumulative[:, -1:]
    index: Tensor = torch.searchsorted(cumulative, target, right=True)
    return index.clamp(max=weights.shape[-1] - 1)[:, 0]


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]


def signed(number: int) -> int:
    """The same 64 bits as an int64."""
    return (number + 2**63) % 2**64 - 2**63


def _shift(bits: Tensor, count: int) -> Tensor:
    """Shift int64 to the right, zeros coming in."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def _mix(bits: Tensor) -> Tensor:
    bits = (bits ^ _shift(bits, 30)) * _MIX_1
    bits = (bits ^ _shift(bits, 27)) * _MIX_2
    return bits ^ _shift(bits, 31)
