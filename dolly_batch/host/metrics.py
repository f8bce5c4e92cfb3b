"""Counts of an engine host, as a file that Prometheus' node exporter collects (its textfile collector).

Off unless the job names a folder, `engine.metrics_dir`. One file a host, replaced as a whole: a reader sees the old
one or the new one. Nothing of a row is in it.
"""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dolly_batch.records import Completion, Scores

WRITE_EVERY_S = 10.0
IDLE_EVERY_S = 1.0
"""At least so far apart are two writes, one of them because nothing is left to do."""
# What engines count themselves (`stats`), where they do: our name, and what it says.
_OF_ENGINE = {
    "num_out_of_memory": ("out_of_memory_steps_total", "counter", "Steps for which there was no memory."),
    "num_preempted": ("preempted_rows_total", "counter", "Rows that gave their memory back, to start again later."),
    "kv_bytes": ("kv_bytes", "gauge", "Bytes of keys and values in use."),
    "peak_kv_bytes": ("kv_peak_bytes", "gauge", "The most bytes of keys and values that were in use."),
}
_NO_STATS: Mapping[str, float] = {}


class Metrics:
    """The counts of one host. Without a folder nothing is counted or written.

    `stats` asks the engine for its own counts, which may take as long as one of its steps.
    """

    def __init__(self, folder: str | None, engine_id: str, device: str | None) -> None:
        self._path = None if folder is None else Path(folder) / f"dolly_batch_{_safe(engine_id)}.prom"
        self._labels = f'engine="{_safe(engine_id)}",device="{_safe(device or "cpu")}"'
        self._rows: Counter[str] = Counter()
        self._num_prompt_tokens = self._num_tokens = 0
        self._written_at = -WRITE_EVERY_S  # as `time.monotonic()`, which may be young
        self._is_idle_written = False

    def count(self, answers: Sequence[Completion | Scores]) -> None:
        """Count answers of the engine."""
        if self._path is None:
            return
        self._is_idle_written = False
        for answer in answers:
            self._rows["answered" if answer.failure is None else answer.failure.status] += 1
            self._num_prompt_tokens += answer.num_prompt_tokens
            if isinstance(answer, Completion):
                self._num_tokens += answer.num_completion_tokens - answer.num_partial_tokens

    @property
    def idle_s(self) -> float | None:
        """Seconds until the file is to say that nothing is in work; None where it does, or there is none."""
        return None if self._path is None or self._is_idle_written else self._due_s(IDLE_EVERY_S)

    def _due_s(self, every_s: float) -> float:
        return max(0.0, self._written_at + every_s - time.monotonic())

    def write(self, num_in_work: int, stats: Callable[[], Mapping[str, float]] = lambda: _NO_STATS) -> None:
        """Write the file, where ten seconds have passed, or nothing is in work any more and `idle_s` have passed.

        A folder that cannot be written costs the metrics, and nothing else.
        """
        if num_in_work:
            self._is_idle_written = False
        wait_s = self._due_s(WRITE_EVERY_S) if num_in_work else self.idle_s
        if self._path is None or wait_s is None or wait_s > 0:
            return
        self._written_at, self._is_idle_written = time.monotonic(), not num_in_work
        partial = self._path.with_suffix(".partial")
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(self._text(num_in_work, stats()), encoding="ascii")
            os.replace(partial, self._path)

    def _text(self, num_in_work: int, stats: Mapping[str, float]) -> str:
        parts = [
            self._metric("generated_tokens_total", "counter", "Answer tokens.", self._num_tokens),
            self._metric("prompt_tokens_total", "counter", "Tokens of answered prompts.", self._num_prompt_tokens),
            self._metric("rows_in_work", "gauge", "Requests in the engine.", num_in_work),
            self._metric("written_time_seconds", "gauge", "When this was written.", round(time.time(), 3)),
            *(self._metric(*_OF_ENGINE[name], stats[name]) for name in _OF_ENGINE if name in stats),
            _head("dolly_batch_requests_total", "counter", "Requests that have ended, by how."),
            *(
                f'dolly_batch_requests_total{{{self._labels},status="{status}"}} {count}\n'
                for status, count in sorted(self._rows.items())
            ),
        ]
        return "".join(parts)

    def _metric(self, name: str, kind: str, said: str, value: float) -> str:
        full = f"dolly_batch_{name}"
        return f"{_head(full, kind, said)}{full}{{{self._labels}}} {value}\n"


def _head(name: str, kind: str, said: str) -> str:
    return f"# HELP {name} {said}\n# TYPE {name} {kind}\n"


def _safe(text: str) -> str:
    """A text that needs no quotes, in a file's name or a label."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-:") else "_" for c in text)
