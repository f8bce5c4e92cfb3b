"""What generate asks of a row whose answer was partial, and what it makes of the engine's answer."""

from dolly_batch.records import Completion, Failure, GenerationParams, PartialAnswer, PromptRow
from dolly_batch.tasks.base import Answer, Subject
from dolly_batch.tasks.generate import Generate

BEGUN = PartialAnswer("It was a", 4)
WORK = Generate(GenerationParams(16, do_sample=False)).begin(Subject("Tell.", None, 7, BEGUN, 32))


def test_a_begun_answer_goes_along_with_the_rows_own_limit() -> None:
    assert WORK.start() == (PromptRow("0", "Tell.", None, GenerationParams(32, do_sample=False), 7, partial=BEGUN),)
    anew = Generate(GenerationParams(16, do_sample=False)).begin(Subject("Tell.", None, 7))
    assert anew.start() == (PromptRow("0", "Tell.", None, GenerationParams(16, do_sample=False), 7),)


def test_the_tokens_taken_over_are_told() -> None:
    found = WORK.take(Completion("0", "It was a day.", tuple(range(6)), "stop", 9, num_partial_tokens=4))
    assert found == Answer("It was a day.", "ok", None, "stop", 6, num_partial_tokens=4)


def test_an_answer_that_cannot_be_gone_on_with_is_not_lost() -> None:
    found = WORK.take(Completion("0", "", (), None, 9, Failure("out_of_memory", "no memory for 41 tokens")))
    assert (found.response, found.status, found.finish_reason) == ("It was a", "truncated", "length")
    assert (found.num_completion_tokens, found.num_partial_tokens) == (4, 0)
    assert found.error == "not gone on with: out_of_memory, no memory for 41 tokens"
