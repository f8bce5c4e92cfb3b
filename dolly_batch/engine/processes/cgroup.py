"""A container's limits on memory and processor time, read from its control group, version 2 or 1.

`root` is where the control groups are mounted: inside a container /sys/fs/cgroup is the container's group. A file that
is missing or cannot be parsed is no limit.
"""

from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
# Version 1 writes "no limit" as the largest multiple of a page that fits 63 bits.
_UNLIMITED = 2**62


def free_bytes(root: Path = ROOT) -> int | None:
    """Memory that the container may still take, None without a limit.

    The page cache that is not in use is counted as free, as the kernel gives it up first: after a model is read, the
    cache holds all of its files.
    """
    for limit_file, used_file, stat_file, cache_name in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file",
        ),
    ):
        limit, used = _number(root / limit_file), _number(root / used_file)
        if limit is not None and used is not None and limit < _UNLIMITED:
            return max(0, limit - max(0, used - _stat(root / stat_file, cache_name)))
    return None


def num_cores(root: Path = ROOT) -> float | None:
    """Cores' worth of time that the container may use, None without a quota."""
    words = _words(root / "cpu.max")
    for folder in ("cpu", "cpu,cpuacct"):
        words = words or [*_words(root / folder / "cpu.cfs_quota_us"), *_words(root / folder / "cpu.cfs_period_us")]
    try:
        quota, period = map(int, words)
    except ValueError:  # "max", or not two numbers
        return None
    return quota / period if quota > 0 and period > 0 else None


def _words(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return []


def _number(file: Path) -> int | None:
    """The one number in the file; None when it is not there or says "max"."""
    words = _words(file)
    return int(words[0]) if len(words) == 1 and words[0].isdecimal() else None


def _stat(file: Path, name: str) -> int:
    """The number after a name, 0 when there is none."""
    words = _words(file)
    numbers = dict(zip(words[::2], words[1::2], strict=False))
    number = numbers.get(name, "")
    return int(number) if number.isdecimal() else 0
