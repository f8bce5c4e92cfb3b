"""What the tasks reach with the small model, and that long texts come through whole."""

import json
from pathlib import Path

import pytest

from dolly_batch.engine.plain.engine import PlainEngine
from dolly_batch.engine.weights.loading import load_model
from dolly_batch.records import GenerationParams
from dolly_batch.tasks import summarize
from dolly_batch.tasks.base import TaskInput, TaskModel
from dolly_batch.tasks.classify import Classify, default_instruction
from dolly_batch.tasks.generate import Generate
from dolly_batch.tiny import MODEL_FOLDER
from tests.tasks.driver import work_all
from tools.tiny import texts

LABELS = ("positive", "negative")
PARAMS = GenerationParams(64, do_sample=False)


@pytest.fixture(scope="module")
def engine() -> PlainEngine:
    return PlainEngine(load_model(MODEL_FOLDER, dtype="float32", device="cpu"))


def test_sentiment_by_labels_is_right_and_no_worse_than_reading_free_text(engine: PlainEngine) -> None:
    rows = [row for row in texts.sentiment_rows(300, 20_261_123) if row.context][:200]
    ask = default_instruction(LABELS, lambda text: len(text), 2048)
    rows_in = [TaskInput(ask, row.context) for row in rows]
    scored = work_all(engine, Classify(LABELS, (1.0, 1.0), ask), rows_in)
    written = work_all(engine, Generate(GenerationParams(8, do_sample=False)), rows_in)
    by_label = sum(answer.response == row.response for answer, row in zip(scored, rows, strict=True))
    by_text = sum(answer.response == row.response for answer, row in zip(written, rows, strict=True))
    print(f"of {len(rows)} rows right: by labels {by_label}, by reading free text {by_text}")
    assert len(rows) == 200
    assert by_label >= 0.95 * len(rows)
    assert by_label >= by_text


def summaries(engine: PlainEngine, told: list[str]) -> list[tuple[str, int, int]]:
    task = summarize.Summarize(PARAMS, TaskModel(str(MODEL_FOLDER), engine.max_positions))
    ask = summarize.default_instruction("sentence", None)
    answers = work_all(engine, task, [TaskInput(ask, text) for text in told])
    for text, answer in zip(told, answers, strict=True):
        pieces = summarize.split_text(text, task.room(ask), task.count)
        assert "".join(pieces) == text
        assert answer.extras[0] == len(pieces)
    return [(answer.status, *answer.extras) for answer in answers]  # type: ignore[misc]


@pytest.mark.chaos
def test_a_text_of_50000_words_ends_with_its_pieces_counted(engine: PlainEngine) -> None:
    rows = texts.mixed_rows(6000, 7)
    words = " ".join(row.context or row.instruction for row in rows).split()[:50_000]
    ((status, num_pieces, num_calls),) = summaries(engine, [" ".join(words)])
    print(f"{len(words)} words: {status}, {num_pieces} pieces, {num_calls} calls")
    assert len(words) == 50_000
    assert status in ("ok", "truncated")
    assert num_calls > num_pieces > 10


@pytest.mark.chaos
def test_every_abstract_of_scitldr_is_summarized(engine: PlainEngine, shared_data: Path) -> None:
    lines = (shared_data / "summarize" / "scitldr_A_dev.jsonl").read_text(encoding="utf-8").splitlines()
    told = [" ".join(json.loads(line)["source"]) for line in lines]
    found = summaries(engine, told)
    print(
        f"{len(found)} abstracts, {sum(pieces for _, pieces, _ in found)} pieces, {sum(c for _, _, c in found)} calls"
    )
    assert len(found) == 619
    assert {status for status, _, _ in found} <= {"ok", "truncated", "empty_response"}
