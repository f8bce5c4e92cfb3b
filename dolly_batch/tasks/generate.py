"""Generate: the row's instruction and context go to the model as they are, and its answer is the text it wrote."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dolly_batch.records import Completion, GenerationParams, PromptRow, Row, Scores
from dolly_batch.tasks.base import Answer, Subject


@dataclass(frozen=True)
class Generate:
    """One question a row."""

    params: GenerationParams

    def begin(self, subject: Subject) -> "GenerateWork":
        """The work of one row."""
        return GenerateWork(self, subject)

    def prepare(self) -> Sequence[Row]:
        """Nothing is asked beforehand."""
        return ()

    def prepared(self, answers: Sequence[Completion | Scores]) -> "Generate":
        """The task as it is."""
        return self


@dataclass(frozen=True, slots=True)
class GenerateWork:
    """One row: asked once."""

    task: Generate
    subject: Subject

    def start(self) -> Sequence[Row]:
        """The one question."""
        row, params = self.subject, self.task.params
        if row.max_new_tokens is not None:
            params = replace(params, max_new_tokens=row.max_new_tokens)
        return (PromptRow("0", row.instruction, row.context, params, row.seed, partial=row.partial),)

    def take(self, answer: Completion | Scores) -> Answer:
        """The model's text is the answer. A partial answer is kept when it cannot be resumed."""
        completion, partial = completion_of(answer), self.subject.partial
        found = read_answer(completion)
        if partial is None:
            return found
        if completion.failure is not None:
            error = f"not gone on with: {completion.failure.status}, {completion.failure.message}"
            return Answer(partial.text, "truncated", error, "length", partial.num_tokens, num_partial_tokens=0)
        return replace(found, num_partial_tokens=completion.num_partial_tokens)


def completion_of(answer: Completion | Scores) -> Completion:
    """A completion, which is what a question for text gets. Raises TypeError for anything else."""
    if not isinstance(answer, Completion):
        raise TypeError(f"a question for text was answered by {type(answer).__name__}")
    return answer


def read_answer(completion: Completion) -> Answer:
    """The answer in a completion. A row cut off by `max_new_tokens` is `truncated`, however little it wrote."""
    if completion.failure is not None:
        return Answer(None, completion.failure.status, completion.failure.message, None, None)
    if completion.finish_reason == "length":
        status = "truncated"
    else:
        status = "ok" if completion.text else "empty_response"
    return Answer(completion.text, status, None, completion.finish_reason, completion.num_completion_tokens)


def examples_text(examples: Sequence[tuple[str, str | None, str]]) -> str:
    """Worked examples (instruction, context, response) as what stands before a row's own instruction; "" for none.

    The Dolly format has one instruction and one response, so examples are a part of the instruction.
    """
    if not examples:
        return ""
    blocks = [
        f"Instruction: {instruction}\n" + (f"Input: {context}\n" if context else "") + f"Response: {response}\n\n"
        for instruction, context, response in examples
    ]
    return "".join(blocks) + "Instruction: "
