"""Rows of data sets as questions: what is asked, and what is refused."""

from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dolly_batch.evaluate.benchmarks import BENCHMARKS, read_row
from dolly_batch.evaluate.question import Question, RowFault
from dolly_batch.tokenizer import TextEncoder
from tests.evaluate.reference import TINY

PIQA = {"goal": "g", "sol1": "one", "sol2": "two", "label": 1}
ARC = {"question": "q", "choices": {"text": ["a", "bb"], "label": ["A", "B"]}, "answerKey": "B"}
WINOGRANDE = {"sentence": "Ann saw _'s hat .", "option1": "Eva", "option2": "Ida", "answer": "2"}
HELLASWAG = {
    "activity_label": "Tea",
    "ctx_a": "[header] Make tea [title] Boil water. [step]",
    "ctx_b": "then THE pot",
    "endings": [" is filled [substeps] slowly.", "sings.", "x", "y"],
    "label": "0",
}
BOOLQ = {"passage": "p", "question": "is it so", "label": 1}
REQUESTS = {"task": "piqa", "requests": [["c", " a"], ["c", " b"]], "norm_len": [1, 1], "gold": 0}


def test_the_forms_of_the_seven() -> None:
    assert read_row(BENCHMARKS["piqa"], PIQA) == Question(
        (("Question: g\nAnswer:", " one"), ("Question: g\nAnswer:", " two")), (3, 3), 1
    )
    assert read_row(BENCHMARKS["arc_easy"], ARC) == Question(
        (("Question: q\nAnswer:", " a"), ("Question: q\nAnswer:", " bb")), (1, 2), 1
    )
    stem = {"question_stem": "The sky is ", **{key: ARC[key] for key in ("choices", "answerKey")}}
    # White space at the end of a context goes to the continuation; the lengths stay those of the choices.
    assert read_row(BENCHMARKS["openbookqa"], stem) == Question(
        (("The sky is", "  a"), ("The sky is", "  bb")), (1, 2), 1
    )
    assert read_row(BENCHMARKS["winogrande"], WINOGRANDE) == Question(
        (("Ann saw Eva", " 's hat ."), ("Ann saw Ida", " 's hat .")), None, 1
    )
    hellaswag = read_row(BENCHMARKS["hellaswag"], HELLASWAG)
    assert hellaswag.requests[0] == ("Tea: Make tea. Boil water. Then the pot", " is filled slowly.")
    assert hellaswag.num_chars == (17, 6, 1, 1)
    assert read_row(BENCHMARKS["boolq"], BOOLQ) == Question(
        (("p\nQuestion: is it so?\nAnswer:", " no"), ("p\nQuestion: is it so?\nAnswer:", " yes")), None, 1
    )


def test_a_row_of_a_request_file_is_taken_as_it_is() -> None:
    assert read_row(BENCHMARKS["piqa"], REQUESTS) == Question((("c", " a"), ("c", " b")), (1, 1), 0)


@pytest.mark.parametrize(
    ("benchmark", "row", "told"),
    [
        ("piqa", {**PIQA, "goal": None}, "`goal` is NoneType"),
        ("piqa", {"sol1": "a", "sol2": "b", "label": 0}, "`goal` is missing; the row has label, sol1, sol2"),
        ("piqa", {**PIQA, "label": -1}, "number -1, but there are 2"),
        ("piqa", {**PIQA, "label": True}, "`label` is 'True', expected an integer"),
        ("piqa", {**PIQA, "sol2": ""}, "length of 1 or more"),
        ("piqa", ["not", "a", "row"], "JSON object was expected, found list"),
        ("piqa", {**REQUESTS, "task": "boolq"}, "`task` is 'boolq', expected 'piqa'"),
        ("piqa", {**REQUESTS, "norm_len": None}, "`norm_len` is null"),
        ("piqa", {**REQUESTS, "norm_len": [1]}, "length of 1 or more"),
        ("piqa", {**REQUESTS, "requests": [["c", " a"]]}, "1 choices, expected 2"),
        ("piqa", {**REQUESTS, "requests": [["", " a"], ["c", " b"]]}, "a context or a continuation is empty"),
        ("piqa", {"requests": []}, "it lacks task, norm_len, gold"),
        ("arc_easy", {**ARC, "answerKey": "C"}, "`answerKey` is 'C', 2 choices are labelled A, B"),
        ("arc_easy", {**ARC, "choices": ["a", "b"]}, "`choices` must be an object"),
        ("winogrande", {**WINOGRANDE, "answer": ""}, "expected '1' or '2'"),
        ("winogrande", {**WINOGRANDE, "sentence": "no blank"}, "no `_`"),
        ("hellaswag", {**HELLASWAG, "label": ""}, "`label` is ''"),
        ("hellaswag", {**HELLASWAG, "endings": "abcd"}, "`endings` must be a list of str"),
    ],
)
def test_a_malformed_row_is_named(benchmark: str, row: Any, told: str) -> None:
    with pytest.raises(RowFault, match=told.replace("(", r"\(")):
        read_row(BENCHMARKS[benchmark], row)


def test_a_context_is_asked_once() -> None:
    question = Question.of([("same", " a"), ("other", " b"), ("same", " c")], None, 0)
    assert [(prompt.context, prompt.continuations, prompt.choices) for prompt in question.prompts()] == [
        ("same", (" a", " c"), (0, 2)),
        ("other", (" b",), (1,)),
    ]


@lru_cache
def tiny_encoder() -> TextEncoder:
    return TextEncoder.from_folder(TINY)


@given(context=st.text(max_size=20), choices=st.lists(st.text(max_size=20), min_size=2, max_size=3))
def test_context_and_continuation_apart_give_the_ids_of_the_whole(context: str, choices: list[str]) -> None:
    encoder = tiny_encoder()
    # As the harness has it: a space between the two, and some words before.
    question = Question.of([(f"Q: {context}", f" {choice}.") for choice in choices], None, 0)
    for before, after in question.requests:
        try:
            parts = encoder.encode_text(before) + encoder.encode_text(after)
        except UnicodeEncodeError:  # a lone surrogate, which no file of UTF-8 holds
            continue
        assert parts == encoder.encode_text(before + after)
