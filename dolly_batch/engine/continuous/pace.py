"""How much goes into a step: by what the device is good at, and by what it was seen to have memory for."""

from dataclasses import dataclass

# Chunks end at multiples of this, in absolute positions, so that they do not depend on the batch.
CHUNK_TOKENS = 256
STEP_TOKENS = 512  # of prompts; beyond some hundred, more at once is no faster
_FIRST_PATIENCE, _LONGEST_PATIENCE = 16, 1024  # steps


@dataclass(frozen=True, slots=True)
class StepLimits:
    """How much goes into a step, by what the device is good at.

    Sequences are admitted every `admit_every` steps while others decode, so that a device that runs prompts
    separately runs many at a time. `regrows` is whether keys and values are reserved beforehand: what ran out then was
    a step's own memory, and less of it may be needed later, or more of it be there.
    """

    chunk_tokens: int = CHUNK_TOKENS
    step_tokens: int = STEP_TOKENS
    admit_every: int = 1
    regrows: bool = False


CPU_LIMITS = StepLimits()


class Pace:
    """How many sequences may run, and how many tokens of prompts go into a step: halved when memory runs out.

    A sequence that fails even alone says nothing about others: the limit of sequences goes back to what it was. Where
    limits regrow, both rise by a tenth after some good steps, after twice as many with each failure.
    """

    def __init__(self, max_sequences: int, limits: StepLimits) -> None:
        self.max_sequences = self._all_sequences = max_sequences
        self.step_tokens = limits.step_tokens
        self._limits = limits
        self._patience = self._num_to_go = _FIRST_PATIENCE

    def fail(self, num_sequences: int) -> None:
        """A step of so many sequences ran out of memory."""
        self.max_sequences = num_sequences // 2 if num_sequences > 1 else self._all_sequences
        self._wait_longer()

    def fail_prompts(self, num_tokens: int) -> None:
        """A step with so many tokens of prompts ran out of memory."""
        self.step_tokens = max(1, min(self.step_tokens, num_tokens) // 2)
        self._wait_longer()

    def succeed(self) -> None:
        """A step ran."""
        if not self._limits.regrows:
            return
        self._num_to_go -= 1
        if self._num_to_go <= 0:
            self._num_to_go = self._patience
            self.max_sequences = min(self._all_sequences, self.max_sequences + 1 + self.max_sequences // 10)
            self.step_tokens = min(self._limits.step_tokens, self.step_tokens + 1 + self.step_tokens // 10)

    def _wait_longer(self) -> None:
        self._num_to_go = self._patience
        self._patience = min(2 * self._patience, _LONGEST_PATIENCE)
