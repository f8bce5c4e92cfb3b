"""Each kind of task through the whole way, from a table to a table."""

from typing import Any

import pytest

from dolly_batch import Options
from dolly_batch.errors import ConfigError, OutputError
from dolly_batch.prompt import PromptEncoder
from dolly_batch.tiny import MODEL_FOLDER
from tests.spark.desk import Desk
from tests.spark.staging_desk import staged
from tools.tiny import texts

LABELS = ["positive", "negative"]
ASK = "Is this review positive or negative?"


@pytest.fixture
def tiny_desk(desk: Desk) -> Desk:
    """A desk whose job runs the real small model."""
    pytest.importorskip("torch")
    desk.document["engine"] = {"kind": "plain", "num_threads": 1}
    desk.document["model"]["dtype"] = "float32"
    return desk


def text_input(desk: Desk, name: str = "input.jsonl") -> dict[str, Any]:
    """An input section of a job that reads one text."""
    desk.document["input"] = {"path": str(desk.folder / name), "format": "json", "id": "id", "schema": SCHEMA}
    return {}


SCHEMA = "id STRING, text STRING, gold STRING"


def test_classify_gives_one_of_the_labels_with_its_confidence(tiny_desk: Desk) -> None:
    rows = texts.sentiment_rows(80, 4711)
    told = [{"id": f"r{n}", "text": row.context, "gold": row.response} for n, row in enumerate(rows) if row.context]
    tiny_desk.put(
        [*told, {"id": "null", "text": None}, {"id": "blank", "text": " \n"}, {"id": "huge", "text": "x " * 4000}]
    )
    text_input(tiny_desk)
    task = {"kind": "classify", "labels": LABELS, "instruction": ASK, "calibration": "contextual"}
    report = tiny_desk.run(task=task, output={"keep": ["gold"]}, limits={"max_error_share": 1.0})
    assert report.by_status == {"ok": len(told), "null_instruction": 1, "empty_instruction": 1, "too_long": 1}
    found = {row["id"]: row for row in tiny_desk.rows()}
    assert all(found[key]["response"] is None for key in ("null", "blank", "huge"))
    right = sum(found[row["id"]]["response"] == row["gold"] for row in told)
    assert right >= 0.95 * len(told)
    columns = tiny_desk.spark.read.parquet(str(tiny_desk.out)).columns
    assert columns[-4:] == ["created_at", "confidence", "margin", "label_scores"]
    for row in (found[row["id"]] for row in told):
        first, second = sorted(row["label_scores"].values(), reverse=True)
        assert set(row["label_scores"]) == set(LABELS)
        assert first + second == pytest.approx(1)
        assert (row["confidence"], row["margin"]) == pytest.approx((first, first - second))
        assert row["label_scores"][row["response"]] == row["confidence"]
        assert (row["num_completion_tokens"], row["finish_reason"], row["error"]) == (0, None, None)


def test_extract_gives_a_struct(tiny_desk: Desk) -> None:
    rows = [
        {"id": str(n), "text": f"Ada Berg, aged {n + 30}, is often here. Ada Berg lives in Paris."} for n in range(6)
    ]
    tiny_desk.put([*rows, {"id": "null", "text": None}])
    text_input(tiny_desk)
    task = {"kind": "extract", "schema": "name VARCHAR(40), age INT, city STRING, price DOUBLE"}
    report = tiny_desk.run(task=task, generation={"max_new_tokens": 64})
    assert report.by_status == {"ok": 6, "null_instruction": 1}
    table = tiny_desk.spark.read.parquet(str(tiny_desk.out))
    assert table.schema["response"].dataType.simpleString() == "struct<name:string,age:int,city:string,price:double>"
    found = {row["id"]: row["response"] for row in tiny_desk.rows()}
    assert found["null"] is None
    assert [found[str(n)]["age"] for n in range(6)] == [n + 30 for n in range(6)]


def test_an_answer_that_is_no_object_is_invalid_output(desk: Desk) -> None:
    desk.put([{"id": "a", "text": "some text"}])
    text_input(desk)  # the echo engine gives the instruction back
    report = desk.run(task={"kind": "extract", "schema": "name STRING"}, limits={"max_error_share": 1.0})
    assert report.by_status == {"invalid_output": 1}


def test_a_long_text_is_summarized_in_pieces(tiny_desk: Desk) -> None:
    sentence = "In Paris, Ada Berg led a meeting on Friday. "
    tiny_desk.put(
        [{"id": "short", "text": sentence}, {"id": "long", "text": sentence * 120}, {"id": "null", "text": None}]
    )
    text_input(tiny_desk)
    report = tiny_desk.run(
        task={"kind": "summarize"}, generation={"max_new_tokens": 40}, limits={"max_error_share": 1.0}
    )
    assert report.by_status.get("null_instruction") == 1
    found = {row["id"]: row for row in tiny_desk.rows()}
    assert (found["short"]["num_pieces"], found["short"]["num_calls"]) == (1, 1)
    assert found["long"]["num_pieces"] > 1
    assert found["long"]["num_calls"] > found["long"]["num_pieces"]
    assert found["long"]["num_prompt_tokens"] > len(PromptEncoder.from_folder(MODEL_FOLDER).encode_text(sentence * 120))
    assert found["long"]["status"] in ("ok", "truncated")
    assert found["long"]["input_truncated"] is False


