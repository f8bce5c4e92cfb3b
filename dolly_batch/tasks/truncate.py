"""Cuts the row's own texts so that its prompt fits: the context first, then the longest value; never the template."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dolly_batch.prompt import PromptEncoder

Side = Literal["truncate_left", "truncate_right", "truncate_middle"]
GAP = " ... "


@dataclass(frozen=True)
class Cut:
    """The texts of a prompt after cutting, the tokens dropped, and whether it fits now."""

    instruction: str
    context: str | None
    num_tokens: int
    num_dropped: int
    fits: bool


def fill(literals: Sequence[str], values: Sequence[str]) -> str:
    """A template's literals with values between them; there is one literal more than there are values."""
    return "".join(text for pair in zip(literals, [*values, ""], strict=True) for text in pair)


def make_fit(
    encoder: PromptEncoder, literals: Sequence[str], values: Sequence[str], context: str | None, limit: int, side: Side
) -> Cut:
    """Cut the texts of one row so that its prompt has at most `limit` tokens.

    `side` says which end is dropped (`truncate_left` drops the beginning). Raises UnicodeEncodeError for a lone
    surrogate.
    """
    texts = [*values, context or ""]
    before = now = _count(encoder, literals, texts)
    order = sorted(range(len(values)), key=lambda at: -len(texts[at]))
    for at in [len(texts) - 1, *order]:
        if now <= limit:
            break
        texts[at], now = _shorten(encoder, literals, texts, at, limit, side)
    cut = fill(literals, texts[:-1])
    return Cut(cut, texts[-1] or None, now, before - now, now <= limit)


def _shorten(
    encoder: PromptEncoder, literals: Sequence[str], texts: Sequence[str], at: int, limit: int, side: Side
) -> tuple[str, int]:
    """Text number `at`, as much of it as fits, and the tokens of the whole prompt with it."""
    text = cut = texts[at]
    offsets = encoder.offsets(text)
    kept = len(offsets)
    now = _count(encoder, literals, texts)
    # Around a cut the same characters may take a token or two more than before: then a little more goes.
    while now > limit and kept:
        kept = max(0, kept - (now - limit))
        cut = _keep(text, offsets, kept, side)
        now = _count(encoder, literals, [*texts[:at], cut, *texts[at + 1 :]])
    return cut, now


def _keep(text: str, offsets: Sequence[tuple[int, int]], kept: int, side: Side) -> str:
    if not kept:
        return ""
    if side == "truncate_left":
        return text[offsets[-kept][0] :]
    if side == "truncate_right":
        return text[: offsets[kept - 1][1]]
    head = (kept + 1) // 2
    tail = text[offsets[head - kept][0] :] if kept > head else ""
    return text[: offsets[head - 1][1]] + GAP + tail


def _count(encoder: PromptEncoder, literals: Sequence[str], texts: Sequence[str]) -> int:
    return len(encoder.encode(fill(literals, texts[:-1]), texts[-1] or None))
