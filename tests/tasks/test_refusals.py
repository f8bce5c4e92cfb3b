"""Settings of tasks that cannot work are refused by name, before Spark is started."""

import re
from dataclasses import replace
from typing import Any

import pytest
from pyspark.sql import types as T

from dolly_batch.config.job import check_job
from dolly_batch.errors import ConfigError, OutputError
from dolly_batch.spark.plan.prepared_task import prepare_task
from dolly_batch.spark.tables.columns import ColumnRef, names_columns, output_schema
from dolly_batch.tasks.base import TaskModel
from dolly_batch.tiny import MODEL_FOLDER

MODEL = TaskModel(str(MODEL_FOLDER), 2048)


def job(task: dict[str, Any], max_new_tokens: int = 900, output: dict[str, Any] | None = None) -> Any:
    return check_job(
        {
            "name": "job",
            "model": {"path": "tiny"},
            "task": task,
            "input": {"path": "in", "format": "parquet"},
            "output": {"path": "out", **(output or {})},
            "generation": {"max_new_tokens": max_new_tokens},
            "work_dir": "work",
        },
        "the job",
    )


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            {"kind": "generate", "system": "Be brief."},
            "task.system: this model's prompt has no place for a system prompt",
        ),
        ({"kind": "generate", "system": ""}, "task.system: must not be empty"),
        ({"kind": "extract", "schema": "name STRIN"}, "found `STRIN`"),
        ({"kind": "extract", "schema": "m MAP<STRING, INT>"}, "found `MAP`"),
        (
            {"kind": "extract", "schema": {"type": "object", "properties": {"a": {"type": "string", "maxLenght": 3}}}},
            "did you mean `maxLength`",
        ),
        ({"kind": "extract", "schema": "{"}, "not readable JSON"),
        ({"kind": "summarize"}, "max_new_tokens: 900 leaves"),
        ({"kind": "summarize", "max_words": 901}, "cannot hold the 901 words"),
        (
            {"kind": "classify", "labels": {f"label {n}": "word " * 60 for n in range(40)}},
            "labels with their descriptions",
        ),
        (
            {"kind": "classify", "labels": ["caf\u00e9", "b", "cafe\u0301"]},
            r"task.labels: 'caf\\xe9' and 'cafe\\u0301' are the same tokens",
        ),
        ({"kind": "classify", "labels": ["a", "b " * 3000 + "c"]}, "task: no row can be answered"),
        ({"kind": "classify", "labels": ["a", "b"], "instruction": "word " * 3000}, "task: no row can be answered"),
        ({"kind": "summarize", "instruction": "word " * 3000}, "task.instruction: no row can be answered"),
        ({"kind": "extract", "schema": "a INT", "instruction": "word " * 3000}, "task: no row can be answered"),
        ({"kind": "extract", "schema": f"a INT COMMENT '{'word ' * 3000}'"}, "task: no row can be answered"),
        ({"template": "word " * 3000 + "{a}"}, "task: no row can be answered"),
        ({"examples": [{"instruction": "word " * 3000, "response": "a"}]}, "task: no row can be answered"),
        (
            {
                "kind": "extract",
                "schema": {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=a)"}}},
            },
            r"task\.schema\.a\.pattern: cannot be followed",
        ),
    ],
)
def test_what_cannot_work_with_the_model_is_refused(task: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare_task(job(task), MODEL)


@pytest.mark.parametrize("task", [{"kind": "generate"}, {"kind": "extract", "schema": "a INT"}, {"template": "of {a}"}])
def test_an_answer_that_leaves_no_prompt_any_room_is_refused_with_the_number_that_does(task: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="max_new_tokens: 2048 leaves no row any room") as caught:
        prepare_task(job(task, 2048), MODEL)
    most = int(re.findall(r"set it to (\d+) or less", str(caught.value))[0])
    assert prepare_task(job(task, most), MODEL).num_reserved == most
    with pytest.raises(ConfigError, match="leaves no row any room"):
        prepare_task(job(task, most + 1), MODEL)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"kind": "clasify", "labels": ["a", "b"]}, "task.kind: no such task `clasify`; did you mean `classify`"),
        ({"kind": "classify", "labels": ["a"]}, "task.labels: 1 labels; give 2 to 500"),
        ({"kind": "classify", "labels": ["a", "a"]}, "task.labels: label `a` is given twice"),
        ({"kind": "classify", "labels": ["a", "b"], "none_below": 2.0}, "task.none_below: must be 0 to 1, found 2.0"),
        ({"kind": "classify", "labels": ["a", "b"], "calibration": []}, "task.calibration: 0 texts; give 1 to 100"),
        ({"kind": "classify", "labels": ["a", "b"], "calibration": ["a", " "]}, "task.calibration: a text is blank"),
        ({"kind": "classify", "labels": ["a", "b"], "calibration": "contextul"}, "task.calibration: .*'contextual'"),
        (
            {"kind": "classify", "labels": {"a": "the first", "b": ""}, "instruction": "Which?"},
            "task.labels: descriptions stand in the default instruction",
        ),
        ({"kind": "classify", "labels": ["a", "b"], "instruction": ""}, "task.instruction: must not be empty"),
        ({"kind": "summarize", "max_words": 2}, "task.max_words: must be 3 or more, found 2"),
        ({"kind": "summarize", "max_words": "9"}, "task.max_words: input should be a valid integer"),
        ({"kind": "extract", "schema": "a INT", "max_item": 3}, "task.max_item: unknown key; did you mean `max_items`"),
        ({"template": "{a!r}"}, "task.template: .* must hold a column's name alone"),
        ({"template": "no column"}, "task.template: names no column"),
        ({"examples": [{"instruction": "a", "respons": "b"}]}, "task.examples.0.respons: unknown key; did you mean"),
        ({"examples": [{"instruction": "a", "response": ""}]}, "task.examples.0.response: must not be empty"),
    ],
)
def test_what_a_file_may_not_say_is_refused_by_its_key(task: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        job(task)


@pytest.mark.parametrize(
    ("output", "is_same"),
    [
        ({"keep": ["Tag", "`q.text`", "a.`b.c`"]}, True),
        ({"keep": ["`TAG`", "q.text", "b.c"], "partition_by": ["tag"]}, True),
        ({"keep": ["tag", "a.b.c", "q.text"]}, False),
        ({"keep": ["tag", "q.text"]}, False),
        ({}, False),
        ({"keep": ["tag", "q.text", "b.c"], "prefix": "x_"}, False),
    ],
)
@pytest.mark.parametrize("has_id", [False, True])
def test_an_open_plan_is_one_for_the_same_columns(output: dict[str, Any], is_same: bool, has_id: bool) -> None:
    kept = [ColumnRef(None, name, T.StringType()) for name in ("tag", "q.text", "b.c")]  # type: ignore[arg-type]
    planned = output_schema(job({}), kept[:0] if not has_id else [replace(kept[0], name="id")], kept)
    assert names_columns(job({}, output=output), planned, int(has_id)) is is_same


def test_two_fields_of_a_struct_with_one_name_are_refused() -> None:
    with pytest.raises(OutputError, match=r"`response\.p\.A` stands twice"):
        output_schema(job({"kind": "extract", "schema": "p STRUCT<a INT, b STRING, A STRING>"}), (), ())