ROWS = [
    {"id": "1", "text": "braces {language} {{x}}", "language": "French", "n": 3},
    {"id": "2", "text": None, "language": "French", "n": 3},
    {"id": "3", "text": "a\\b %s", "language": "{text}", "n": 4},
    {"id": "4", "text": " \u200b", "language": "", "n": ""},
]


def test_a_template_takes_any_columns_and_braces_in_data_are_data(desk: Desk) -> None:
    desk.put(ROWS)
    desk.document["input"] = {"path": str(desk.folder / "input.jsonl"), "format": "json", "id": "id"}
    task = {"template": "Translate to {language} ({n}, {{as is}}): {text}"}
    example = {"instruction": "Translate to Dutch: yes", "response": "ja"}
    desk.run(task={**task, "examples": [example]})
    found = {row["id"]: (row["response"], row["status"]) for row in desk.rows()}
    shown = "Instruction: Translate to Dutch: yes\nResponse: ja\n\nInstruction: "
    assert found["1"] == (shown + "Translate to French (3, {as is}): braces {language} {{x}}", "ok")
    assert found["2"] == (None, "null_instruction")
    assert found["3"] == (shown + "Translate to {text} (4, {as is}): a\\b %s", "ok")
    assert found["4"] == (None, "empty_instruction")
    assert "did you mean `language`" in str(desk.refused(task={"template": "{langage}"}))


OTHERS = [pytest.param(side, marks=pytest.mark.chaos) for side in ("truncate_right", "truncate_middle")]


@pytest.mark.parametrize("side", ["truncate_left", *OTHERS])
def test_long_prompts_are_cut_and_the_tokens_told(desk: Desk, side: str) -> None:
    words = " ".join(f"w{n}" for n in range(3000))
    rows = [
        {"id": "context", "instruction": "Keep me whole.", "context": words},
        {"id": "instruction", "instruction": words, "context": "some context"},
        {"id": "short", "instruction": "Say hello.", "context": None},
        {"id": "null", "instruction": None, "context": words},
    ]
    desk.put(rows)
    short = desk.run(limits={"max_error_share": 1.0})
    assert short.by_status == {"ok": 1, "too_long": 2, "null_instruction": 1}
    key = {row["id"]: row["request_key"] for row in desk.rows()}["short"]
    desk.run(limits={"long_prompt": side, "max_error_share": 1.0})
    found = {row["id"]: row for row in desk.rows()}
    encoder = PromptEncoder.from_folder(MODEL_FOLDER)
    assert found["short"]["request_key"] == key
    assert (found["short"]["input_truncated"], found["short"]["num_dropped_tokens"]) == (False, 0)
    assert found["null"]["status"] == "null_instruction"
    for row in rows[:2]:
        cut = found[str(row["id"])]
        assert cut["input_truncated"] is True
        room = 2048 - 256
        assert room - 12 <= cut["num_prompt_tokens"] <= room
        whole = len(encoder.encode(str(row["instruction"]), row["context"]))
        # The context goes before any of the instruction does, also where it alone is not what is too long.
        assert cut["num_prompt_tokens"] + cut["num_dropped_tokens"] == whole
    assert found["context"]["response"].startswith("Keep me whole.")
    # The echo stops after 256 tokens, so that only the beginning of what was kept can be seen.
    assert ("w0" in found["context"]["response"].split()) == (side != "truncate_left")


def test_another_task_or_schema_into_a_table_is_refused_with_the_difference(desk: Desk) -> None:
    desk.put([{"id": "a", "text": "some text", "instruction": "x"}])
    desk.document["output"]["mode"] = "append"
    text_input(desk)
    desk.run(task={"kind": "classify", "labels": LABELS})
    for task, line in [
        ({"kind": "summarize"}, "+ num_pieces int"),
        ({"kind": "extract", "schema": "a INT"}, "~ response: the table has string, this job writes struct<a:int>"),
    ]:
        refused = desk.refused(task=task)
        assert isinstance(refused, OutputError)
        assert line in str(refused)


def test_an_open_plan_is_not_gone_on_with_by_another_task(desk: Desk) -> None:
    desk.put([{"id": "a", "instruction": "x"}])
    desk.document["input"] = {"path": str(desk.folder / "input.jsonl"), "format": "json", "id": "id"}
    staged(desk, task={"template": "Say {instruction}"})
    for sections in ({"task": {"template": "Sing {instruction}"}}, {"limits": {"long_prompt": "truncate_left"}}):
        refused = desk.refused(**{"task": {"template": "Say {instruction}"}, **sections})
        assert "open plan" in str(refused)
    asked = {"task": {"template": "Say {instruction}"}}
    assert "open plan" in str(desk.refused(**asked, input={"where": "id = 'b'"}))
    assert "open plan" in str(desk.refused(Options(limit=1), **asked))
    assert desk.run(task={"template": "Say {instruction}"}).outcome == "complete"
    assert desk.rows()[0]["response"] == "Say x"


def test_settings_that_cannot_work_are_refused_before_any_work(desk: Desk) -> None:
    desk.put([{"id": "a", "text": "some text"}])
    text_input(desk)
    refused = desk.refused(task={"kind": "extract", "schema": "name STRIN"})
    assert isinstance(refused, ConfigError)
    assert not desk.out.exists()
