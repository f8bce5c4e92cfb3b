"""The memory of a process and all its children: the peak of their PSS, in which shared pages count once."""

import threading
from collections import defaultdict
from pathlib import Path

_INTERVAL_S = 0.5


class PeakMemory:
    """Looks every half second, between `start` and `stop`. Linux only: elsewhere the peak is 0."""

    def __init__(self, pids: list[int]) -> None:
        self.peak_bytes = 0
        self._pids = pids
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._ended.wait(_INTERVAL_S):
            self._look()

    def _look(self) -> None:
        self.peak_bytes = max(self.peak_bytes, sum(map(_pss_bytes, _family(self._pids))))


def _family(pids: list[int]) -> set[int]:
    """These processes and all that come from them."""
    children = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = stat.read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue  # it has ended
        children[int(parent)].append(int(stat.parent.name))
    family, found = set(), list(pids)
    while found:
        pid = found.pop()
        family.add(pid)
        found += children[pid]
    return family


def _pss_bytes(pid: int) -> int:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return 1024 * int(rollup.partition("\nPss:")[2].split()[0]) if "\nPss:" in rollup else 0
