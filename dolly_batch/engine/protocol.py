"""The interface of every engine, and streams of answers over it (`answer`, `generate`). No torch."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Protocol

from dolly_batch.records import Completion, Request, ScoreRequest, Scores
from dolly_batch.tokenizer import TextEncoder


class Engine(Protocol):
    """What runs requests. Each submitted request comes back from one `step`, as a completion or as scores."""

    @property
    def encoder(self) -> TextEncoder:
        """The model's own encoder: a PromptEncoder where the tokenizer has Dolly's markers."""

    @property
    def max_positions(self) -> int:
        """Tokens that a prompt and its answer may have together."""

    @property
    def num_unfinished(self) -> int:
        """Requests submitted whose answer has not come out."""

    def submit(self, request: Request | ScoreRequest) -> None:
        """Take a request. What is wrong with it never raises here: it comes back as a `Failure`."""

    def step(self) -> list[Completion | Scores]:
        """Work for a while; return the answers that are complete, in any order, possibly none."""


def no_heartbeat() -> None:
    """Do nothing: for callers without a watchdog."""


def answer(
    engine: Engine, requests: Iterable[Request | ScoreRequest], max_waiting: int = 1024
) -> Iterator[Completion | Scores]:
    """Yield one answer per request as they end, in any order, each with its request's key.

    Reads at most `max_waiting` requests ahead: enough for the engine to pack requests of similar length.
    """
    source = iter(requests)
    while True:
        for request in islice(source, max(0, max_waiting - engine.num_unfinished)):
            engine.submit(request)
        if not engine.num_unfinished:
            return
        yield from engine.step()


def generate(engine: Engine, requests: Iterable[Request], max_waiting: int = 1024) -> Iterator[Completion]:
    """Yield one completion per request as they end; see `answer`."""
    answers = answer(engine, requests, max_waiting)
    return (found for found in answers if isinstance(found, Completion))
