"""Inside one task, on an executor: the rows that the proxy of a cascade answers, and those that it leaves."""

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

from dolly_batch.cascade.proxy import Proxy
from dolly_batch.tasks.base import TaskResult


class Asked(Protocol):
    """A row that asks about a text."""

    @property
    def context(self) -> str | None:
        """The text."""


AnyRow = TypeVar("AnyRow", bound=Asked)


def answered_by_proxy(proxy: Proxy, rows: Sequence[AnyRow]) -> Iterator[tuple[AnyRow, TaskResult | None]]:
    """The rows with the proxy's results, None for those that the model is to answer; nothing was read by a model."""
    answers = proxy.answers([row.context or "" for row in rows])
    for row, answer in zip(rows, answers, strict=True):
        if answer is None:
            yield row, None
            continue
        extras = (answer.confidence, answer.margin, answer.shares)
        yield row, TaskResult(answer.label, "ok", None, None, 0, num_prompt_tokens=0, extras=extras)
