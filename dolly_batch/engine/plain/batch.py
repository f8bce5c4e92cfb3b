"""One batch on its way: rows that are decoded together, a token each at a time, from padded prompts.

Prompts are padded on the left, so that all rows' last tokens stand in one column. A row's padding is the row's own
first token, hidden by the attention mask: nothing of one row, not even a NaN, is in reach of another.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from dolly_batch.engine.grammar import Constraint
from dolly_batch.records import Failure, FinishReason, Request


@dataclass(eq=False)
class Row:
    """A request and what has been generated for it."""

    request: Request
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    failure: Failure | None = None
    constraint: Constraint | None = None
    num_partial: int = 0

    @property
    def is_open(self) -> bool:
        """Whether the row still takes tokens."""
        return self.finish_reason is None and self.failure is None

    def take(self, token_id: int, stop_id: int | None) -> None:
        """Append the next token, or end the row: by the stop token, or by having all it may have.

        A partial answer is appended whole when the first token is the one it begins with.
        """
        if token_id == stop_id:
            self.finish_reason = "stop"
            return
        partial_ids = self.request.partial_ids
        if partial_ids and not self.token_ids and token_id == partial_ids[0]:
            self.num_partial = len(partial_ids)
            self.token_ids.extend(partial_ids)
        else:
            self.token_ids.append(token_id)
        if self.constraint is not None:
            self.failure = self.constraint.take(token_id)
        if len(self.token_ids) == self.request.params.max_new_tokens and self.failure is None:
            self.finish_reason = "length"

    def restart(self) -> None:
        """Forget the answer so far. The same tokens will come again: they depend on prompt, seed and position alone."""
        self.token_ids.clear()
        self.num_partial = 0
        self.finish_reason = self.failure = None
        if self.constraint is not None:
            self.constraint.restart()


@dataclass
class Batch:
    """The tensors of the rows that run together.

    `mask` is [rows, tokens so far], 1 for real tokens, 0 for padding.
    """

    rows: list[Row]
    input_ids: Tensor  # [rows, prompt width], then [rows, 1], wider when partial answers are fed in
    mask: Tensor
    positions: Tensor  # as input_ids
    cache: Any = field(default_factory=DynamicCache)

    def append(self, token_ids: Sequence[Sequence[int]]) -> None:
        """Make each row's chosen tokens, one at least, the next input; padded on the left as prompts are."""
        self.input_ids, mask = pad_left(token_ids, self.mask.device)
        self.mask = torch.cat([self.mask, mask], dim=1)
        self.positions = self.positions[:, -1:] + mask.cumsum(dim=-1)

    def drop_ended(self) -> None:
        """Leave out rows that have ended, once they are half of the batch: less often, and copying would cost more."""
        kept = [index for index, row in enumerate(self.rows) if row.is_open]
        if 2 * len(kept) > len(self.rows):
            return
        self.rows = [self.rows[row] for row in kept]
        index = torch.tensor(kept, dtype=torch.long)  # on the CPU: the layers may lie on several devices
        self.input_ids, self.mask, self.positions = self.input_ids[index], self.mask[index], self.positions[index]
        self.cache.batch_select_indices(index)


def pad_left(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids and mask, both [rows, longest prompt]; every prompt must hold at least one id."""
    width = max(len(prompt) for prompt in prompts)
    ids = [[*[prompt[0]] * (width - len(prompt)), *prompt] for prompt in prompts]
    mask = [[*[0] * (width - len(prompt)), *[1] * len(prompt)] for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def count_positions(mask: Tensor) -> Tensor:
    """Return each token's place in its own row, padding not counted; 0 for the padding."""
    return (mask.cumsum(dim=-1) - 1).clamp(min=0)
