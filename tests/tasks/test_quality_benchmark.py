"""`benchmarks/quality.py` on `tiny` and a table of its own: it reads free text fairly, and its checks can fail."""

import json
from pathlib import Path

import pytest

from benchmarks import tables
from benchmarks.measures import SCHEMA, Client, classify, extract, is_valid, named_label, options, piped, summarize
from benchmarks.quality import HEADS, print_table
from dolly_batch.engine.load import load_engine
from dolly_batch.records import EngineSpec
from dolly_batch.tiny import MODEL_FOLDER

REVIEWS = [
    ("The printer is uncomfortable and worthless.", "negative"),
    ("I think the keyboard is friendly.", "positive"),
    ("The train is fantastic and perfect.", "positive"),
]


@pytest.fixture(scope="module")
def client() -> Client:
    return Client(load_engine(EngineSpec("plain", str(MODEL_FOLDER), dtype="float32", num_threads=1)), MODEL_FOLDER)


def table() -> tables.Labelled:
    texts, gold = zip(*REVIEWS, strict=True)
    return tables.Labelled("reviews", texts, gold, ["negative", "positive"], ["The chair is good.", "It is bad."])


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("Card arrival.", "card arrival"),
        ("CARD_ARRIVAL", "card arrival"),
        ("The label is card arrival, not card.", "card arrival"),
        ("It is a card that has no arrival", "card"),
        ("cards", None),
        ("", None),
    ],
)
def test_free_text_is_the_label_that_it_is_or_names_first(answer: str, label: str | None) -> None:
    assert named_label(answer, ["card", "card arrival", "other"]) == label


def test_labels_and_free_text_of_the_same_rows(client: Client) -> None:
    name, num_rows, num_labels, most, free, unnamed, by_labels, by_texts = classify(client, table())
    assert (name, num_rows, num_labels) == ("reviews", "3", "2")
    assert (most, free, unnamed, by_labels) == ("66.7 ± 33.3", "100.0 ± 0.0", "0%", "100.0 ± 0.0")
    assert by_texts.endswith(" ± 0.0") or by_texts.endswith(" ± 33.3")


def test_a_line_for_each_option_and_a_cell_for_each_head(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    lines = list(options(client, table()))
    assert len(lines) == len({tuple(line[1:4]) for line in lines}) == 18
    assert ["reviews", "yes", "sum", "none", "100.0 ± 0.0", "100.0%"] in lines
    print_table(HEADS["options"], [("float32", *line) for line in lines])
    assert {line.count("|") for line in capsys.readouterr().out.splitlines()} == {8}


def test_our_summaries_are_the_pipelines(client: Client) -> None:
    texts = ["Petra held a festival in Vilnius on Thursday. 98 people came.", "Ada Berg lives in Paris."]
    assert [result.response for result in summarize(client, texts)] == piped(client, texts)


def test_objects_are_checked_without_the_grammar(client: Client) -> None:
    rows, ended, invalid = extract(client, [text for text, _ in REVIEWS])
    assert (rows, invalid) == ("3", "0")
    assert ended
    valid = {"name": "a", "kind": "work", "year": 1999, "numbers": [1, 2.5]}
    assert is_valid(json.dumps(valid))
    assert set(valid) == set(SCHEMA["properties"])  # type: ignore[call-overload]
    for fault in ({"kind": "car"}, {"year": 2101}, {"year": True}, {"name": None}, {"numbers": [1] * 4}, {"more": 1}):
        assert not is_valid(json.dumps(valid | fault))
    assert not is_valid("{")


def test_tables_are_drawn_alike_and_those_that_calibrate_are_others(shared_data: Path) -> None:
    drawn = tables.labelled("banking77", 20)
    assert drawn == tables.labelled("banking77", 20)
    assert len(drawn.texts) == 20
    assert len(drawn.labels) == 77
    assert not {*drawn.texts} & {*drawn.calibrating}
    assert len(tables.abstracts(3)) == len(tables.contexts(3)) == 3
