"""Prompts cut to fit: the template stays, what is kept is the row's own, and the count of dropped tokens adds up."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dolly_batch.prompt import PromptEncoder
from dolly_batch.tasks.truncate import GAP, fill, make_fit
from dolly_batch.tiny import MODEL_FOLDER

ENCODER = PromptEncoder.from_folder(MODEL_FOLDER)
TEXTS = st.text(alphabet="ab cé.\n\U0001f600日", max_size=120)


@settings(max_examples=120, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=2), st.one_of(st.none(), TEXTS), st.integers(40, 90), st.sampled_from(
    ["truncate_left", "truncate_right", "truncate_middle"]
))  # fmt: skip
def test_what_is_kept_fits_and_is_an_end_of_the_text(
    values: list[str], context: str | None, limit: int, side: Any
) -> None:
    literals = [*["Read ", " and "][: len(values)], " now."]
    before = len(ENCODER.encode(fill(literals, values), context))
    cut = make_fit(ENCODER, literals, values, context, limit, side)
    assert cut.num_tokens == len(ENCODER.encode(cut.instruction, cut.context))
    assert cut.num_dropped == before - cut.num_tokens
    assert cut.fits == (cut.num_tokens <= limit)
    assert cut.instruction.startswith("Read ")
    assert cut.instruction.endswith(" now.")
    if before <= limit:
        assert (cut.instruction, cut.context or None) == (fill(literals, values), context or None)
    elif cut.context and context:
        assert cut.instruction == fill(literals, values)  # the context goes first
        if side == "truncate_left":
            assert context.endswith(cut.context)
        elif side == "truncate_right":
            assert context.startswith(cut.context)
        else:
            head, tail = cut.context.split(GAP)
            assert context.startswith(head)
            assert context.endswith(tail)


@pytest.mark.parametrize("side", ["truncate_left", "truncate_right", "truncate_middle"])
def test_no_more_goes_than_has_to(side: Any) -> None:
    context = " ".join(f"word{number}" for number in range(500))
    cut = make_fit(ENCODER, ["Say it.", ""], [""], context, 100, side)
    assert cut.fits
    assert 92 <= cut.num_tokens <= 100


def test_a_template_that_is_too_long_alone_is_left_and_told() -> None:
    cut = make_fit(ENCODER, ["word " * 200, ""], ["value"], "context", 100, "truncate_right")
    assert not cut.fits
