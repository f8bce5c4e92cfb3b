"""Prefix sharing: which cached prompt has the longest start in common with a new one."""

from bisect import bisect_left, insort

from dolly_batch.engine.continuous.sequence import CachedSequence

MIN_SHARED = 8  # fewer tokens are computed as fast as they are copied


class Prefixes:
    """Sequences whose prompts are cached, sorted by prompt: the longest common start is a neighbour's."""

    def __init__(self) -> None:
        self._sequences: list[CachedSequence] = []

    def add(self, sequence: CachedSequence) -> None:
        """The sequence's prompt has been computed."""
        insort(self._sequences, sequence, key=_prompt)

    def remove(self, sequence: CachedSequence) -> None:
        """The sequence leaves the cache."""
        if sequence in self._sequences:
            self._sequences.remove(sequence)

    def is_only(self, sequence: CachedSequence) -> bool:
        """Whether this sequence's prompt is the only one here."""
        return self._sequences == [sequence]

    def longest(self, sequence: CachedSequence) -> tuple[CachedSequence | None, int]:
        """The best prefix source for a sequence, and how many tokens they share: all but its last at most."""
        index = bisect_left(self._sequences, _prompt(sequence), key=_prompt)
        best: tuple[CachedSequence | None, int] = (None, 0)
        for source in self._sequences[max(0, index - 1) : index + 1]:
            length = num_common(source, sequence)
            if length > best[1]:
                best = (source, length)
        return best


def num_common(source: CachedSequence, sequence: CachedSequence) -> int:
    """Tokens that the prompts have in common at their start, the last one of `sequence` not counted."""
    ours, theirs = sequence.request.prompt_ids[:-1], source.request.prompt_ids
    low, high = 0, min(len(ours), len(theirs))
    while low < high:
        middle = (low + high + 1) // 2
        if ours[low:middle] == theirs[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _prompt(sequence: CachedSequence) -> tuple[int, ...]:
    return sequence.request.prompt_ids
