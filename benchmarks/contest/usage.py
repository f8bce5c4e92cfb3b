"""What a process and all its children use: the peak of their PSS, in which shared pages count once, and CPU seconds.

Read from /proc: on other systems than Linux both are 0.
"""

import os
import threading
from collections import defaultdict
from pathlib import Path

_INTERVAL_S = 2.0  # more often would take percents of the engine's time: each look walks through all of its pages

_FEATURES = {
    "AVX-512": {"avx512f"},
    "VNNI": {"avx512_vnni", "avx_vnni"},
    "bfloat16": {"avx512_bf16", "amx_bf16"},
    "AMX int8": {"amx_int8"},
}


class Usage:
    """Looks at the memory every two seconds while its block runs; the CPU seconds are those spent within."""

    def __init__(self, pids: list[int]) -> None:
        self.peak_bytes = 0
        self.cpu_s = -_cpu_s(pids)
        self._pids = pids
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Usage":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._look()
        self.cpu_s += _cpu_s(self._pids)

    def _watch(self) -> None:
        while not self._ended.wait(_INTERVAL_S):
            self._look()

    def _look(self) -> None:
        self.peak_bytes = max(self.peak_bytes, sum(map(_pss_bytes, _family(self._pids))))


def cpu_features() -> str:
    """What of the CPU decides how fast small numbers are multiplied, and its name where the system tells it."""
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "CPU unknown"
    name = next((line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")), "CPU")
    flags = set(info.split())
    having = [said for said, names in _FEATURES.items() if flags & names]
    return f"{name}: {', '.join(having) or 'none'} of {', '.join(_FEATURES)}"


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


def _cpu_s(pids: list[int]) -> float:
    """CPU seconds of these processes and all that come from them, ended ones included."""
    ticks = 0
    for pid in _family(pids):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(map(int, fields[11:15]))  # its own, user and system, and those of its children that have ended
    return ticks / os.sysconf("SC_CLK_TCK")
