"""Arguments of SQL calls without Spark: the types that arrive on executors, and what no question can be made of."""

from decimal import Decimal
from typing import Any

import numpy
import pandas
import pyarrow
import pytest

from dolly_batch.config.task import check_task
from dolly_batch.records import EngineSpec, GenerationParams
from dolly_batch.spark.generate.sql_call import SqlFunction, answer_calls
from dolly_batch.spark.generate.sql_columns import NotUtf8, values_of
from dolly_batch.tasks import KINDS
from dolly_batch.tasks.arguments import OtherValue, check_argument
from dolly_batch.tasks.base import TaskModel
from dolly_batch.tiny import MODEL_FOLDER

LABELS_EXPECTED = "labels: must be an array of strings, or a map of each label to its description"
DEEP = "a " + "array<" * 2000 + "int" + ">" * 2000


def test_labels_that_are_lists_themselves_are_a_fault_of_the_row() -> None:
    nested = numpy.empty(2, dtype=object)
    nested[:] = [numpy.array(["a"]), numpy.array(["b"])]
    results = answered("classify", pandas.Series(["a text"]), pandas.Series([nested]))
    assert results == [("invalid_arguments", f"{LABELS_EXPECTED}, found array<array<string>>")]


@pytest.mark.parametrize(
    ("kind", "arguments", "fault"),
    [
        ("classify", ["a text", "yes"], ("invalid_arguments", f"{LABELS_EXPECTED}, found string")),
        ("classify", ["a text", None], ("invalid_arguments", f"{LABELS_EXPECTED}, found NULL")),
        ("classify", ["a text", ["a", None]], ("invalid_arguments", f"{LABELS_EXPECTED}, found an array with NULL")),
        ("classify", ["a text", ["a"]], ("invalid_arguments", "labels: 1 labels; give 2 to 500")),
        ("classify", ["a text"], ("invalid_arguments", f"{LABELS_EXPECTED}, found NULL")),
        ("classify", ["a text", ["a", "b"], "c"],
         ("invalid_arguments", "dolly_classify takes text, labels, and was given 3 arguments")),
        ("summarize", ["a text", "9"], ("invalid_arguments", "max_words: must be a whole number, found string")),
        ("summarize", ["a text", 9.5],
         ("invalid_arguments", "max_words: must be a whole number, found a number that is not whole")),
        ("summarize", ["a text", 10**30], ("invalid_arguments", "generation.max_new_tokens: ")),
        ("generate", ["a text", 3],
         ("invalid_arguments", "context: must be a string, found a number; write CAST(... AS STRING)")),
        ("generate", [True], ("invalid_arguments", "text: must be a string, found boolean; write CAST(... AS STRING)")),
        ("generate", [" "], ("empty_instruction", "the text is blank")),
        ("extract", ["a text", 3], ("invalid_arguments", "schema: must be a string: ")),
        ("extract", ["a text", DEEP], ("invalid_arguments", "")),
        ("extract", ["a text", "{" * 10**5], ("invalid_arguments", "")),
        ("extract", ["a text", '{"type": "object", "properties": {"a": {"type": "string", "minLength": "3"}}}'],
         ("invalid_arguments", "")),
        ("extract", ["a text", '{"type": "object", "properties": {"\\ud800": {"type": "string"}}}'],
         ("invalid_arguments", "")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("column", [lambda value: pyarrow.array([value]), lambda value: pandas.Series([value])])
def test_arguments_that_no_question_can_be_made_of(
    kind: str, arguments: list[Any], fault: tuple[str, str], column: Any
) -> None:
    """As Arrow's arrays, from Spark 4.1 on, and as pandas' series."""
    if 10**30 in arguments:
        arguments = [arguments[0], Decimal(10**30)]
    ((status, error),) = answered(kind, *map(column, arguments))
    assert status == fault[0]
    assert error.startswith(fault[1])
    assert "a text" not in error


def answered(kind: str, *columns: Any) -> list[tuple[str, str]]:
    """Status and error of each row of a call that no engine is needed for."""
    function = SqlFunction(
        kind=kind,
        settings=check_task({"kind": kind, **KINDS[kind].sql_placeholders}, "here"),
        spec=EngineSpec("echo", str(MODEL_FOLDER)),
        params=GenerationParams(do_sample=False),
        max_positions=2048,
        seed=42,
        long_prompt="error",
    )
    (results,) = answer_calls(function, iter([columns]))
    return [(result.status, result.error or "") for result in results if result is not None]


def test_columns_are_read_as_what_arguments_take() -> None:
    texts = pyarrow.array([b"a", b"\xff", None], pyarrow.binary()).cast(pyarrow.string(), safe=False)
    good, bad, null = values_of(texts)
    assert (good, type(bad), null) == ("a", NotUtf8, None)
    kind = pyarrow.map_(pyarrow.string(), pyarrow.string())
    labels = [{"b": "of b", "a": "of a"}, None]
    arrays = pyarrow.array([[*value.items()] if value else None for value in labels], kind)
    for column in (arrays, pandas.Series(labels, dtype=object)):
        assert values_of(column) == labels
        assert [*values_of(column)[0]] == ["b", "a"]
    assert values_of(pandas.Series([numpy.array(["a", "b"], dtype=object), None])) == [["a", "b"], None]
    assert values_of(pandas.Series([9.0, float("nan")])) == [9.0, None]
    assert values_of(pandas.DataFrame({"n": [1]})) == [OtherValue("struct")]
    assert values_of(pyarrow.array([[1], None])) == [OtherValue("array<bigint>"), None]


def test_a_map_of_labels_asks_what_a_job_with_descriptions_asks() -> None:
    kind, model = KINDS["classify"], TaskModel(str(MODEL_FOLDER), 2048)
    labels = {"billing": "invoices and refunds", "other": "anything else"}
    of_job = check_task({"kind": "classify", "labels": labels}, "here")
    of_call = kind.with_arguments(
        check_task({"kind": "classify", **kind.sql_placeholders}, "here"),
        {"labels": check_argument(kind.sql_arguments[0], labels)},
    )
    assert of_call == of_job
    assert "- billing: invoices and refunds" in kind.prepare(of_call, model, GenerationParams()).literals[0]
