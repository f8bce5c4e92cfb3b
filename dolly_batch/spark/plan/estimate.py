"""How long the rows will take: rough rates, for laying out shards and for telling the user before the money is spent.

Each rate is answer tokens per second of one slot. They are reckoned as 1 / (FLOPs per token / sustained FLOP/s +
overhead), with constants fitted to what was measured (docs/log.md); `plan.tokens_per_s` overrides them.
"""

from dataclasses import dataclass

from dolly_batch.tasks.base import PREFILL_SPEEDUP

CPU_FLOPS, CPU_OVERHEAD_S = 6e10, 3e-4
GPU_FLOPS, GPU_OVERHEAD_S = 2e13, 1e-4
ECHO_TOKENS_PER_S = 200_000.0
EXPECTED_ANSWER_TOKENS = 80  # databricks-dolly-15k's mean


@dataclass(frozen=True)
class Rate:
    """The speed of one slot and what a row costs it."""

    tokens_per_s: float
    max_new_tokens: int

    @property
    def row_s(self) -> float:
        """Seconds to generate one answer of the expected length."""
        return min(self.max_new_tokens, EXPECTED_ANSWER_TOKENS) / self.tokens_per_s

    @property
    def prompt_token_s(self) -> float:
        """Seconds to read one prompt token."""
        return 1 / (self.tokens_per_s * PREFILL_SPEEDUP)


def slot_rate(num_parameters: int, on_gpu: bool, echo: bool, max_new_tokens: int, given: float | None) -> Rate:
    """The rate of one slot: the given one, or one reckoned from the model's size and the device."""
    if given is not None:
        return Rate(given, max_new_tokens)
    if echo:
        return Rate(ECHO_TOKENS_PER_S, max_new_tokens)
    flops, overhead = (GPU_FLOPS, GPU_OVERHEAD_S) if on_gpu else (CPU_FLOPS, CPU_OVERHEAD_S)
    return Rate(1 / (2 * num_parameters / flops + overhead), max_new_tokens)
