"""The engine's interface, and `answer`, which turns a stream of requests into a stream of answers. No torch."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Protocol

from dolly_batch.prompt import TextEncoder
from dolly_batch.records import Completion, Failure, Request, ScoreRequest, Scores


class Engine(Protocol):
    """What runs requests. Each submitted one comes back from some `step` exactly once, as completion or as scores."""

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
        """Take a request. It never raises for what the request holds: that comes out as a `Failure`."""

    def step(self) -> list[Completion | Scores]:
        """Work for a while and return the answers that ended meanwhile, in any order; maybe none."""


def no_heartbeat() -> None:
    """Do nothing: for callers without a watchdog."""


def too_long(request: Request, max_positions: int) -> Failure | None:
    """The failure of a request whose prompt and answer together don't fit the model's positions, else None."""
    num_prompt_tokens, max_new_tokens = len(request.prompt_ids), request.params.max_new_tokens
    if num_prompt_tokens + max_new_tokens <= max_positions:
        return None
    message = f"{num_prompt_tokens} prompt tokens + {max_new_tokens} new tokens exceed {max_positions} positions"
    return Failure("too_long", message)


def answer(
    engine: Engine, requests: Iterable[Request | ScoreRequest], max_waiting: int = 1024
) -> Iterator[Completion | Scores]:
    """Yield one answer per request as they end, in any order, each with its request's key.

    Reads at most `max_waiting` requests ahead: enough for the engine to pack rows of like length, and no more of the
    stream than that in memory.
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
