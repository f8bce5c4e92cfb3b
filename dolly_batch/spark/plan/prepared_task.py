"""What a job asks of each row: the text around its values, the task that reads the answers, and the room they need.

Made once, on the driver; everything after that is the same for all kinds of task.
"""

from dataclasses import dataclass, replace

from dolly_batch.config.job import JobConfig
from dolly_batch.config.task import ClassifyTask, ExtractTask, GenerateTask, SummarizeTask, template_parts
from dolly_batch.errors import ConfigError
from dolly_batch.prompt import PromptEncoder
from dolly_batch.tasks import classify, extract, summarize
from dolly_batch.tasks.base import Task
from dolly_batch.tasks.generate import Generate, examples_text

PREFILL_SPEEDUP = 8  # a token that is only scored costs about this much less than one that is generated


@dataclass(frozen=True)
class Asking:
    """How a row's values become a question.

    The instruction is `literals` with the row's values between them; there is one literal more than there are values.
    `num_reserved` tokens of the model's positions follow the prompt; `num_new_tokens` is what an answer costs, in
    generated tokens. With `reads_text` the row's own text is the context, and the instruction the same for all rows;
    with `any_length` that text is split by the task and may be as long as it likes. `shares` tells whether equal
    questions have equal answers, whatever the row.
    """

    task: Task
    literals: tuple[str, ...]
    num_reserved: int
    num_new_tokens: int
    shares: bool
    reads_text: bool = False
    any_length: bool = False


def open_asking(job: JobConfig, model_folder: str, max_positions: int) -> Asking:
    """What this job asks. Raises ConfigError for settings that cannot work with this model."""
    encoder = PromptEncoder.from_folder(model_folder)
    task, params = job.task, job.generation.params
    num_new = params.max_new_tokens
    common = Asking(Generate(params), ("", ""), num_new, num_new, not params.do_sample)
    if isinstance(task, GenerateTask):
        return replace(common, literals=_literals(task))
    if isinstance(task, ClassifyTask):
        return _classify(task, encoder, max_positions)
    common = replace(common, reads_text=True)
    if isinstance(task, SummarizeTask):
        return _summarize(task, common, model_folder, max_positions, num_new, job)
    return _extract(task, common, encoder, job)


def _literals(task: GenerateTask) -> tuple[str, ...]:
    examples = examples_text([(e.instruction, e.context, e.response) for e in task.examples])
    if task.template is None:
        return (examples, "")
    texts, _ = template_parts(task.template)
    return (examples + texts[0], *texts[1:])


def template_columns(task: GenerateTask) -> list[str] | None:
    """The columns that a template names, in its order; None where there is no template."""
    return None if task.template is None else template_parts(task.template)[1]


def _classify(task: ClassifyTask, encoder: PromptEncoder, max_positions: int) -> Asking:
    labels = tuple(task.labels)
    encode = encoder.encode_responses if task.with_end else encoder.encode_texts
    lengths = dict(zip(labels, (len(ids) for ids in encode(labels)), strict=True))

    def count(text: str) -> int:
        return len(encoder.encode_text(text))

    instruction = task.instruction or classify.default_instruction(task.labels, count, max_positions)
    work = classify.Classify(
        labels=labels,
        divisors=classify.divisors(labels, task.normalization, lengths.__getitem__),
        instruction=instruction,
        none_below=task.none_below,
        with_end=task.with_end,
        calibrated=task.calibration == "contextual",
    )
    num_scored = sum(lengths.values())
    return Asking(
        task=work,
        literals=(instruction,),
        num_reserved=max(lengths.values()),
        num_new_tokens=max(1, num_scored // PREFILL_SPEEDUP),
        shares=True,
        reads_text=True,
    )


def _summarize(
    task: SummarizeTask, common: Asking, model_folder: str, max_positions: int, num_new: int, job: JobConfig
) -> Asking:
    instruction = task.instruction or summarize.default_instruction(task.style, task.max_words)
    work = summarize.Summarize(job.generation.params, model_folder, max_positions)
    if task.max_words is not None and task.max_words > num_new:
        raise ConfigError(
            f"generation.max_new_tokens: {num_new} tokens cannot hold the {task.max_words} words of task.max_words; a "
            f"word takes one to two, so set it to {2 * task.max_words} or so"
        )
    room = work.room(instruction)
    # Two summaries have to fit one call, or the rounds would never end.
    if room < 2 * num_new + 2:
        raise ConfigError(
            f"generation.max_new_tokens: {num_new} leaves {room} of {max_positions} tokens for the text, and two "
            f"summaries have to fit there; set it to {max(1, (room + num_new - 2) // 3)} or less"
        )
    return replace(common, task=work, literals=(instruction,), any_length=True)


def _extract(task: ExtractTask, common: Asking, encoder: PromptEncoder, job: JobConfig) -> Asking:
    from dolly_batch.spark.tables.struct import extract_schema

    schema = extract_schema(task, job.generation.max_new_tokens, lambda text: len(encoder.encode_text(text)))
    instruction = task.instruction or extract.default_instruction(schema)
    work = extract.Extract(job.generation.params, extract.grammar_of(schema))
    return replace(common, task=work, literals=(instruction,))
