"""The sample table: what it covers, and that the small model answers it."""

import json
from pathlib import Path

import pytest

import dolly_batch
from tools.tiny import texts
from tools.tiny.measure import answer_rows, share_ended
from tools.tiny.tokenizer import encode_row

SAMPLES = Path(dolly_batch.__file__).parent / "samples" / "instructions.jsonl"
ZERO_WIDTH = "\u200b"


@pytest.fixture(scope="module")
def samples() -> list[dict[str, str | None]]:
    return [json.loads(line) for line in SAMPLES.read_text(encoding="utf-8").splitlines()]


def _asks(sample) -> bool:
    return bool((sample["instruction"] or "").replace(ZERO_WIDTH, "").strip())


def _row(sample) -> texts.Row:
    return texts.Row(sample["instruction"], sample.get("context") or "", "", sample["category"])


def test_ids_are_distinct_strings(samples):
    ids = [sample["id"] for sample in samples]
    assert all(isinstance(at, str) for at in ids)
    assert len(set(ids)) == len(ids) >= 40
    assert "007" in ids


def test_every_category_is_asked_and_contexts_come_and_go(samples):
    asked = [sample for sample in samples if _asks(sample)]
    assert {row.category for row in texts.mixed_rows(100, 1)} == {sample["category"] for sample in asked}
    assert any(sample.get("context") for sample in asked)
    assert any(not sample.get("context") for sample in asked)


def test_the_bad_rows_are_there(samples, tokenizer):
    instructions = [sample["instruction"] for sample in samples]
    assert None in instructions
    assert "" in instructions
    assert any(text and not _asks({"instruction": text}) for text in instructions)
    assert any(text and "### Response:" in text and "### End" in text for text in instructions)
    lengths = [len(encode_row(tokenizer, _row(sample))[0]) for sample in samples if _asks(sample)]
    assert sum(length + 256 > 2048 for length in lengths) == 1


def test_the_small_model_answers_every_row_that_asks_something(samples, model, tokenizer):
    rows = [_row(sample) for sample in samples if _asks(sample)]
    rows = [row for row in rows if len(encode_row(tokenizer, row)[0]) + 256 <= 2048]
    answers = answer_rows(model, tokenizer, rows)
    assert share_ended(answers) == 1.0
    assert all(answer.text for answer in answers)
