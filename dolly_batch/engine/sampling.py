"""Sampling, for all engines: a sequence's next token depends on its seed, its position and its logits alone.

`next_tokens` and `next_tokens_on_device` apply penalties and grammars and sample; `choose_tokens` only samples.

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

from dolly_batch.engine.continuous.sequence import CachedSequence
from dolly_batch.engine.grammar import mask_rows
from dolly_batch.engine.host_device import upload
from dolly_batch.engine.sequence import SequenceState
from dolly_batch.records import GenerationParams

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64
# Bounds the float64 copies, of 0.4 MB for a row of 50,280 tokens. On a CPU 32 rows cost 2.5 times what 8 do: they are
# out of the cache, and of the allocator's too.
_ROWS_AT_ONCE = {"cpu": 8, "cuda": 64}
MAX_ATTEMPTS = 16
_BLOCK = 512


def next_tokens(logits: Tensor, sequences: Sequence[SequenceState]) -> tuple[list[int], list[bool]]:
    """Return each sequence's next token, and whether its logits were sound: finite, all of them.

    `logits` are [sequences, vocabulary] and may be changed. A token from logits that were not sound means nothing.
    """
    sums = logits.sum(dim=-1, dtype=logits.dtype if logits.dtype.itemsize > 2 else None)
    sound: list[bool] = sums.isfinite().tolist()
    if not all(sound):
        sound = logits.isfinite().all(dim=-1).tolist()  # a sum may overflow where no logit does
        logits = logits.nan_to_num()
    params = [sequence.request.params for sequence in sequences]
    logits = logits.float()  # as `generate` does, whatever the model's dtype
    _constrain(logits, sequences)
    seeds = [sequence.request.seed for sequence in sequences]
    positions = [len(sequence.token_ids) for sequence in sequences]
    return choose_tokens(logits, params, seeds, positions).tolist(), sound


def next_tokens_on_device(logits: Tensor, sequences: Sequence[CachedSequence], use_kernel: bool) -> Tensor:
    """Return each sequence's next token on the device, [sequences] int64, or -1 where its logits were not sound.

    With the kernel nothing here waits for the device, unless a sequence `needs_known_tokens`.
    """
    if not sequences:
        return torch.empty(0, dtype=torch.int64, device=logits.device)
    lowest, highest = logits.aminmax(dim=-1)  # both are NaN where one logit is; read once
    sound = lowest.isfinite() & highest.isfinite()
    if any(_is_constrained(sequence) for sequence in sequences):
        logits = logits.float()
        _constrain_at_once(logits, sequences)
    params = [sequence.request.params for sequence in sequences]
    seeds = [sequence.request.seed for sequence in sequences]
    positions = [sequence.num_answer_tokens for sequence in sequences]
    if use_kernel:
        tokens = _choose_by_kernel(logits, params, seeds, positions)
    else:
        tokens = choose_tokens(logits.nan_to_num(), params, seeds, positions)
    return tokens.where(sound, -1)


def needs_known_tokens(sequence: SequenceState) -> bool:
    """Whether the host must know all tokens so far to choose the next one.

    True under a grammar or a penalty, and before the first token where a partial answer may follow it.
    """
    return _is_constrained(sequence) or bool(sequence.request.partial_ids and not sequence.token_ids)


def _is_constrained(sequence: SequenceState) -> bool:
    return sequence.constraint is not None or _has_penalty(sequence)


def _has_penalty(sequence: SequenceState) -> bool:
    return sequence.request.params.repetition_penalty != 1.0


def _choose_by_kernel(
    logits: Tensor, params: Sequence[GenerationParams], seeds: Sequence[int], positions: Sequence[int]
) -> Tensor:
    from dolly_batch.engine.kernels.gpu.sample import choose  # needs triton

    device, num_rows = logits.device, len(params)
    # Separate uploads: Triton compiles another kernel for a pointer that is not a multiple of 16 bytes.
    temperatures = upload([row.temperature if row.do_sample else 0.0 for row in params], torch.float64, device)
    top_ps = upload([row.top_p for row in params], torch.float64, device)
    limits = torch.full((num_rows,), -torch.inf, device=device)
    numbers = torch.zeros((num_rows, MAX_ATTEMPTS + 1), dtype=torch.float64, device=device)
    if any(row.do_sample for row in params):
        keys = upload([*(signed(seed) for seed in seeds), *positions], torch.int64, device).view(2, num_rows, 1)
        numbers = uniform(keys[0], keys[1], torch.arange(MAX_ATTEMPTS + 1, device=device))
    largest = min(max((row.top_k for row in params if row.do_sample), default=0), logits.shape[-1])
    if largest:
        best = logits.topk(largest, dim=-1).values.float()
        ranks = [min(row.top_k, largest) - 1 if row.do_sample and row.top_k else -1 for row in params]
        index = upload(ranks, torch.int64, device)
        limits = best.gather(-1, index.clamp(min=0)[:, None])[:, 0].where(index >= 0, limits)
    return choose(logits, temperatures, top_ps, limits, numbers)


def _constrain(logits: Tensor, sequences: Sequence[SequenceState]) -> None:
    """Apply repetition penalties and grammar masks, in place."""
    for index, sequence in enumerate(sequences):
        penalty = sequence.request.params.repetition_penalty
        if penalty != 1.0:
            seen = {*sequence.request.prompt_ids, *sequence.token_ids}
            penalize_repetition(logits[index], seen, penalty)
        if sequence.constraint is not None and sequence.is_open:
            sequence.constraint.mask(logits[index])


def _constrain_at_once(logits: Tensor, sequences: Sequence[SequenceState]) -> None:
    """As `_constrain`, for all rows at once: a few launches, and nothing that waits for the device."""
    penalized = [(row, sequence) for row, sequence in enumerate(sequences) if _has_penalty(sequence)]
    if penalized:
        seen = [sorted({*sequence.request.prompt_ids, *sequence.token_ids}) for _, sequence in penalized]
        places = [row * logits.shape[-1] + at for (row, _), ids in zip(penalized, seen, strict=True) for at in ids]
        factors = [
            sequence.request.params.repetition_penalty
            for (_, sequence), ids in zip(penalized, seen, strict=True)
            for _ in ids
        ]
        index = upload(places, torch.int64, logits.device)
        penalties = upload(factors, logits.dtype, logits.device)
        flat = logits.view(-1)
        scores = flat[index]
        flat[index] = torch.where(scores < 0, scores * penalties, scores / penalties)
    constraints = [
        (row, sequence.constraint)
        for row, sequence in enumerate(sequences)
        if sequence.constraint is not None and sequence.is_open
    ]
    if constraints:
        mask_rows(logits, constraints)


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
