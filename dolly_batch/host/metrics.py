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
        self._write_at = 0.0

    def count(self, answers: Sequence[Completion | Scores]) -> None:
        """Count answers of the engine."""
        if self._path is None:
            return
        for answer in answers:
            self._rows["answered" if answer.failure is None else answer.failure.status] += 1
            self._num_prompt_tokens += answer.num_prompt_tokens
            if isinstance(answer, Completion):
                self._num_tokens += answer.num_completion_tokens - answer.num_partial_tokens

    def write(self, num_in_work: int, stats: Callable[[], Mapping[str, float]] = lambda: _NO_STATS) -> None:
        """Write the file, where ten seconds have passed or nothing is in work any more.

        A folder that cannot be written costs the metrics, and nothing else.
        """
        now = time.monotonic()
        if self._path is None or (now < self._write_at and num_in_work):
            return
        self._write_at = now + WRITE_EVERY_S
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
