"""The log-likelihood of continuations after a prompt."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

_MAX_LOGITS = 2**26  # numbers of the output layer held at once: 256 MiB in float32


@torch.inference_mode()
def score_continuations(
    model: Any,
    prompt_ids: Sequence[int],
    continuations: Sequence[Sequence[int]],
    num_rows: int,
    heartbeat: Callable[[], None],
) -> list[float]:
    """Return, per continuation, the sum of its tokens' log-probabilities after the prompt.

    Runs `num_rows` at a time, longest first, so that rows of like length are together. An empty continuation scores 0.
    """
    order = sorted(range(len(continuations)), key=lambda index: -len(continuations[index]))
    scores: dict[int, float] = {}
    for chunk in _chunks(order, continuations, num_rows, model.config.vocab_size):
        heartbeat()
        totals = _score_rows(model, prompt_ids, [continuations[index] for index in chunk])
        scores.update(zip(chunk, totals, strict=True))
    return [scores[index] for index in range(len(continuations))]


def _chunks(
    order: Sequence[int], continuations: Sequence[Sequence[int]], num_rows: int, vocab_size: int
) -> Iterator[Sequence[int]]:
    start = 0
    while start < len(order):
        row_logits = max(1, len(continuations[order[start]])) * vocab_size
        stop = start + max(1, min(num_rows, _MAX_LOGITS // row_logits))
        yield order[start:stop]
        start = stop


def _score_rows(model: Any, prompt_ids: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[float]:
    """One forward over prompt + continuation, padded on the right: what comes later is invisible to what is scored."""
    width = max(len(continuation) for continuation in continuations)
    if not width:
        return [0.0] * len(continuations)
    # The padding is a token of the prompt, so that it can't bring in a NaN of its own.
    padded = [[*continuation, *[prompt_ids[-1]] * (width - len(continuation))] for continuation in continuations]
    targets = torch.tensor(padded, device=model.device)  # [rows, width]
    prompt = torch.tensor(prompt_ids, device=model.device).expand(len(continuations), -1)
    # The last token is not fed in: nothing is asked about what follows it.
    input_ids = torch.cat([prompt, targets[:, :-1]], dim=1)
    logits = model(input_ids=input_ids, use_cache=False, logits_to_keep=width).logits
    log_probs = _log_softmax(logits).gather(-1, targets[..., None])[..., 0]  # [rows, width]
    lengths = torch.tensor([len(continuation) for continuation in continuations], device=model.device)
    real = torch.arange(width, device=model.device) < lengths[:, None]
    totals: list[float] = torch.where(real, log_probs, 0.0).sum(dim=-1).tolist()
    return totals


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.log_softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
