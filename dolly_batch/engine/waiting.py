"""The order in which requests wait: the longest first, but those that begin alike one behind the other. No torch.

Requests that begin alike come side by side (see the layout of shards). An engine computes their common beginning once,
as long as one of them is in its batch.
"""

from collections.abc import Sequence

Rank = tuple[int, int, int]
UNRANKED: Rank = (0, 0, 0)

MIN_COMMON = 64
"""Tokens. Fewer are computed as soon as they are waited for."""


class WaitingOrder:
    """Ranks requests as they come; the lowest rank is next."""

    def __init__(self) -> None:
        self._num_ranked = 0
        self._last: tuple[Sequence[int], Rank] = ((), UNRANKED)

    def rank(self, prompt_ids: Sequence[int], size: int) -> Rank:
        """The rank of a request of `size` tokens: behind its predecessor where they begin alike, else by its size."""
        self._num_ranked += 1
        last_ids, (size_before, group, _) = self._last
        if begin_alike(last_ids, prompt_ids):
            rank = (size_before, group, self._num_ranked)
        else:
            rank = (-size, self._num_ranked, self._num_ranked)
        self._last = (prompt_ids, rank)
        return rank


def begin_alike(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether a good part of a prompt, half of the shorter one, is the beginning of another prompt too."""
    num_wanted = max(MIN_COMMON, min(len(one), len(other)) // 2)
    return len(one) >= num_wanted and len(other) >= num_wanted and one[:num_wanted] == other[:num_wanted]
