"""Where logits become tokens: the one door for every engine, and for whatever may bind a row's choice."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dolly_batch.engine.continuous.sequence import Sequence as Decoded
from dolly_batch.engine.host_device import upload
from dolly_batch.engine.plain.batch import Row
from dolly_batch.engine.sampling import MAX_ATTEMPTS, choose_tokens, penalize_repetition, signed, uniform
from dolly_batch.records import GenerationParams


def next_tokens(logits: Tensor, rows: Sequence[Row]) -> tuple[list[int], list[bool]]:
    """Return each row's next token, and whether its logits were sound; [rows, vocabulary] logits may be changed.

    The token of a row whose logits hold a NaN or an infinity means nothing.
    """
    sums = logits.sum(dim=-1, dtype=logits.dtype if logits.dtype.itemsize > 2 else None)
    sound: list[bool] = sums.isfinite().tolist()
    if not all(sound):
        sound = logits.isfinite().all(dim=-1).tolist()  # a sum may overflow where no logit does
        logits = logits.nan_to_num()
    params = [row.request.params for row in rows]
    logits = logits.float()  # as `generate` does, whatever the model's dtype
    _bind(logits, rows)
    seeds = [row.request.seed for row in rows]
    positions = [len(row.token_ids) for row in rows]
    return choose_tokens(logits, params, seeds, positions).tolist(), sound


def unread_tokens(logits: Tensor, rows: Sequence[Decoded], use_kernel: bool) -> Tensor:
    """Return each row's next token on the device, [rows] int64, or -1 where its logits were not sound.

    With the kernel nothing here waits for the device, unless a row `needs_reading`.
    """
    if not rows:
        return torch.empty(0, dtype=torch.int64, device=logits.device)
    lowest, highest = logits.aminmax(dim=-1)  # both are NaN where one logit is; read once
    sound = lowest.isfinite() & highest.isfinite()
    if any(_is_bound(row) for row in rows):
        logits = logits.float()
        _bind(logits, rows)
    params = [row.request.params for row in rows]
    seeds = [row.request.seed for row in rows]
    positions = [row.num_answer_tokens for row in rows]
    if use_kernel:
        tokens = _choose_by_kernel(logits, params, seeds, positions)
    else:
        tokens = choose_tokens(logits.nan_to_num(), params, seeds, positions)
    return tokens.where(sound, -1)


def needs_reading(row: Row) -> bool:
    """Whether the row's tokens so far must be known to go on: a partial answer may follow its first token."""
    return _is_bound(row) or bool(row.request.partial_ids and not row.token_ids)


def _is_bound(row: Row) -> bool:
    return row.constraint is not None or row.request.params.repetition_penalty != 1.0


def _choose_by_kernel(
    logits: Tensor, params: Sequence[GenerationParams], seeds: Sequence[int], positions: Sequence[int]
) -> Tensor:
    from dolly_batch.engine.kernels.gpu.sample import choose  # needs triton

    device, num_rows = logits.device, len(params)
    # Apart, as the kernel is built anew for numbers that start anywhere else than at a multiple of 16 bytes.
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
        places = [min(row.top_k, largest) - 1 if row.do_sample and row.top_k else -1 for row in params]
        index = upload(places, torch.int64, device)
        limits = best.gather(-1, index.clamp(min=0)[:, None])[:, 0].where(index >= 0, limits)
    return choose(logits, temperatures, top_ps, limits, numbers)


def _bind(logits: Tensor, rows: Sequence[Row]) -> None:
    """Change, in place, the logits of rows that are penalized or held to a grammar."""
    for index, row in enumerate(rows):
        if row.request.params.repetition_penalty != 1.0:
            seen = {*row.request.prompt_ids, *row.token_ids}
            penalize_repetition(logits[index], seen, row.request.params.repetition_penalty)
        if row.constraint is not None and row.is_open:
            row.constraint.mask(logits[index])
