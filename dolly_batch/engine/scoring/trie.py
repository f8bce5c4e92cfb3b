"""Continuations of one prompt as a trie: what they share is run once.

A node is a token that is fed to the model, below the node before it; the root is the prompt's last token. An edge is a
token whose probability is asked for at a node. A continuation's last token is asked for and never fed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

ROOT = -1


@dataclass(frozen=True)
class Trie:
    """The trie of some continuations.

    `token_ids`, `depths` (0 for a continuation's first token) and `ancestors` describe the nodes; `ancestors` is
    [nodes, nodes], true where the column is the row itself or above it. `edges` are (node, token) pairs; `paths` holds,
    per continuation, the numbers of the edges that it is made of.
    """

    token_ids: tuple[int, ...]
    depths: tuple[int, ...]
    ancestors: Tensor
    edges: tuple[tuple[int, int], ...]
    paths: tuple[tuple[int, ...], ...]

    @property
    def num_nodes(self) -> int:
        """Tokens to be fed."""
        return len(self.token_ids)


@lru_cache(maxsize=256)
def build_trie(continuations: tuple[tuple[int, ...], ...]) -> Trie:
    """Build the trie; kept, because a job's labels are the same for all of its rows."""
    fed = {continuation[:end] for continuation in continuations for end in range(1, len(continuation))}
    nodes = sorted(fed)  # parents before their children
    number = {prefix: index for index, prefix in enumerate(nodes)}
    edges: dict[tuple[int, int], int] = {}
    paths = []
    for continuation in continuations:
        parents = [ROOT, *(number[continuation[:end]] for end in range(1, len(continuation)))]
        steps = zip(parents, continuation, strict=True) if continuation else ()
        paths.append(tuple(edges.setdefault(step, len(edges)) for step in steps))
    lines = [(number[node], number[node[:end]]) for node in nodes for end in range(1, len(node) + 1)]
    ancestors = torch.zeros(len(nodes), len(nodes), dtype=torch.bool)
    if lines:
        below, above = zip(*lines, strict=True)
        ancestors[list(below), list(above)] = True
    return Trie(
        token_ids=tuple(node[-1] for node in nodes),
        depths=tuple(len(node) - 1 for node in nodes),
        ancestors=ancestors,
        edges=tuple(edges),
        paths=tuple(paths),
    )


# The cost of attending to one token, and of copying its keys and values, relative to a token's own products: measured
# on one core. Both are divided by the hidden size.
_SEEING = 1 / 6
_COPYING = 4.0
_WIDTHS = (32, 64, 128, 256, 512, 1024)


@lru_cache(maxsize=256)
def branches(
    continuations: tuple[tuple[int, ...], ...], num_seen: int, hidden_size: int, max_nodes: int = _WIDTHS[-1]
) -> tuple[tuple[tuple[int, ...], Trie], ...]:
    """The trie in branches of at most `max_nodes` nodes: the numbers of their continuations, and their own tries.

    In one branch every node attends to all others; many small ones copy the `num_seen` tokens before them for each.
    The cheapest width is taken.
    """
    widths = [width for width in _WIDTHS if width < max_nodes] + [max_nodes]
    split_up = [list(split(continuations, width)) for width in widths]
    groups = min(split_up, key=lambda groups: _cost(continuations, groups, num_seen, hidden_size))
    if len(groups) == 1:  # in their own order: the tuple under which the trie is cached
        return ((tuple(range(len(continuations))), build_trie(continuations)),)
    return tuple((tuple(group), build_trie(tuple(continuations[index] for index in group))) for group in groups)


def _cost(
    continuations: Sequence[tuple[int, ...]], groups: Sequence[Sequence[int]], num_seen: int, hidden_size: int
) -> float:
    """In products of a token: padded nodes, attention, and copies for each group."""
    width = max((_num_nodes(continuations, group) for group in groups), default=0)
    each = width * (1 + _SEEING * (num_seen + width) / hidden_size) + _COPYING * num_seen / hidden_size
    return len(groups) * each


def _num_nodes(continuations: Sequence[tuple[int, ...]], group: Sequence[int]) -> int:
    return len({continuations[index][:end] for index in group for end in range(1, len(continuations[index]))})


def split(continuations: Sequence[tuple[int, ...]], max_nodes: int) -> Iterator[list[int]]:
    """Yield the numbers of the continuations in groups whose tries have at most `max_nodes` nodes, or one member.

    Those with the same beginning stay together.
    """
    group: list[int] = []
    fed: set[tuple[int, ...]] = set()
    for index in sorted(range(len(continuations)), key=lambda index: continuations[index]):
        continuation = continuations[index]
        more = {continuation[:end] for end in range(1, len(continuation))}
        if group and len(fed | more) > max_nodes:
            yield group
            group, fed = [], set()
        group.append(index)
        fed |= more
    if group:
        yield group
