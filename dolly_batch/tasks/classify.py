"""Classify: each label is scored as the model's response, off one shared prompt; the likeliest is the answer.

Calibration divides by how likely the labels are whatever the text says: by the mean of their probabilities over a few
texts, asked once per shard. These are texts without content (contextual calibration: Zhao et al. 2021, "Calibrate
Before Use"), or, given by the job, texts like the table's own (Fei et al. 2023, "Mitigating Label Biases").
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from dolly_batch.errors import CalibrationError, ConfigError
from dolly_batch.records import Completion, GenerationParams, Row, ScoreRow, Scores
from dolly_batch.tasks.arguments import SqlArgument
from dolly_batch.tasks.base import (
    PREFILL_SPEEDUP,
    PreparedTask,
    SettingError,
    SingleRequestRun,
    Task,
    TaskInput,
    TaskKind,
    TaskModel,
    TaskResult,
    TaskSettings,
    check_not_empty,
)
from dolly_batch.tasks.blank import is_blank
from dolly_batch.tasks.cascade import Cascade

MIN_LABELS, MAX_LABELS = 2, 500
CONTENT_FREE = ("N/A", "[MASK]", "none")
MAX_CALIBRATION_TEXTS = 100
AUTO_CALIBRATED_FROM = 3  # labels: two are often a rare one and the rest, which calibration would make equals
MAX_LIST_SHARE = 0.5  # of the model's positions: a longer list of labels would leave too little for the text

Normalization = Literal["sum", "per_token", "per_char"]
Calibration = Literal["auto", "none", "contextual"]


@dataclass(frozen=True, kw_only=True)
class ClassifySettings(TaskSettings):
    """Choose one of the labels, by how likely the model is to write each as its response.

    `labels` is a list, or a mapping of each label to its description. `none_below` gives null under that confidence.
    `instruction` replaces the default one, which lists the labels. `with_end` scores each label with its end marker, so
    that no label wins by being the beginning of another. `calibration` is a method, or a list of texts like the table's
    own; `auto` is `contextual` for three labels and more in a chat model's prompt format, else `none`. `cascade` leaves
    rows to a proxy that is trained on the model's answers to a sample.
    """

    kind: Literal["classify"] = "classify"
    labels: list[str] | dict[str, str]
    instruction: str | None = None
    none_below: float | None = None
    normalization: Normalization = "sum"
    calibration: Calibration | list[str] = "auto"
    with_end: bool = True
    cascade: Cascade | None = None

    def __post_init__(self) -> None:
        check_not_empty(self, "instruction")
        names = [*self.labels]
        if not MIN_LABELS <= len(names) <= MAX_LABELS:
            raise SettingError("labels", f"{len(names)} labels; give {MIN_LABELS} to {MAX_LABELS}")
        if any(name != name.strip() or not name for name in names):
            raise SettingError("labels", "a label is empty, or begins or ends with white space")
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise SettingError("labels", f"label `{repeated[0]}` is given twice")
        if self.instruction and isinstance(self.labels, dict) and any(self.labels.values()):
            message = (
                "descriptions stand in the default instruction, which task.instruction replaces: leave one of them out"
            )
            raise SettingError("labels", message)
        if self.none_below is not None and not 0 <= self.none_below <= 1:
            raise SettingError("none_below", f"must be 0 to 1, found {self.none_below}")
        if isinstance(self.calibration, list):
            _check_calibration_texts(self.calibration)


class ClassifyKind(TaskKind):
    """`kind: classify`, and `dolly_classify(text, array(label, ...))`."""

    name = "classify"
    settings = ClassifySettings
    generates = False
    columns = {  # noqa: RUF012 - a constant of the kind
        "confidence": "double",
        "margin": "double",
        "label_scores": {"type": "map", "keyType": "string", "valueType": "double", "valueContainsNull": True},
    }
    sql_arguments = (SqlArgument("labels", "labels"),)
    sql_columns = ("confidence",)

    @property
    def sql_placeholders(self) -> Mapping[str, Any]:
        """A call gives the labels."""
        return {"labels": ["a", "b"]}

    def settled(self, settings: ClassifySettings, model: TaskModel) -> ClassifySettings:
        """Calibration as this model has it by default, measured by benchmarks/quality.py.

        In Dolly's own format it stays what it was: finished tables hold its keys.
        """
        if settings.calibration != "auto":
            return settings
        is_calibrated = model.is_chat and len(settings.labels) >= AUTO_CALIBRATED_FROM
        return replace(settings, calibration="contextual" if is_calibrated else "none")

    def prepare(self, settings: ClassifySettings, model: TaskModel, params: GenerationParams) -> PreparedTask:
        """All labels are scored behind one prompt.

        Raises ConfigError for labels that are the same to the model, and for texts of `calibration` that do not fit it.
        """
        labels = tuple(settings.labels)
        encode = model.encoder.encode_responses if settings.with_end else model.encoder.encode_texts
        tokens = dict(zip(labels, encode(labels), strict=True))
        _check_different(tokens)
        lengths = {label: len(ids) for label, ids in tokens.items()}
        instruction = settings.instruction or default_instruction(settings.labels, model.count, model.max_positions)
        if isinstance(settings.calibration, list):
            _check_fit(settings.calibration, instruction, model, max(lengths.values()))
        task = Classify(
            labels=labels,
            divisors=divisors(labels, settings.normalization, lengths.__getitem__),
            instruction=instruction,
            none_below=settings.none_below,
            with_end=settings.with_end,
            calibration=calibration_texts(self.settled(settings, model)),
        )
        return PreparedTask(
            task=task,
            literals=(instruction,),
            num_reserved=max(lengths.values()),
            num_new_tokens=max(1, sum(lengths.values()) // PREFILL_SPEEDUP),
            shares=True,
            reads_text=True,
        )

    def with_arguments(self, settings: ClassifySettings, arguments: Mapping[str, Any]) -> ClassifySettings:
        """The labels are the call's."""
        return replace(settings, labels=arguments["labels"])


