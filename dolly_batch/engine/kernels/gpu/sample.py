"""Sampling on the GPU, one program a row, so that the host need not wait for the tokens.

What `sampling.py` says of the distribution holds here: temperature, top-k, top-p, in that order; a draw by inverse CDF
in vocabulary order is accepted if the mass that ranks above it is less than top_p, of equal scores the higher id
ranking above; random numbers by seed, position and attempt. Weights are in float32, since many GPUs compute in float64
at a sixty-fourth of that rate, and their sums in float64: so a choice differs from the CPU's only where a number falls
within rounding of a border, some millionths of the mass. Each block's sum is kept, and a draw scans one block. Draws
that are all refused, with a small top_p, end in a search for the last token kept, where the CPU sorts.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 2048
_NUM_WARPS = 8


@triton.jit
def _read(logits, ids, there, limit, temperature, largest):
    """Logits, without the sign of zeros, and weights in float32: 0 where below the limit of top-k."""
    values = tl.load(logits + ids, mask=there, other=-float("inf")).to(tl.float32)
    values = tl.where(values == 0.0, 0.0, values)
    weights = tl.exp((values - largest) / temperature)
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
    return tl.where(kept, weights.to(tl.float64), 0.0)


@triton.jit
def _find_last_rank(logits, vocab_size, limit, temperature, largest, needed, total, BLOCK: tl.constexpr):
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
            values, weights = _read(logits, ids, ids < vocab_size, limit, temperature, largest)
            sums += tl.where(_rank(values) > middle, weights, 0.0).to(tl.float64)
        mass = tl.sum(sums, axis=0)
        is_enough = mass < needed
        above = tl.where(is_enough, mass, above)
        last = tl.where(is_enough, middle, last)
        low = tl.where(is_enough, low, middle)
    return last, above


@triton.jit
def _draw_kept(
    logits, vocab_size, limit, temperature, largest, last, above, needed, number, total, BLOCK: tl.constexpr
):
    """Draw a token from those that top-p keeps, by inverse CDF in vocabulary order."""
    lane = tl.arange(0, BLOCK)
    counts = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, vocab_size, BLOCK):
        ids = start + lane
        values, _ = _read(logits, ids, ids < vocab_size, limit, temperature, largest)
        counts += ((_rank(values) == last) & (ids < vocab_size)).to(tl.int32)
    num_equal = tl.sum(counts, axis=0)
    kept_total = total * 0.0
    num_before = num_equal * 0
    for start in range(0, vocab_size, BLOCK):
        ids = start + lane
        values, weights = _read(logits, ids, ids < vocab_size, limit, temperature, largest)
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
        values, weights = _read(logits, ids, there, limit, temperature, largest)
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
    row_units,  # from one row of logits to the next, in units of MULTIPLE; as the vocabulary
    vocab_units,
    MAX_ATTEMPTS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    MULTIPLE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    vocab_size = vocab_units * MULTIPLE
    logits += row * (row_units * MULTIPLE)
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
        heat = tl.maximum(temperature, 1e-30).to(tl.float32)
        blocks = tl.arange(0, BLOCKS)
        masses = tl.zeros((BLOCKS,), tl.float64)
        for start in range(0, vocab_size, BLOCK):
            ids = start + lane
            _, weights = _read(logits, ids, ids < vocab_size, limit, heat, largest)
            masses = tl.where(blocks == start // BLOCK, tl.sum(weights.to(tl.float64), axis=0), masses)
        passed = tl.cumsum(masses, axis=0)
        total = tl.sum(masses, axis=0)
        top_p = tl.load(top_ps + row)
        needed = top_p * total
        numbers += row * (MAX_ATTEMPTS + 1)
        is_chosen = 0
        attempt = 0
        while (is_chosen == 0) & (attempt < MAX_ATTEMPTS):
            target = tl.load(numbers + attempt) * total
            # The block in which the target lies, and within it the first token whose cumulative weight exceeds it.
            block = tl.sum((passed <= target).to(tl.int32), axis=0)
            before = tl.sum(tl.where(blocks < block, masses, 0.0), axis=0)
            ids = block * BLOCK + lane
            there = ids < vocab_size
            _, weights = _read(logits, ids, there, limit, heat, largest)
            is_passed = (before + tl.cumsum(weights.to(tl.float64), axis=0) <= target) & there
            drawn = tl.minimum(block * BLOCK + tl.sum(is_passed.to(tl.int32), axis=0), vocab_size - 1)
            own, own_weight = _read(logits, drawn, drawn < vocab_size, limit, heat, largest)
            sums = tl.zeros((BLOCK,), tl.float64)
            for start in range(0, vocab_size, BLOCK):
                ids = start + lane
                values, weights = _read(logits, ids, ids < vocab_size, limit, heat, largest)
                sums += tl.where((values > own) | ((values == own) & (ids > drawn)), weights, 0.0).to(tl.float64)
            is_accepted = (own_weight > 0) & ((top_p >= 1.0) | (tl.sum(sums, axis=0) < needed))
            token = tl.where(is_accepted, drawn, token)
            is_chosen = is_accepted.to(tl.int32)
            attempt += 1

        if is_chosen == 0:
            last, above = _find_last_rank(logits, vocab_size, limit, heat, largest, needed, total, BLOCK)
            number = tl.load(numbers + MAX_ATTEMPTS)
            drawn = _draw_kept(logits, vocab_size, limit, heat, largest, last, above, needed, number, total, BLOCK)
            _, own_weight = _read(logits, drawn, drawn < vocab_size, limit, heat, largest)
            token = tl.where(own_weight > 0, drawn, token)
    tl.store(tokens + row, token.to(tl.int64))


def num_blocks(vocab_size: int) -> int:
    """Blocks of a row, rounded up to a power of two."""
    return triton.next_power_of_2(triton.cdiv(vocab_size, _BLOCK))  # type: ignore[no-any-return]


def choose(logits: Tensor, temperatures: Tensor, top_ps: Tensor, limits: Tensor, numbers: Tensor) -> Tensor:
    """Return each row's next token, [rows] int64.

    `logits` are [rows, vocabulary]; `temperatures` (0 for greedy rows) and `top_ps` [rows] float64; `limits` [rows]
    float32, below which a logit is left out (top-k); `numbers` [rows, attempts + 1] float64 in (0, 1). Of broken logits
    the token means nothing, but is in the vocabulary.
    """
    num_rows, vocab_size = logits.shape
    tokens = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    # Triton sees multiples of 16 by itself, and Dolly's vocabulary is one of 8: enough for loads of 16 bytes in bf16.
    multiple = math.gcd(8, vocab_size, logits.stride(0))
    _choose[(num_rows,)](
        logits,
        tokens,
        temperatures,
        top_ps,
        limits,
        numbers,
        logits.stride(0) // multiple,
        vocab_size // multiple,
        MAX_ATTEMPTS=numbers.shape[1] - 1,
        BLOCK=_BLOCK,
        BLOCKS=num_blocks(vocab_size),
        MULTIPLE=multiple,
        num_warps=_NUM_WARPS,
    )
    return tokens
