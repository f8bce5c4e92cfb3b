"""Texts in pieces and back again: nothing is cut, whatever the text."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dolly_batch.prompt import PromptEncoder
from dolly_batch.records import Completion, Failure, GenerationParams, PromptRow
from dolly_batch.tasks.base import TaskInput, TaskModel, TaskResult
from dolly_batch.tasks.summarize import Summarize, SummarizeRun, split_text
from dolly_batch.tiny import MODEL_FOLDER

ENCODER = PromptEncoder.from_folder(MODEL_FOLDER)
ASK = "Summarize the text in one sentence."


def count(text: str) -> int:
    return len(ENCODER.encode_text(text))


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="ab .!?\n\"'é\U0001f600日。", max_size=300), st.integers(8, 40))
def test_pieces_joined_are_the_text_and_each_fits(text: str, limit: int) -> None:
    pieces = split_text(text, limit, count)
    assert "".join(pieces) == text
    assert all(count(piece) <= limit + 2 for piece in pieces)
    assert pieces == [""] or all(pieces)


def test_sentences_stay_whole_where_they_fit() -> None:
    text = "One is here. Two is there! Is three? Four."
    pieces = split_text(text, count("One is here. Two is there! "), count)
    assert pieces[0] == "One is here. Two is there! "
    assert "".join(pieces) == text


@pytest.mark.parametrize("blank", [" ", "  ", "\t"])
def test_words_without_sentences_make_no_more_pieces_than_they_need(blank: str) -> None:
    text = blank.join(["so", "the", "quick", "brown", "fox", "and", "the", "lazy", "dog", "went", "to", "market"] * 80)
    pieces = split_text(text, 100, count)
    assert "".join(pieces) == text
    assert all(count(piece) <= 100 for piece in pieces)
    assert len(pieces) <= 1.1 * count(text) / 100 + 1


def run(task: Summarize, text: str, write: Callable[[PromptRow], Completion]) -> tuple[TaskResult, list[PromptRow]]:
    """Work one row to its end, answers coming last first."""
    work = task.start(TaskInput(ASK, text, 7))
    waiting, asked = list(work.first_requests()), []
    while waiting:
        row = waiting.pop()
        assert isinstance(row, PromptRow)
        asked.append(row)
        result = work.on_result(write(row))
        if isinstance(result, TaskResult):
            return result, asked
        waiting += result
    raise AssertionError("the row has no answer")


def written(row: PromptRow, text: str = "It was so.") -> Completion:
    return Completion(row.key, text, tuple(range(5)), "stop", 10)


PARAMS = GenerationParams(max_new_tokens=40)


@pytest.mark.parametrize("num_sentences", [1, 40, 400])
def test_every_sentence_is_read_once_and_one_summary_comes_out(num_sentences: int) -> None:
    text = " ".join(f"Sentence number {number} says a thing." for number in range(num_sentences))
    task = Summarize(PARAMS, TaskModel(str(MODEL_FOLDER), 256))
    answer, asked = run(task, text, written)
    num_pieces, num_calls = answer.extras
    assert (answer.response, answer.status, num_calls) == ("It was so.", "ok", len(asked))
    first = sorted(asked, key=lambda row: int(row.key))[: int(str(num_pieces))]
    assert "".join(str(row.context) for row in first) == text
    assert len({row.seed for row in asked}) == len(asked)
    assert first[0].seed == 7
    assert (answer.num_prompt_tokens, answer.num_completion_tokens) == (10 * len(asked), 5 * len(asked))
    for row in asked:
        assert len(ENCODER.encode(row.instruction, row.context)) + 40 <= 256


def test_a_failed_piece_is_the_rows_fault_and_a_cut_one_makes_it_truncated() -> None:
    text = "A sentence of a few words. " * 60
    task = Summarize(PARAMS, TaskModel(str(MODEL_FOLDER), 256))
    failure = Failure("out_of_memory", "none left")
    failed, _ = run(task, text, lambda row: Completion(row.key, "", (), None, 10, failure))
    assert (failed.response, failed.status, failed.error) == (None, "out_of_memory", "none left")
    cut, _ = run(task, text, lambda row: Completion(row.key, "It was", (1,), "length" if row.key == "1" else "stop", 9))
    assert (cut.response, cut.status) == ("It was", "truncated")
    empty, _ = run(task, text, lambda row: written(row, ""))
    assert (empty.response, empty.status) == ("", "empty_response")


def test_summaries_as_long_as_pieces_end_in_an_error_not_in_a_loop() -> None:
    work = SummarizeRun(
        Summarize(PARAMS, TaskModel(str(MODEL_FOLDER), 256)), TaskInput(ASK, "A sentence of a few words. " * 60, 0)
    )
    asked = [*work.first_requests()]
    assert len(asked) > 1
    for row in asked[:-1]:
        assert work.on_result(written(row, "word " * 400)) == ()  # type: ignore[arg-type]
    answer = work.on_result(written(asked[-1], "word " * 400))  # type: ignore[arg-type]
    assert isinstance(answer, TaskResult)
    assert answer.status == "invalid_output"
