"""Where logits become tokens: the one door for every engine, and for whatever may bind a row's choice."""

from collections.abc import Sequence

from torch import Tensor

from dolly_batch.engine.batch import Row
from dolly_batch.engine.sampling import choose_tokens, penalize_repetition


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
    for index, row in enumerate(rows):
        if row.request.params.repetition_penalty != 1.0:
            seen = {*row.request.prompt_ids, *row.token_ids}
            penalize_repetition(logits[index], seen, row.request.params.repetition_penalty)
        if row.constraint is not None and row.is_open:
            row.constraint.mask(logits[index])
    seeds = [row.request.seed for row in rows]
    positions = [len(row.token_ids) for row in rows]
    return choose_tokens(logits, params, seeds, positions).tolist(), sound
