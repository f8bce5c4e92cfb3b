"""The text generators, and one batch of training."""

import pytest
import torch
from tokenizers import Tokenizer

from tools.tiny import texts, train
from tools.tiny.tokenizer import END_ID, encode_row, train_tokenizer
from tools.tiny.words import Draw

CATEGORIES = {
    "open_qa",
    "general_qa",
    "classification",
    "closed_qa",
    "brainstorming",
    "information_extraction",
    "summarization",
    "creative_writing",
}


@pytest.fixture(scope="module")
def small_tokenizer() -> Tokenizer:
    return train_tokenizer(texts.training_rows(1, 0.5, 2_000), 800)


@pytest.mark.parametrize("rows", [texts.sentiment_rows, texts.field_rows, texts.json_rows, texts.mixed_rows])
def test_rows_depend_on_the_seed_alone(rows):
    assert rows(50, 3) == rows(50, 3)
    assert rows(50, 3) != rows(50, 4)


def test_names_and_towns_of_tests_are_never_drawn_for_training():
    seen, unseen = Draw(1, held_out=False), Draw(2, held_out=True)
    for kind in (Draw.first_name, Draw.city, lambda draw: draw.opinion(good=True)):
        assert not {kind(seen) for _ in range(3_000)} & {kind(unseen) for _ in range(3_000)}


def test_the_mixture_covers_every_category():
    assert {row.category for row in texts.mixed_rows(100, 5)} == CATEGORIES
    assert {row.category for row in texts.training_rows(5, 1.0, 500)} == CATEGORIES


def test_a_bare_field_is_in_its_text():
    for row in texts.field_rows(300, 6):
        assert row.response in row.context + row.instruction


def test_labels_are_the_response_and_its_end(small_tokenizer):
    for ids, labels in train.batches(small_tokenizer, steps=2):
        for line, label in zip(ids, labels, strict=True):
            answer = [token for token in label.tolist() if token != train.IGNORED]
            start = label.tolist().index(answer[0])
            assert answer == line.tolist()[start + 1 : start + 1 + len(answer)]
            assert answer[-1] == END_ID


def test_padding_does_not_change_a_row(small_tokenizer):
    model = train.new_model().eval()
    row = texts.field_rows(1, 7)[0]
    prompt, response = encode_row(small_tokenizer, row)
    ids = torch.tensor([prompt + response])
    padded = torch.nn.functional.pad(ids, (0, 9))
    with torch.inference_mode():
        alone, beside = model(ids).logits, model(padded).logits[:, : ids.shape[1]]
    torch.testing.assert_close(alone, beside, atol=1e-4, rtol=0)


def test_an_untrained_model_misses_the_bars(small_tokenizer, capsys):
    assert not train.evaluate(train.new_model().eval(), small_tokenizer, num_rows=3)
    assert "field: 0.0% (bar 80%)" in capsys.readouterr().out
