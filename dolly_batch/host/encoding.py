"""Turns rows, which are texts, into the engine's requests, which are token ids."""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from dolly_batch.records import (
    Completion,
    Failure,
    PartialAnswer,
    PromptRow,
    Request,
    Row,
    ScoreRequest,
    ScoreRow,
    Scores,
)

if TYPE_CHECKING:
    from dolly_batch.tokenizer import TextEncoder

REPLACED = "\ufffd"  # what bytes that are no UTF-8 were decoded to; the bytes themselves are lost
NOT_ENCODED = Failure("model_error", "the tokenizer cannot encode this text")

_Continuations = tuple[tuple[int, ...], ...]


def failed(row: Row, failure: Failure) -> Completion | Scores:
    """The answer to a row that got none."""
    if isinstance(row, PromptRow):
        return Completion(row.key, "", (), None, 0, failure)
    return Scores(row.key, (), failure)


class RowEncoder:
    """Encodes rows with the model's encoder. Caches the ids of continuations: a job's labels are always the same."""

    def __init__(self, encoder: "TextEncoder", max_positions: int) -> None:
        self._encoder: Any = encoder  # a PromptEncoder wherever rows are in the model's prompt format
        self._max_positions = max_positions
        self._continuations = lru_cache(maxsize=256)(self._encode_continuations)

    def encode(self, rows: Sequence[Row]) -> list[Request | ScoreRequest | Failure]:
        """The rows' requests, in order, the prompts encoded as one batch.

        A Failure in place of a row that cannot be encoded: one with a lone surrogate, or in the prompt format of a
        model that has none.
        """
        try:
            return [self._request(row, ids) for row, ids in zip(rows, self._encode_prompts(rows), strict=True)]
        except Exception:  # The fault of one row: encoding them one by one shows which.
            return [NOT_ENCODED] if len(rows) == 1 else [request for row in rows for request in self.encode([row])]

    def _encode_prompts(self, rows: Sequence[Row]) -> list[list[int]]:
        if len(systems := {row.system for row in rows}) > 1:  # of jobs that share a host
            return [ids for row in rows for ids in self._encode_prompts([row])]
        formats = [row.format for row in rows]
        asked = [(row.instruction, row.context) for row in rows if row.format == "model"]
        plain = [row.instruction for row in rows if row.format == "plain"]
        encoder = self._encoder.with_system(*systems) if asked else None
        encoded = {
            "model": iter(encoder.encode_batch(asked) if encoder else []),
            "plain": iter(self._encoder.encode_texts(plain) if plain else []),
        }
        return [next(encoded[prompt_format]) for prompt_format in formats]

    def _request(self, row: Row, ids: Sequence[int]) -> Request | ScoreRequest:
        if isinstance(row, PromptRow):
            partial_ids = () if row.partial is None else self._encode_partial(row.partial)
            return Request(row.key, tuple(ids), row.params, row.seed, row.grammar, partial_ids)
        continuations = self._continuations(row.continuations, row.with_end)
        return ScoreRequest(row.key, tuple(self._cut(row, ids, continuations)), continuations)

    def _encode_partial(self, partial: PartialAnswer) -> tuple[int, ...]:
        """The ids of an answer that was cut off; none where they cannot be recovered from its text.

        A stored text has lost the white space at its ends, and may have been generated in other tokens than those it is
        encoded in. Both show in the number of tokens; white space lost from the first token the engine detects.
        """
        if REPLACED in partial.text:
            return ()
        ids = self._encoder.encode_text(partial.text)
        is_whole = len(ids) == partial.num_tokens and self._encoder.decode(ids) == partial.text
        return tuple(ids) if is_whole else ()

    def _encode_continuations(self, texts: tuple[str, ...], with_end: bool) -> _Continuations:
        encode = self._encoder.encode_responses if with_end else self._encoder.encode_texts
        return tuple(tuple(ids) for ids in encode(texts))

    def _cut(self, row: ScoreRow, ids: Sequence[int], continuations: _Continuations) -> Sequence[int]:
        """The prompt; a plain one is cut at its beginning where it would not fit."""
        if row.format == "model":
            return ids
        room = self._max_positions - max((len(continuation) for continuation in continuations), default=0)
        return ids[max(0, len(ids) - room) :] if room > 0 else ids
