"""How long the rows will take: a rough estimate, to size the shards and to show the cost before a run.

A rate is answer tokens per second of one slot, computed as 1 / (FLOPs per token / sustained FLOP/s + overhead) with
constants fitted to measurements (docs/log.md). `plan.tokens_per_s` overrides it.
"""

from dataclasses import dataclass

from dolly_batch.tasks.base import PREFILL_SPEEDUP

CPU_FLOPS, CPU_OVERHEAD_S = 6e10, 3e-4
GPU_FLOPS, GPU_OVERHEAD_S = 2e13, 1e-4
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


def slot_rate(num_parameters: int, on_gpu: bool, echo: bool, max_new_tokens: int, given: float | None) -> Rate:
    """The rate of one slot: the given one, or an estimate from the model's size and the device."""
    if given is not None:
        return Rate(given, max_new_tokens)
    if echo:
        return Rate(ECHO_TOKENS_PER_S, max_new_tokens)
    flops, overhead = (GPU_FLOPS, GPU_OVERHEAD_S) if on_gpu else (CPU_FLOPS, CPU_OVERHEAD_S)
    return Rate(1 / (2 * num_parameters / flops + overhead), max_new_tokens)
