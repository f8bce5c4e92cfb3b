"""One padded batch: sequences that are decoded together, a token each per forward.

Prompts are padded on the left, so that all last tokens stand in one column. The padding repeats the prompt's first
token and is hidden by the attention mask: nothing of one sequence, not even a NaN, reaches another.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from dolly_batch.engine.sequence import SequenceState


@dataclass
class Batch:
    """The tensors of the sequences that run together.

    `mask` is [sequences, tokens so far], 1 for real tokens, 0 for padding.
    """

    sequences: list[SequenceState]
    input_ids: Tensor  # [sequences, prompt width], then [sequences, 1], wider when partial answers are fed in
    mask: Tensor
    positions: Tensor  # as input_ids
    cache: Any = field(default_factory=DynamicCache)

    def append(self, token_ids: Sequence[Sequence[int]]) -> None:
        """Make each sequence's new tokens, at least one, the next input; padded on the left as prompts are."""
        self.input_ids, mask = pad_left(token_ids, self.mask.device)
        self.mask = torch.cat([self.mask, mask], dim=1)
        self.positions = self.positions[:, -1:] + mask.cumsum(dim=-1)

    def drop_ended(self) -> None:
        """Remove ended sequences once they are half of the batch: more often, the copies would cost more."""
        kept = [index for index, sequence in enumerate(self.sequences) if sequence.is_open]
        if 2 * len(kept) > len(self.sequences):
            return
        self.sequences = [self.sequences[index] for index in kept]
        index = torch.tensor(kept, dtype=torch.long)  # on the CPU: the layers may lie on several devices
        self.input_ids, self.mask, self.positions = self.input_ids[index], self.mask[index], self.positions[index]
        self.cache.batch_select_indices(index)


def pad_left(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids and mask, both [prompts, longest prompt]; every prompt must hold at least one id."""
    width = max(len(prompt) for prompt in prompts)
    ids = [[*[prompt[0]] * (width - len(prompt)), *prompt] for prompt in prompts]
    mask = [[*[0] * (width - len(prompt)), *[1] * len(prompt)] for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def count_positions(mask: Tensor) -> Tensor:
    """Return each token's position in its sequence, padding not counted; 0 for the padding."""
    return (mask.cumsum(dim=-1) - 1).clamp(min=0)
