"""A trial at start-up: does a row get the same bits alone and among others, with this model on this machine?"""

import torch

from dolly_batch.engine.continuous.cache import CacheShape
from dolly_batch.engine.continuous.cpu.pools import Pools
from dolly_batch.engine.continuous.engine import ContinuousEngine
from dolly_batch.engine.continuous.sequence import Sequence, Step
from dolly_batch.engine.kernels.cpu.compiled import find_pool_kernels
from dolly_batch.engine.weights.loading import LoadedModel
from dolly_batch.records import GenerationParams, Request

_LENGTHS = (5, 12, 19)
_PARAMS = GenerationParams(max_new_tokens=3, do_sample=False)


class _Witness(ContinuousEngine):
    """Keeps the logits of every row."""

    seen: dict[str, list[torch.Tensor]]

    def _forward(self, step: Step) -> tuple[list[Sequence], torch.Tensor]:
        rows, logits = super()._forward(step)
        for row, row_logits in zip(rows, logits, strict=True):
            self.seen.setdefault(row.request.key, []).append(row_logits.clone())
        return rows, logits


def is_batch_invariant(loaded: LoadedModel) -> bool:
    """Whether every row's logits are the same to the bit alone and among the others. Takes a few forwards."""
    rows = [
        Request(str(length), tuple(token * 7 % loaded.folder.vocab_size for token in range(length)), _PARAMS)
        for length in _LENGTHS
    ]
    among = _logits(loaded, rows)
    for row in rows:
        alone = _logits(loaded, [row])[row.key]
        if not all(torch.equal(one, other) for one, other in zip(alone, among[row.key], strict=True)):
            return False
    return True


def _logits(loaded: LoadedModel, rows: list[Request]) -> dict[str, list[torch.Tensor]]:
    shape = CacheShape.of(loaded)
    engine = _Witness(
        loaded,
        Pools(shape, 16 * 256 * shape.token_bytes, find_pool_kernels(shape.num_heads, shape.head_size, shape.dtype)),
    )
    engine.seen = {}
    for row in rows:
        engine.submit(row)
    while engine.num_unfinished:
        engine.step()
    return engine.seen
