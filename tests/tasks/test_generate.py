"""What generate asks of a row whose answer was partial, and what it makes of the engine's answer."""

from dolly_batch.records import Completion, Failure, GenerationParams, PartialAnswer, PromptRow
from dolly_batch.tasks.base import TaskInput, TaskResult
from dolly_batch.tasks.generate import Generate, template_parts

PARTIAL = PartialAnswer("It was a", 4)
WORK = Generate(GenerationParams(16, do_sample=False)).start(TaskInput("Tell.", None, 7, PARTIAL, 32))


def test_a_partial_answer_is_resumed_up_to_the_rows_own_limit() -> None:
    assert WORK.first_requests() == (
        PromptRow("0", "Tell.", None, GenerationParams(32, do_sample=False), 7, partial=PARTIAL),
    )
    anew = Generate(GenerationParams(16, do_sample=False)).start(TaskInput("Tell.", None, 7))
    assert anew.first_requests() == (PromptRow("0", "Tell.", None, GenerationParams(16, do_sample=False), 7),)


def test_reused_tokens_are_counted() -> None:
    found = WORK.on_result(Completion("0", "It was a day.", tuple(range(6)), "stop", 9, num_partial_tokens=4))
    assert found == TaskResult("It was a day.", "ok", None, "stop", 6, num_partial_tokens=4)


def test_a_partial_answer_that_cannot_be_resumed_is_kept() -> None:
    found = WORK.on_result(Completion("0", "", (), None, 9, Failure("out_of_memory", "no memory for 41 tokens")))
    assert (found.response, found.status, found.finish_reason) == ("It was a", "truncated", "length")
    assert (found.num_completion_tokens, found.num_partial_tokens) == (4, 0)
    assert found.error == "not resumed: out_of_memory, no memory for 41 tokens"


def test_a_template_names_columns_of_any_name() -> None:
    assert template_parts("a {b} {{c}} {d.e} {{{f g}}}") == (["a ", " {c} ", " {", "}"], ["b", "d.e", "f g"])
    assert template_parts("{`x:y`}, {`q!`}; {`a}``b`}") == (["", ", ", "; ", ""], ["`x:y`", "`q!`", "`a}``b`"])
    assert template_parts("{`a`.`b c`}{a`b}") == (["", "", ""], ["`a`.`b c`", "a`b"])