@dataclass(frozen=True)
class Classify(Task):
    """The labels and how their scores become an answer.

    `divisors` normalize the labels' log-likelihoods (all 1 for `sum`, tokens or characters); `priors` are the
    log-probabilities that calibration takes away, empty where there is none. `instruction` is asked of the texts of
    `calibration`.
    """

    labels: tuple[str, ...]
    divisors: tuple[float, ...]
    instruction: str
    none_below: float | None = None
    with_end: bool = True
    calibration: tuple[str, ...] = ()
    priors: tuple[float, ...] = ()

    def start(self, row: TaskInput) -> SingleRequestRun:
        """The run of one row: scored once."""
        return SingleRequestRun(self.request("0", row.instruction, row.context), self._read)

    def warm_up_requests(self) -> Sequence[Row]:
        """The texts by which scores are calibrated."""
        return [self.request(str(n), self.instruction, text) for n, text in enumerate(self.calibration)]

    def warmed_up(self, results: Sequence[Completion | Scores]) -> "Classify":
        """The task with its priors. Raises CalibrationError when a text of `calibration` could not be scored."""
        if not self.calibration:
            return self
        shares = []
        for result in results:
            if result.failure is not None or isinstance(result, Completion):
                reason = result.failure.message if result.failure else "no scores"
                text = "a text without content" if self.calibration == CONTENT_FREE else "one of its texts"
                raise CalibrationError(
                    f"task.calibration: the labels could not be calibrated on {text} ({reason}); "
                    "set it to none, or try model.dtype float32"
                )
            shares.append(softmax(self.normalize(result.log_probs)))
        means = [sum(column) / len(shares) for column in zip(*shares, strict=True)]
        return replace(self, priors=tuple(math.log(max(mean, 1e-30)) for mean in means))

    def request(self, key: str, instruction: str, context: str | None) -> ScoreRow:
        """One text's labels, to be scored."""
        return ScoreRow(key, instruction, context, self.labels, self.with_end)

    def normalize(self, log_probs: Sequence[float]) -> list[float]:
        """Log-likelihoods divided by the labels' lengths."""
        return [log_prob / divisor for log_prob, divisor in zip(log_probs, self.divisors, strict=True)]

    def choose(self, log_probs: Sequence[float]) -> TaskResult:
        """The likeliest label, the first of equals."""
        values = self.normalize(log_probs)
        if self.priors:
            values = [value - prior for value, prior in zip(values, self.priors, strict=True)]
        shares = softmax(values)
        order = sorted(range(len(shares)), key=lambda index: -shares[index])
        confidence, second = shares[order[0]], shares[order[1]]
        chosen = None if self.none_below is not None and confidence < self.none_below else self.labels[order[0]]
        scores = dict(zip(self.labels, shares, strict=True))
        return TaskResult(chosen, "ok", None, None, 0, extras=(confidence, confidence - second, scores))

    def _read(self, result: Completion | Scores) -> TaskResult:
        if isinstance(result, Completion):
            raise TypeError("labels were answered by a completion")
        if result.failure is not None:
            failure = result.failure
            return TaskResult(None, failure.status, failure.message, None, None, extras=(None, None, None))
        return self.choose(result.log_probs)


