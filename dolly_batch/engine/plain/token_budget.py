"""The size of a padded batch, and how it shrinks when memory runs out."""

from collections.abc import Sequence

import torch

from dolly_batch.engine.requests import num_positions
from dolly_batch.engine.weights.loading import LoadedModel
from dolly_batch.models.sizing import layers_per_gpu
from dolly_batch.records import Request

MAX_SEQUENCES = 256  # more hardly raise the throughput, and each needs its logits over the whole vocabulary
# Measured with pythia-160m's shape on one core: 8,192 and 16,384 take 10 to 20 % more CPU time, 2,048 12 %.
_CPU_TOKENS = 4_096
_CPU_CACHE_BYTES = 4 * 2**30
_CUDA_SHARE = 0.8


def default_batch_tokens(loaded: LoadedModel) -> int:
    """Return how many tokens of cache a batch may hold, by the device's memory and the model's shape."""
    config, item_bytes = loaded.folder.config, loaded.dtype.itemsize
    cache_bytes = 2 * config.num_layers * config.kv_size * item_bytes  # keys and values
    if loaded.device.type != "cuda":
        return min(_CPU_TOKENS, _CPU_CACHE_BYTES // cache_bytes)
    # In addition to the cache: a layer's activations and mask in the prefill, and the copy made when the cache grows.
    activation_bytes = 24 * config.hidden_size * item_bytes + 4 * config.max_positions
    layer_copy_bytes = 2 * cache_bytes // config.num_layers
    logits_bytes = MAX_SEQUENCES * config.vocab_size * 8
    devices = loaded.devices or (loaded.device,)
    room = []
    for device, num_layers in zip(devices, layers_per_gpu(config, len(devices)), strict=True):
        num_free_bytes, _ = torch.cuda.mem_get_info(device)
        spare = max(0, _CUDA_SHARE * num_free_bytes - logits_bytes)
        own_cache_bytes = cache_bytes * num_layers / config.num_layers
        room.append(spare / (own_cache_bytes + activation_bytes + layer_copy_bytes))
    return max(config.max_positions, int(min(room)))


class TokenBudget:
    """Bounds sequences x (longest prompt + new tokens) of a batch; halved whenever a batch runs out of memory.

    The lower bound stays, except after a sequence that fails even alone: it says nothing about others, so the bound
    goes back to what it was before that sequence's batches began to fail.
    """

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._proven = max_tokens

    def num_sequences(self, waiting: Sequence[Request]) -> int:
        """How many of the first requests, longest first, make one batch: at least one where any waits."""
        longest_prompt = most_new = 0
        for count, request in enumerate(waiting[: MAX_SEQUENCES + 1]):
            longest_prompt = max(longest_prompt, len(request.prompt_ids))
            most_new = max(most_new, request.params.max_new_tokens)
            over = (count + 1) * (longest_prompt + most_new) > self.max_tokens
            # Those less than half as long wait for their own batch: padding them would cost more than another batch.
            short = 2 * num_positions(request) < num_positions(waiting[0])
            if count == MAX_SEQUENCES or (count and (over or short)):
                return count
        return len(waiting)

    def succeed(self) -> None:
        """A batch went through: the bound holds."""
        self._proven = self.max_tokens

    def fail(self, batch: Sequence[Request]) -> None:
        """A batch ran out of memory."""
        if len(batch) == 1:
            self.max_tokens = self._proven
            return
        longest_prompt = max(len(request.prompt_ids) for request in batch)
        most_new = max(request.params.max_new_tokens for request in batch)
        self.max_tokens = len(batch) // 2 * (longest_prompt + most_new)
