"""The forwards of scoring: the prompts' common prefix, the prompts, and the branches after them, each run once.

    prefix [1, known]    prompts [rows, rest]    branches [branches, nodes]

A prompt sees the prefix. A branch is a part of a prompt's trie: its nodes see the prefix, their prompt and the nodes
above them, by a mask of four dimensions, at the position that their depth gives. The keys and values before
them are concatenated layer by layer and dropped again, so that a prompt is kept once, however many branches it has.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from dolly_batch.engine.scoring.trie import Trie

_Layers = list[tuple[Tensor, Tensor]]  # keys and values of each layer, [rows, heads, tokens, head size]


@dataclass(frozen=True)
class Prefix:
    """A common prefix that has been run."""

    ids: tuple[int, ...] = ()
    layers: Sequence[tuple[Tensor, Tensor]] = ()


@dataclass(frozen=True)
class Prompts:
    """Prompts that have been run: their lengths after the prefix, and the hidden states of their last tokens."""

    lengths: Sequence[int]
    layers: _Layers
    hidden: Tensor  # [prompts, hidden size]


class _PastLayers(DynamicCache):
    """The keys and values before the tokens of one forward: parts, concatenated, with these rows of each part.

    None takes the part's only row for all. What the forward adds itself is in `layers_added`.
    """

    def __init__(self, *parts: tuple[Sequence[tuple[Tensor, Tensor]], Tensor | None]) -> None:
        super().__init__()
        self._parts = [(layers, rows) for layers, rows in parts if layers]
        self.layers_added: _Layers = []

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep a layer's new keys and values; return them after the past ones."""
        self.layers_added.append((key_states, value_states))
        parts = [(*layers[layer_idx], rows) for layers, rows in self._parts]
        num_rows = len(key_states)
        keys = [_taken(keys, rows, num_rows) for keys, _, rows in parts]
        values = [_taken(values, rows, num_rows) for _, values, rows in parts]
        if not parts:
            return key_states, value_states
        return torch.cat([*keys, key_states], dim=2), torch.cat([*values, value_states], dim=2)


def _taken(tensor: Tensor, rows: Tensor | None, num_rows: int) -> Tensor:
    return tensor.expand(num_rows, -1, -1, -1) if rows is None else tensor.index_select(0, rows.to(tensor.device))


def run_prefix(model: Any, ids: tuple[int, ...]) -> Prefix:
    """Run a common prefix."""
    seen = _PastLayers()
    model.base_model(
        input_ids=torch.tensor([ids], device=model.device),
        position_ids=torch.arange(len(ids), device=model.device)[None],
        past_key_values=seen,
        use_cache=True,
    )
    return Prefix(ids, seen.layers_added)


def run_prompts(model: Any, prefix: Prefix, prompts: Sequence[tuple[int, ...]]) -> Prompts:
    """Run prompts that continue the prefix."""
    known = len(prefix.ids)
    lengths = [len(prompt) - known for prompt in prompts]
    width = max(lengths)
    # Padding is on the right, where a causal mask hides it.
    ids = [[*prompt[known:], *[prompt[-1]] * (width - length)] for prompt, length in zip(prompts, lengths, strict=True)]
    mask = None
    if known:
        visible = torch.ones(width, known + width, dtype=torch.bool).tril(known)
        mask = _additive(visible, model)[None, None]
    seen = _PastLayers((prefix.layers, None))
    hidden = model.base_model(
        input_ids=torch.tensor(ids, device=model.device),
        attention_mask=mask,
        position_ids=torch.arange(known, known + width, device=model.device)[None],
        past_key_values=seen,
        use_cache=True,
    ).last_hidden_state
    last = torch.tensor(lengths, device=model.device) - 1
    return Prompts(lengths, seen.layers_added, hidden[torch.arange(len(prompts), device=model.device), last])


def run_branches(model: Any, prefix: Prefix, prompts: Prompts, branches: Sequence[tuple[int, Trie]]) -> Tensor:
    """Run branches, each given with its prompt's number; return their nodes' hidden states, [nodes, hidden size]."""
    known, longest = len(prefix.ids), max(prompts.lengths)
    width = max(trie.num_nodes for _, trie in branches)
    before = known + longest
    visible = torch.zeros(len(branches), width, before + width, dtype=torch.bool)
    visible[:, range(width), range(before, before + width)] = True  # padding sees itself alone, and nothing sees it
    ids, positions = [], []
    nodes: list[int] = []
    for row, (prompt, trie) in enumerate(branches):
        first, size = known + prompts.lengths[prompt], trie.num_nodes
        visible[row, :size, :first] = True
        visible[row, :size, before : before + size] = trie.ancestors
        padding = [0] * (width - size)
        ids.append([*trie.token_ids, *padding])
        positions.append([*(first + depth for depth in trie.depths), *padding])
        nodes += range(row * width, row * width + size)
    rows = torch.tensor([prompt for prompt, _ in branches], device=model.device)
    hidden: Tensor = model.base_model(
        input_ids=torch.tensor(ids, device=model.device),
        attention_mask=_additive(visible, model)[:, None],
        position_ids=torch.tensor(positions, device=model.device),
        past_key_values=_PastLayers((prefix.layers, None), (prompts.layers, rows)),
        use_cache=True,
    ).last_hidden_state
    return hidden.flatten(0, 1)[torch.tensor(nodes, device=model.device)]


def _additive(visible: Tensor, model: Any) -> Tensor:
    """An additive attention mask: 0 where a token is visible, the lowest number elsewhere."""
    mask = torch.zeros(visible.shape, dtype=model.dtype)
    return mask.masked_fill_(~visible, torch.finfo(model.dtype).min).to(model.device)
