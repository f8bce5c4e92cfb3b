"""Sampling on the GPU, one program a row, so that the host need not wait for the tokens.

What `sampling.py` says of the distribution holds here: temperature, top-k, top-p, in that order; a draw by inverse CDF
in vocabulary order is accepted if the mass that ranks above it is less than top_p, of equal scores the higher id
ranking above; random numbers by seed, position and attempt. Sums are in float64 in another order, so a choice differs
from the CPU's only where a number falls within rounding of a border. Draws that are all refused, with a small top_p,
end in a search for the last token kept, where the CPU sorts.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 2048
_NUM_WARPS = 8


@triton.jit
def _read(logits, ids, there, limit, temperature, highest):
    """Logits, without the sign of zeros, and weights: 0 where below the limit of top-k."""
    values = tl.load(logits + ids, mask=there, other=-float("inf")).to(tl.float32)
    values = tl.where(values == 0.0, 0.0, values)
    weights = tl.exp(values.to(tl.float64) / temperature - highest)
    return values, tl.where(there & (values >= limit), weights, 0.0)


@triton.jit
def _rank(values):
    """Integers in the order of float32 values."""
    bits = values.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)


@triton.jit
def _keep(weights, ranks, last, above, needed, num_equal, num_before):
    """The weights of the tokens that top-p keeps: those above the last rank, and of the last rank the highest ids."""
    is_last = ranks == last
    num_higher = num_equal - num_before - tl.cumsum(is_last.to(tl.int32), axis=0)
    kept = (ranks > last) | (is_last & (above + num_higher.to(tl.float64) * weights < needed))
    return tl.where(kept, weights, 0.0)


@triton.jit
def _find_last_rank(logits, vocab_size, limit, temperature, highest, largest, needed, total, BLOCK: tl.constexpr):
    """The lowest rank that top-p keeps, and the weights above it, which are less than `needed`; by bisection."""
    lane = tl.arange(0, BLOCK)
    last = _rank(tl.where(largest == 0.0, 0.0, largest))
    low = last * 0 - 2147483648
    above = total * 0.0
    while last - low > 1:
        middle = low + (last - low) // 2
        sums = tl.zeros((BLOCK,), tl.float64)
        for start in range(0, vocab_size, BLOCK):
            ids = start + lane
            values, weights = _read(logits, ids, ids < vocab_size, limit, temperature, highest)
            sums += tl.where(_rank(values) > middle, weights, 0.0)
        mass = tl.sum(sums, axis=0)
        is_enough = mass < needed
        above = tl.where(is_enough, mass, above)
        last = tl.where(is_enough, middle, last)
        low = tl.where(is_enough, low, middle)
    return last, above


@triton.jit
def _draw_kept(
    logits, vocab_size, limit, temperature, highest, last, above, needed, number, total, BLOCK: tl.constexpr
):
    """Draw a token from those that top-p keeps, by inverse CDF in vocabulary order."""
    lane = tl.arange(0, BLOCK)
    counts = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, vocab_size, BLOCK):
        ids = start + lane
        values, _ = _read(logits, ids, ids < vocab_size, limit, temperature, highest)
        counts += ((_rank(values) == last) & (ids < vocab_size)).to(tl.int32)
    num_equal = tl.sum(counts, axis=0)
    kept_total = total * 0.0
    num_before = num_equal * 0
    for start in range(0, vocab_size, BLOCK):
        ids = start + lane
        values, weights = _read(logits, ids, ids < vocab_size, limit, temperature, highest)
        ranks = _rank(values)
        kept_total += tl.sum(_keep(weights, ranks, last, above, needed, num_equal, num_before), axis=0)
        num_before += tl.sum((ranks == last).to(tl.int32), axis=0)
    target = number * kept_total
    before = total * 0.0
    num_before = num_equal * 0
    num_passed = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, vocab_size, BLOCK):
        ids = start + lane
        there = ids < vocab_size
        values, weights = _read(logits, ids, there, limit, temperature, highest)
        ranks = _rank(values)
        kept = _keep(weights, ranks, last, above, needed, num_equal, num_before)
        num_passed += ((before + tl.cumsum(kept, axis=0) <= target) & there).to(tl.int32)
        before += tl.sum(kept, axis=0)
        num_before += tl.sum((ranks == last).to(tl.int32), axis=0)
    return tl.minimum(tl.sum(num_passed, axis=0), vocab_size - 1)


@triton.jit
def _choose(
    logits,  # [rows, vocabulary], dense in the vocabulary
    tokens,  # [rows], int64
    temperatures,  # [rows], float64; 0 for the likeliest token
    top_ps,  # [rows], float64
    limits,  # [rows], float32: logits below are left out
    numbers,  # [rows, MAX_ATTEMPTS + 1], float64 in (0, 1)
    logits_row,
    vocab_size,
    MAX_ATTEMPTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * logits_row
    lane = tl.arange(0, BLOCK)
    best = tl.full((BLOCK,), -float("inf"), tl.float32)
    best_at = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, vocab_size, BLOCK):
        ids = start + lane
        values = tl.load(logits + ids, mask=ids < vocab_size, other=-float("inf")).to(tl.float32)
        is_better = values > best
        best = tl.where(is_better, values, best)
        best_at = tl.where(is_better, ids, best_at)
    largest = tl.max(best, axis=0)
    token = tl.min(tl.where(best == largest, best_at, vocab_size - 1), axis=0)

    temperature = tl.load(temperatures + row)
    if temperature > 0:
        limit = tl.load(limits + row)
        highest = largest.to(tl.float64) / temperature
        sums = tl.zeros((BLOCK,), tl.float64)
        for start in range(0, vocab_size, BLOCK):
            ids = start + lane
            _, weights = _read(logits, ids, ids < vocab_size, limit, temperature, highest)
            sums += weights
        total = tl.sum(sums, axis=0)
        top_p = tl.load(top_ps + row)
        needed = top_p * total
        numbers += row * (MAX_ATTEMPTS + 1)
        is_chosen = 0
        attempt = 0
        while (is_chosen == 0) & (attempt < MAX_ATTEMPTS):
            target = tl.load(numbers + attempt) * total
            before = total * 0.0
            num_passed = tl.zeros((BLOCK,), tl.int32)
            for start in range(0, vocab_size, BLOCK):
                ids = start + lane
                there = ids < vocab_size
                _, weights = _read(logits, ids, there, limit, temperature, highest)
                num_passed += ((before + tl.cumsum(weights, axis=0) <= target) & there).to(tl.int32)
                before += tl.sum(weights, axis=0)
            drawn = tl.minimum(tl.sum(num_passed, axis=0), vocab_size - 1)
            own, own_weight = _read(logits, drawn, drawn < vocab_size, limit, temperature, highest)
            sums = tl.zeros((BLOCK,), tl.float64)
            for start in range(0, vocab_size, BLOCK):
                ids = start + lane
                values, weights = _read(logits, ids, ids < vocab_size, limit, temperature, highest)
                sums += tl.where((values > own) | ((values == own) & (ids > drawn)), weights, 0.0)
            is_accepted = (own_weight > 0) & ((top_p >= 1.0) | (tl.sum(sums, axis=0) < needed))
            token = tl.where(is_accepted, drawn, token)
            is_chosen = is_accepted.to(tl.int32)
            attempt += 1

        if is_chosen == 0:
            last, above = _find_last_rank(
                logits, vocab_size, limit, temperature, highest, largest, needed, total, BLOCK
            )
            number = tl.load(numbers + MAX_ATTEMPTS)
            drawn = _draw_kept(
                logits, vocab_size, limit, temperature, highest, last, above, needed, number, total, BLOCK
            )
            _, own_weight = _read(logits, drawn, drawn < vocab_size, limit, temperature, highest)
            token = tl.where(own_weight > 0, drawn, token)
    tl.store(tokens + row, token.to(tl.int64))


def choose(logits: Tensor, temperatures: Tensor, top_ps: Tensor, limits: Tensor, numbers: Tensor) -> Tensor:
    """Return each row's next token, [rows] int64.

    `logits` are [rows, vocabulary]; `temperatures` (0 for greedy rows) and `top_ps` [rows] float64; `limits` [rows]
    float32, below which a logit is left out (top-k); `numbers` [rows, attempts + 1] float64 in (0, 1). Of broken logits
    the token means nothing, but is in the vocabulary.
    """
    num_rows, vocab_size = logits.shape
    tokens = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    _choose[(num_rows,)](
        logits,
        tokens,
        temperatures,
        top_ps,
        limits,
        numbers,
        logits.stride(0),
        vocab_size,
        MAX_ATTEMPTS=numbers.shape[1] - 1,
        BLOCK=_BLOCK,
        num_warps=_NUM_WARPS,
    )
    return tokens
