"""Which row has computed what another needs: keys and values of a common start of two prompts are computed once."""

from bisect import bisect_left, insort

from dolly_batch.engine.continuous.sequence import Sequence

MIN_SHARED = 8  # fewer tokens are as soon computed as copied


class Prefixes:
    """The prompts whose keys and values lie in the cache, sorted, so that the nearest stand beside each other."""

    def __init__(self) -> None:
        self._rows: list[Sequence] = []

    def add(self, row: Sequence) -> None:
        """The row's prompt has been computed."""
        insort(self._rows, row, key=_prompt)

    def remove(self, row: Sequence) -> None:
        """The row leaves the cache."""
        if row in self._rows:
            self._rows.remove(row)

    def holds_only(self, row: Sequence) -> bool:
        """Whether this row's prompt is the only one."""
        return self._rows == [row]

    def longest(self, row: Sequence) -> tuple[Sequence | None, int]:
        """The row that shares the longest start with this one, and how many tokens: all but the last at most."""
        place = bisect_left(self._rows, _prompt(row), key=_prompt)
        best: tuple[Sequence | None, int] = (None, 0)
        for donor in self._rows[max(0, place - 1) : place + 1]:
            length = num_common(donor, row)
            if length > best[1]:
                best = (donor, length)
        return best


def num_common(donor: Sequence, row: Sequence) -> int:
    """Tokens that the prompts have in common at their start, the row's last one not counted."""
    ours, theirs = row.request.prompt_ids[:-1], donor.request.prompt_ids
    low, high = 0, min(len(ours), len(theirs))
    while low < high:
        middle = (low + high + 1) // 2
        if ours[low:middle] == theirs[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _prompt(row: Sequence) -> tuple[int, ...]:
    return row.request.prompt_ids
