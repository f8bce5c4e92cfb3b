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