def calibration_texts(settings: ClassifySettings) -> tuple[str, ...]:
    """The texts by which settled settings calibrate, none where they do not."""
    if isinstance(settings.calibration, list):
        return tuple(settings.calibration)
    return CONTENT_FREE if settings.calibration == "contextual" else ()


def _check_calibration_texts(texts: Sequence[str]) -> None:
    if not 1 <= len(texts) <= MAX_CALIBRATION_TEXTS:
        raise SettingError("calibration", f"{len(texts)} texts; give 1 to {MAX_CALIBRATION_TEXTS}")
    if any(is_blank(text) for text in texts):
        raise SettingError("calibration", "a text is blank")


def _check_fit(texts: Sequence[str], instruction: str, model: TaskModel, num_reserved: int) -> None:
    """Raise ConfigError for a text of `calibration` that cannot be scored with this model."""
    for number, text in enumerate(texts):
        num_tokens = model.encoder.count(instruction, text, model.max_positions).num_tokens + num_reserved
        if num_tokens > model.max_positions:
            raise ConfigError(
                f"task.calibration: text {number + 1} takes {num_tokens:,} tokens with its prompt and label, and the "
                f"model has {model.max_positions:,}; shorten it"
            )


def _check_different(tokens: Mapping[str, Sequence[int]]) -> None:
    """Raise ConfigError for two labels of the same tokens: they would share their probability, and none could win."""
    seen: dict[tuple[int, ...], str] = {}
    for label, ids in tokens.items():
        other = seen.setdefault(tuple(ids), label)
        if other != label:
            raise ConfigError(
                f"task.labels: {other!a} and {label!a} are the same tokens to this model, as composed and decomposed "
                "accents are; leave one of them out"
            )


def softmax(values: Sequence[float]) -> list[float]:
    """Shares that sum to 1; equal ones where every value is -inf."""
    highest = max(values)
    if highest == -math.inf:
        return [1 / len(values)] * len(values)
    weights = [math.exp(value - highest) for value in values]
    total = sum(weights)
    return [weight / total for weight in weights]


def divisors(labels: Sequence[str], normalization: Normalization, count: Callable[[str], int]) -> tuple[float, ...]:
    """What each label's log-likelihood is divided by; `count` gives the tokens of a label as it is scored."""
    if normalization == "sum":
        return (1.0,) * len(labels)
    return tuple(float(max(1, count(label) if normalization == "per_token" else len(label))) for label in labels)


def default_instruction(labels: Sequence[str] | Mapping[str, str], count: Callable[[str], int], positions: int) -> str:
    """The instruction with the labels listed, or, where the list would take half of the positions, without them.

    Raises ConfigError when descriptions don't fit: they are of no use but in the list.
    """
    if isinstance(labels, Mapping):
        listed = "\n".join(f"- {label}: {meaning}" if meaning else f"- {label}" for label, meaning in labels.items())
        text = f"Classify the text into one of these labels:\n{listed}"
    else:
        text = f"Classify the text into one of these labels: {', '.join(labels)}."
    num_tokens = count(text)
    if num_tokens <= MAX_LIST_SHARE * positions:
        return text
    if isinstance(labels, Mapping):
        raise ConfigError(
            f"task.labels: {len(labels)} labels with their descriptions take {num_tokens:,} tokens, more than half of "
            f"the model's {positions:,} positions; shorten the descriptions, or give the labels as a list"
        )
    return "Classify the text."
