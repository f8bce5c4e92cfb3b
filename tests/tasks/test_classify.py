"""From scores to a label."""

import math
from dataclasses import replace

import pytest

from dolly_batch.errors import ConfigError, EngineError
from dolly_batch.records import Failure, GenerationParams, ScoreRow, Scores
from dolly_batch.tasks.base import TaskInput, TaskModel, TaskResult
from dolly_batch.tasks.classify import (
    CONTENT_FREE,
    Classify,
    ClassifyKind,
    ClassifySettings,
    default_instruction,
    divisors,
)
from dolly_batch.tiny import MODEL_FOLDER
from tests.smollm2 import smollm2_folder

LABELS = ("card", "card arrival", "other")


def task(**settings: object) -> Classify:
    return Classify(LABELS, (1.0, 1.0, 1.0), "Which?", **settings)  # type: ignore[arg-type]


def log_probs(*shares: float) -> tuple[float, ...]:
    return tuple(math.log(share) for share in shares)


def test_the_likeliest_label_its_share_and_its_lead() -> None:
    answer = task().choose(log_probs(0.1, 0.3, 0.2))
    confidence, margin, scores = answer.extras
    assert (answer.response, answer.status) == ("card arrival", "ok")
    assert (confidence, margin) == pytest.approx((0.5, 0.5 - 1 / 3))
    assert scores == pytest.approx(dict(zip(LABELS, (1 / 6, 1 / 2, 1 / 3), strict=True)))


def test_below_the_threshold_there_is_no_label_and_no_error() -> None:
    for limit, label in [(0.49, "card arrival"), (0.51, None)]:
        answer = task(none_below=limit).choose(log_probs(0.1, 0.3, 0.2))
        assert (answer.response, answer.status, answer.error) == (label, "ok", None)


def test_the_first_of_equals_wins_and_impossible_labels_lose() -> None:
    assert task().choose((-2.0, -2.0, -math.inf)).response == "card"
    assert task().choose((-math.inf, -math.inf, -math.inf)).response == "card"
    assert task().choose((-math.inf, -5000.0, -math.inf)).extras[0] == 1.0


def test_calibration_divides_by_what_labels_get_for_nothing() -> None:
    calibrated = task(calibration=CONTENT_FREE)
    asked = calibrated.warm_up_requests()
    assert [row.instruction for row in asked] == ["Which?"] * len(asked)
    ready = calibrated.warmed_up([Scores(row.key, log_probs(0.6, 0.3, 0.1)) for row in asked])
    answer = ready.choose(log_probs(0.5, 0.4, 0.1))  # 0.83, 1.33 and 1 times what they get for nothing
    assert answer.response == "card arrival"
    assert answer.extras[0] == pytest.approx((4 / 3) / (5 / 6 + 4 / 3 + 1))
    failed = [Scores("0", (), Failure("model_error", "broken"))]
    with pytest.raises(
        EngineError, match=r"task\.calibration: .* not be calibrated on a text without content \(broken\)"
    ):
        calibrated.warmed_up(failed)
    with pytest.raises(EngineError, match=r"not be calibrated on one of its texts \(broken\)"):
        task(calibration=("a row",)).warmed_up(failed)
    assert task().warm_up_requests() == []


def test_calibration_is_by_default_what_was_measured_and_in_dollys_format_what_it_was() -> None:
    dolly, chat = TaskModel(str(MODEL_FOLDER), 2048), TaskModel(str(smollm2_folder()), 8192)
    many, two = ClassifySettings(labels=list(LABELS)), ClassifySettings(labels=["a", "b"])
    found = [ClassifyKind().settled(settings, model).calibration for model in (dolly, chat) for settings in (many, two)]
    assert found == ["none", "none", "contextual", "none"]
    for said in ("none", "contextual", ["a row"]):
        settings = replace(many, calibration=said)
        assert ClassifyKind().settled(settings, chat) == settings
    assert prepared(many, chat).calibration == CONTENT_FREE
    assert prepared(many, dolly).calibration == ()


def test_texts_of_the_table_calibrate_and_have_to_fit_the_model() -> None:
    model = TaskModel(str(MODEL_FOLDER), 2048)
    texts = ["one row", "another row"]
    asked = prepared(ClassifySettings(labels=list(LABELS), calibration=texts), model).warm_up_requests()
    assert isinstance(asked[0], ScoreRow)
    assert [row.context for row in asked] == texts
    too_long = ClassifySettings(labels=list(LABELS), calibration=["fits", "word " * 3000])
    with pytest.raises(ConfigError, match=r"task\.calibration: text 2 takes .* tokens .* has 2,048; shorten it"):
        prepared(too_long, model)


def prepared(settings: ClassifySettings, model: TaskModel) -> Classify:
    found = ClassifyKind().prepare(settings, model, GenerationParams()).task
    assert isinstance(found, Classify)
    return found


def test_lengths_are_of_tokens_or_of_characters() -> None:
    tokens = {"card": 2, "card arrival": 5, "other": 2}.__getitem__
    assert divisors(LABELS, "sum", tokens) == (1, 1, 1)
    assert divisors(LABELS, "per_token", tokens) == (2, 5, 2)
    assert divisors(LABELS, "per_char", tokens) == (4, 12, 5)
    per_token = Classify(LABELS, divisors(LABELS, "per_token", tokens), "Which?")
    assert task().choose((-4.0, -5.0, -9.0)).response == "card"
    assert per_token.choose((-4.0, -5.0, -9.0)).response == "card arrival"


def test_a_row_is_one_question_with_all_labels() -> None:
    work = task().start(TaskInput("Which?", "a text", 7))
    assert work.first_requests() == (ScoreRow("0", "Which?", "a text", LABELS),)
    failed = work.on_result(Scores("0", (), Failure("too_long", "much")))
    assert isinstance(failed, TaskResult)
    assert (failed.response, failed.status, failed.error, failed.extras) == (None, "too_long", "much", (None,) * 3)


def test_labels_are_listed_where_they_fit() -> None:
    def count(text: str) -> int:
        return len(text.split())

    assert default_instruction(LABELS, count, 100) == (
        "Classify the text into one of these labels: card, card arrival, other."
    )
    told = default_instruction({"a": "the first", "b": ""}, count, 100)
    assert told == "Classify the text into one of these labels:\n- a: the first\n- b"
    many = [f"label {number}" for number in range(100)]
    assert default_instruction(many, count, 100) == "Classify the text."
    with pytest.raises(ConfigError, match="descriptions"):
        default_instruction(dict.fromkeys(many, "told"), count, 100)
