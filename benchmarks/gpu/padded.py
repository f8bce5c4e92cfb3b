"""Hugging Face's `generate` over padded batches, as a careful user would set it up: the peer of this benchmark.

Rows are sorted by their prompts' length, batches are as large as memory allows, and each runs to its longest answer.
"""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from dolly_batch.engine.plain.batch import pad_left
from dolly_batch.engine.weights.loading import LoadedModel
from dolly_batch.records import Request

BATCH_SIZES = (256, 128, 64, 32)
_MEMORY_SHARE = 0.7  # a growing cache is copied, and the allocator leaves gaps
_OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)


@dataclass(frozen=True)
class Padded:
    """The best batch size and what it reached: answer tokens of the rows themselves, not of the padding."""

    batch_size: int
    num_rows: int
    answer_tokens: int
    seconds: float

    @property
    def tokens_s(self) -> float:
        return self.answer_tokens / self.seconds


def run_padded(
    loaded: LoadedModel, requests: Sequence[Request], token_bytes: int, deadline: float, say: Callable[[str], None]
) -> Padded | None:
    """Try batch sizes from the largest until a smaller one is slower or the time is over; None if none came through."""
    loaded.model.set_attn_implementation("sdpa")  # an engine may have put in its own
    loaded.model.generation_config = GenerationConfig(use_cache=True)
    ordered = sorted(requests, key=lambda request: -len(request.prompt_ids))
    best: Padded | None = None
    _generate(loaded, ordered[-8:], 4)
    for size in (size for size in BATCH_SIZES if size <= max(len(ordered), BATCH_SIZES[-1])):
        found = _try_size(loaded, ordered, size, token_bytes, deadline)
        if found is None:
            say(f"padded generate, {size} rows a batch: no time left")
            break
        say(f"padded generate, {size} rows a batch: {found.tokens_s:,.0f} answer tokens/s")
        if best is not None and found.tokens_s < best.tokens_s:
            break
        best = found
    return best


def _try_size(
    loaded: LoadedModel, ordered: Sequence[Request], size: int, token_bytes: int, deadline: float
) -> Padded | None:
    """Run all rows in batches of at most `size`; None when the deadline came first."""
    started = time.monotonic()
    waiting = [*ordered]
    while waiting:
        if time.monotonic() > deadline:
            return None
        count = _num_fitting(loaded.device, waiting[:size], token_bytes)
        while True:
            batch = waiting[:count]
            try:
                _generate(loaded, batch, max(request.params.max_new_tokens for request in batch))
                break
            except _OUT_OF_MEMORY:
                if count == 1:
                    raise
            count //= 2
            _free(loaded.device)
        del waiting[:count]
    taken = time.monotonic() - started
    return Padded(size, len(ordered), sum(request.params.max_new_tokens for request in ordered), taken)


def _num_fitting(device: torch.device, requests: Sequence[Request], token_bytes: int) -> int:
    """Rows of a batch, longest prompts first, whose keys and values fit."""
    if device.type != "cuda":
        return len(requests)
    _free(device)
    free, _ = torch.cuda.mem_get_info(device)
    longest = len(requests[0].prompt_ids)
    for count in range(len(requests), 1, -1):
        answer = max(request.params.max_new_tokens for request in requests[:count])
        if count * (longest + answer) * token_bytes <= _MEMORY_SHARE * free:
            return count
    return 1


def _generate(loaded: LoadedModel, requests: Sequence[Request], max_new_tokens: int) -> Any:
    params = requests[0].params
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=params.do_sample,
        **({"top_p": params.top_p, "top_k": 0, "temperature": params.temperature} if params.do_sample else {}),
        pad_token_id=0,
        use_cache=True,
    )
    ids, mask = pad_left([request.prompt_ids for request in requests], loaded.device)
    with torch.inference_mode():
        output = loaded.model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    if output.shape[1] != ids.shape[1] + max_new_tokens:
        raise RuntimeError(f"generate made {output.shape[1] - ids.shape[1]} tokens, asked for {max_new_tokens}")
    return output


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
