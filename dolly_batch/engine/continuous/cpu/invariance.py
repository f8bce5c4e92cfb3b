"""Self test of batch invariance: does a sequence get the same bits alone and in a batch, on this machine?"""

import torch

from dolly_batch.engine.continuous.cache import CacheShape
from dolly_batch.engine.continuous.cpu.pools import KVPools
from dolly_batch.engine.continuous.engine import ContinuousEngine
from dolly_batch.engine.continuous.sequence import CachedSequence, Step
from dolly_batch.engine.weights.loading import LoadedModel
from dolly_batch.records import GenerationParams, Request

_LENGTHS = (5, 12, 19, 70)  # one alone, and together more rows than four of AMX's tiles
_PARAMS = GenerationParams(max_new_tokens=3, do_sample=False)


class _RecordingEngine(ContinuousEngine):
    """Keeps the logits of every sequence."""

    seen: dict[str, list[torch.Tensor]]

    def _forward(self, step: Step) -> tuple[list[CachedSequence], torch.Tensor]:
        sequences, logits = super()._forward(step)
        for sequence, own_logits in zip(sequences, logits, strict=True):
            self.seen.setdefault(sequence.request.key, []).append(own_logits.clone())
        return sequences, logits


def is_batch_invariant(loaded: LoadedModel) -> bool:
    """Whether every sequence's logits are the same to the bit alone and in a batch. Takes a few forwards."""
    longest = loaded.folder.max_positions - _PARAMS.max_new_tokens
    requests = [
        Request(str(length), tuple(token * 7 % loaded.folder.vocab_size for token in range(length)), _PARAMS)
        for length in (min(length, longest) for length in _LENGTHS)
    ]
    among = _logits(loaded, requests)
    for request in requests:
        alone = _logits(loaded, [request])[request.key]
        if not all(torch.equal(one, other) for one, other in zip(alone, among[request.key], strict=True)):
            return False
    return True


def _logits(loaded: LoadedModel, requests: list[Request]) -> dict[str, list[torch.Tensor]]:
    shape = CacheShape.of(loaded)
    engine = _RecordingEngine(loaded, KVPools.with_kernels(shape, 16 * 256 * shape.token_bytes))
    engine.seen = {}
    for request in requests:
        engine.submit(request)
    while engine.num_unfinished:
        engine.step()
    return engine.seen
