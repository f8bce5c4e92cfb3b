"""How long the rows will take: a rough estimate, to size the shards and to show the cost before a run.

A rate is answer tokens per second of one slot, computed as 1 / (FLOPs per token / sustained FLOP/s + overhead) with
constants fitted to measurements (docs/log.md). `plan.tokens_per_s` overrides it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from dolly_batch.tasks.base import PREFILL_SPEEDUP

CPU_FLOPS, CPU_OVERHEAD_S = 6e10, 3e-4
GPU_OVERHEAD_S = 1e-4
GPU_FLOPS_A_BYTE = 2e13 / 600e9
"""Answering is bound by the memory of a GPU; by how much is fitted to an A10, and measured on none."""
GPU_GB_PER_S = {
    **{"B200": 8000, "H200": 4800, "H100": 3350, "A100": 1555, "V100": 900},
    **{"L40": 864, "A40": 696, "A10": 600, "T4": 320, "L4": 300},
}
"""By what stands in a GPU's name; from data sheets. For others, an A10's."""
ECHO_TOKENS_PER_S = 200_000.0
EXPECTED_ANSWER_TOKENS = 80  # databricks-dolly-15k's mean


@dataclass(frozen=True)
class Rate:
    """The speed of one slot, and the tokens that an answer is allowed."""

    tokens_per_s: float
    max_new_tokens: int

    def seconds(self, num_rows: int, num_prompt_tokens: int) -> float:
        """Seconds that one slot takes to read the prompts and to generate answers of the expected length."""
        num_new_tokens = num_rows * min(self.max_new_tokens, EXPECTED_ANSWER_TOKENS)
        return (num_new_tokens + num_prompt_tokens / PREFILL_SPEEDUP) / self.tokens_per_s


def gpu_flops(names: Sequence[str]) -> float:
    """Sustained FLOP/s of one of two tasks on the slowest of these GPUs."""
    return GPU_FLOPS_A_BYTE * 1e9 * min(map(_gb_per_s, names), default=GPU_GB_PER_S["A10"])


def _gb_per_s(name: str) -> int:
    found = (rate for part, rate in GPU_GB_PER_S.items() if re.search(rf"{part}(?!\d)", name))
    return next(found, GPU_GB_PER_S["A10"])


def slot_rate(
    num_parameters: int,
    on_gpu: bool,
    echo: bool,
    max_new_tokens: int,
    given: float | None,
    gpu_names: Sequence[str] = (),
) -> Rate:
    """The rate of one slot: the given one, or an estimate from the model's size and the device (the slowest GPU)."""
    if given is not None:
        return Rate(given, max_new_tokens)
    if echo:
        return Rate(ECHO_TOKENS_PER_S, max_new_tokens)
    flops, overhead = (gpu_flops(gpu_names), GPU_OVERHEAD_S) if on_gpu else (CPU_FLOPS, CPU_OVERHEAD_S)
    return Rate(1 / (2 * num_parameters / flops + overhead), max_new_tokens)
