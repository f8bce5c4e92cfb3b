"""Generate: the row's instruction and context go to the model as they are, and its answer is the text it wrote."""

import hashlib
from dataclasses import dataclass

from dolly_batch.records import Completion


@dataclass(frozen=True, slots=True)
class Answer:
    """What one completion puts into the output's columns."""

    response: str | None
    status: str
    error: str | None
    finish_reason: str | None
    num_completion_tokens: int | None


def row_seed(seed: int, row_key: str) -> int:
    """The seed of one row, 63 bits: the same whatever batch, partition or attempt the row runs in."""
    digest = hashlib.sha256(f"{seed}:{row_key}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def read_answer(completion: Completion) -> Answer:
    """The answer in a completion. A row cut off by `max_new_tokens` is `truncated`, however little it wrote."""
    if completion.failure is not None:
        return Answer(None, completion.failure.status, completion.failure.message, None, None)
    if completion.finish_reason == "length":
        status = "truncated"
    else:
        status = "ok" if completion.text else "empty_response"
    return Answer(completion.text, status, None, completion.finish_reason, completion.num_completion_tokens)
