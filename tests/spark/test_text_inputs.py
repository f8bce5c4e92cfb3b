"""CSV and JSON files as people have them: every row comes in as it was written, or the input is refused by name."""

import gzip
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from dolly_batch.config.tables import InputConfig, ReadableTable
from dolly_batch.errors import InputError
from dolly_batch.spark.tables.columns import quoted_path
from dolly_batch.spark.tables.input import read_table, unreadable_input_named
from tests.spark.desk import Desk

Files = dict[str, bytes | str]


def put(folder: Path, files: Files) -> Path:
    for name, content in files.items():
        path = folder / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / "data"


def rows_of(spark: SparkSession, folder: Path, files: Files, **settings: Any) -> list[tuple[Any, ...]]:
    """The rows, sorted as text; of a cell that is not valid UTF-8, its bytes."""
    config = ReadableTable.model_validate({"path": str(put(folder, files)), "format": "csv", **settings})
    with unreadable_input_named(config):
        df, _ = read_table(spark, config, "input")
        cells = []
        for field in df.schema.fields:
            cell = F.col(quoted_path(field.name))
            is_text = field.dataType.simpleString() == "string"
            cells += [cell, F.when(~F.is_valid_utf8(cell), cell.cast("binary")) if is_text else F.lit(None)]
        found = df.select(*cells).toDF(*map(str, range(len(cells)))).collect()
    rows = [tuple(row[i] if row[i + 1] is None else bytes(row[i + 1]) for i in range(0, len(row), 2)) for row in found]
    return sorted(rows, key=repr)


AB = [("1", "a"), ("2", "b")]
READ: dict[str, tuple[Files, dict[str, Any], list[tuple[Any, ...]]]] = {
    "the header quoted, in capitals, with a mark, an empty part and one without rows": (
        {
            "a.csv": "id,text\n1,a\n",
            "b.csv": '\ufeff"ID","Text"\r\n2,b\r\n',
            "c.csv": "",
            "d.csv.gz": gzip.compress(b"id,text\n"),
        },
        {},
        AB,
    ),
    "the schema in another order": ({"a.csv": "id,text\n1,a\n"}, {"schema": "text STRING, id INT"}, [(1, "a")]),
    "no header, and told so": (
        {"a.csv": "1,a\n", "b.csv": "2,b\n"},
        {"options": {"Header": "False"}, "schema": "id STRING, text STRING"},
        AB,
    ),
    "quotes that close": (
        {"a.csv": 'id,"te\nxt"\n1,"a ""b""\nc,"\n2,5" pipe\n3,9" pipe\n'},
        {},
        [("1", 'a "b"\nc,'), ("2", '5" pipe'), ("3", '9" pipe')],
    ),
    "both kinds of line ends": ({"a.csv": 'id,text\n1,a\r\n2,"b"\r\n3,\r\n'}, {}, [*AB, ("3", None)]),
    "bytes that are no text": (
        {"a.csv": b"\xef\xbb\xbfid,text,n\n1,caf\xe9,5\n2,\xc3\xa9,6\n3,\xef\xbf\xbd,7\n"},
        {"schema": "n INT, id STRING, text STRING"},
        [("1", b"caf\xe9", 5), ("2", "é", 6), ("3", "\ufffd", 7)],
    ),
    "the encoding they are in": (
        {"a.csv": b"id,text\n1,caf\xe9\n"},
        {"options": {"encoding": "ISO-8859-1"}},
        [("1", "café")],
    ),
    "folders' names": (
        {"code=007/a.csv": "id\n1\n", "code=__HIVE_DEFAULT_PARTITION__/a.csv": "id\n2\n", "code=1.0/a.csv": "id\n3\n"},
        {},
        [("1", "007"), ("2", None), ("3", "1.0")],
    ),
    "objects": (
        {
            "code=007/a.json": '\ufeff{"id": 1, "text": {"k": [1.0]}}\n\n {"id": "2", "text": "b"},\r\n',
            "code=008/a.json": '[{"id": "3"}, {"id": "4"}]\n',
        },
        {"format": "json"},
        [("1", '{"k":[1.0]}', "007"), ("2", "b", "007"), ("3", None, "008"), ("4", None, "008")],
    ),
    "objects of many lines": (
        {"a.json": '{"id": 1,\n"text": "a"}\n', "b.json": '[{"id": 2, "text": "b"},\n{"id": 3}]'},
        {"format": "json", "options": {"multiLine": "true"}},
        [*AB, ("3", None)],
    ),
    "objects whose text is none": (
        {
            "a.json": b'{"id": "1", "text": "caf\xe9"}\n{"id": "2", "text": "\xef\xbf\xbd"}\n'
            b'{"id": "3", "text": "\\ude00 \\ud83d"}\n{"id": "4", "text": "\\ud83d\\ude00 \\\\ud83d"}\n'
        },
        {"format": "json"},
        [("1", b"caf\xff"), ("2", "\ufffd"), ("3", b"\xff \xff"), ("4", "😀 \\ud83d")],
    ),
}


@pytest.mark.parametrize("case", READ)
def test_read_as_written(spark: SparkSession, tmp_path: Path, case: str) -> None:
    files, settings, rows = READ[case]
    assert rows_of(spark, tmp_path, files, **settings) == rows


TOLD = "input.options: {header: 'false'}"
REFUSED: dict[str, tuple[Files, dict[str, Any], tuple[str, ...]]] = {
    "a part without a header": ({"a.csv": "id,text\n1,a\n2,b\n", "b.csv": "SECRET,c\n"}, {}, ("b.csv does not", TOLD)),
    "a part in another order": (
        {"a.csv": "id;text\n1;a\n2;b\n", "b.csv": "text;id\nc;3\n"},
        {"options": {"sep": ";"}},
        ("b.csv does not", TOLD),
    ),
    "a schema with other columns": ({"a.csv": "SECRET,x\n"}, {"schema": "id STRING, text STRING"}, ("id, text", TOLD)),
    "a quote that stays open": ({"a.csv": 'id,text\n1,"SECRET\n2,b\n3,""\n'}, {}, ("a.csv", "never closed")),
    "two of them": ({"a.csv": 'id,text\n1,"SECRET\n2,b\n3,"c\n'}, {}, ("a.csv", "never closed")),
    "quotes behind backslashes": ({"a.csv": 'id,text\n1,"a \\"SECRET\\""\n'}, {}, ("a.csv", "escape: '\\'")),
    "too many cells": ({"a.csv": "id,text\n1,SECRET,b\n"}, {}, ("a.csv", "columns of the header")),
    "too many columns": ({"a.csv": "SECRET," * 20_480 + "x\n"}, {}, ("maxColumns",)),
    "a column twice": ({"code=7/a.csv": "id,code\n1,8\n"}, {}, ("`code`", "folders' names")),
    "two objects on a line": ({"a.json": '{"id": "SECRET"}{"id": 2}\n'}, {"format": "json"}, ("one whole JSON",)),
    "a bracket too many": ({"a.json": '{"id": "SECRET"}}\n'}, {"format": "json"}, ("one whole JSON object",)),
    "two objects in a file": (
        {"a.json": '{"id": "SECRET"}\n{"id": 2}\n'},
        {"format": "json", "options": {"multiLine": "true"}},
        ("one whole JSON object",),
    ),
    "half a character in an array": ({"a.json": '{"id": ["\\ud83d"]}\n'}, {"format": "json"}, ("array", "UTF-8")),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name_without_its_cells(spark: SparkSession, tmp_path: Path, case: str) -> None:
    files, settings, told = REFUSED[case]
    with pytest.raises(InputError) as caught:
        rows_of(spark, tmp_path, files, **settings)
    message = str(caught.value)
    assert all(part in message for part in told), message
    assert not any(part in message for part in ("SECRET", "org.apache", "Exception")), message


def test_damaged_text_is_its_rows_fault(desk: Desk) -> None:
    put(desk.folder, {"a.csv": b"id,instruction,note\n1,caf\xe9,x\n2,b,\xe9\n3,\xef\xbf\xbd,y\n"})
    read = {"path": str(desk.folder / "data"), "format": "csv", "context": None}
    desk.run(input=read, output={"keep": ["note"]}, limits={"max_error_share": 1.0})
    rows = {row["id"]: (row["note"], row["status"], row["response"]) for row in desk.rows()}
    assert rows == {"1": ("x", "bad_encoding", None), "2": ("\ufffd", "bad_encoding", None), "3": ("y", "ok", "\ufffd")}
    put(desk.folder, {"a.csv": b"id,instruction,note\n\xe9,a,x\n"})
    new = {"path": str(desk.folder / "new")}
    assert "input.id: 1 rows have an id that is not valid UTF-8" in str(desk.refused(input=read, output=new))
    error = str(desk.refused(input={**read, "id": "key"}, output=new))
    assert TOLD in error
    assert "note" not in error


@pytest.mark.parametrize(
    ("where", "told"),
    [
        (
            "cast(n as int) > 3",
            'fails on a row: [CAST_INVALID_INPUT] from "STRING" to "INT" in `cast(n as int)`: `try_cast`',
        ),
        ("id = 'x", "[PARSE_SYNTAX_ERROR] Syntax error"),
        ("id", "is not a boolean"),
        ("nope = 1", "`nope`"),
    ],
)
def test_a_where_that_cannot_be_is_refused_with_the_reason(desk: Desk, where: str, told: str) -> None:
    desk.put([{"id": "1", "instruction": "a", "n": "SECRET"}])
    error = desk.refused(input={"where": where, "context": None})
    assert isinstance(error, InputError)
    assert str(error).startswith("input.where")
    assert told in str(error)
    assert "SECRET" not in str(error)
    assert len(str(error).splitlines()) == 1


# What is computed of a cell, and the condition that is told of it.
COMPUTED = {
    "cast(n as int) > 3": "[CAST_INVALID_INPUT]",
    "to_timestamp(n, 'yyyy') is null": "[CANNOT_PARSE_TIMESTAMP]",
    "to_number(n, '999') > 1": "[INVALID_FORMAT.MISMATCH_INPUT]",
    "length(n) / (length(n) - length(n)) > 1": "[DIVIDE_BY_ZERO]",
    "cast(length(n) * 100000000 as int) * 100000 > 1": "[ARITHMETIC_OVERFLOW]",
    "element_at(array(n), 7) = n": "[INVALID_ARRAY_INDEX_IN_ELEMENT_AT]",
    "size(map_from_arrays(array(n, n), array(1, 2))) > 1": "[DUPLICATED_MAP_KEY]",
    "n rlike concat('(', n)": "[INVALID_PARAMETER_VALUE.PATTERN]",
    "from_json(n, 'a int', map('mode', 'FAILFAST')) is null": "[MALFORMED_RECORD_IN_PARSING",
    "raise_error(n) is null": "[USER_RAISED_EXCEPTION]",
}
# A cell that looks like the end of an error of its own.
CELL = "SECRET\n\nCaused by: java.io.IOException: SECRET\n: org.apache.hadoop.Error: SECRET SQLSTATE: 58030"


# Each is a query, and so a second or more; these five take ways of their own to the message.
QUICK = ("[CAST", "[INVALID_FORMAT", "[DUPLICATED", "[MALFORMED", "[USER_RAISED")


@pytest.mark.parametrize(
    "where",
    [
        pytest.param(where, marks=() if told.startswith(QUICK) else pytest.mark.chaos)
        for where, told in COMPUTED.items()
    ],
)
def test_of_a_row_that_stops_the_query_its_condition_is_told(spark: SparkSession, where: str) -> None:
    table = spark.createDataFrame([(CELL,)], "n string").filter(F.expr(where))
    with pytest.raises(InputError) as caught, unreadable_input_named(InputConfig(table="t", where=where)):
        table.collect()
    assert COMPUTED[where] in str(caught.value)
    assert not any(part in str(caught.value) for part in ("SECRET", "58030", "java", "\n"))


def test_the_file_of_this_very_name_is_read(spark: SparkSession, tmp_path: Path) -> None:
    for name, text in (("report[1].csv", "right"), ("report1.csv", "wrong"), ("a{b}*/c.csv", "braces")):
        put(tmp_path, {name: f"{text}\n1\n"})

    def read(name: str) -> list[str]:
        config = InputConfig(path=str(tmp_path / "data" / name), format="csv")
        return read_table(spark, config, "input")[0].columns

    assert read("report[1].csv") == ["right"]
    assert read("a{b}*") == ["braces"]
    assert read("report1*") == ["wrong"]
    put(tmp_path, {"a[1].json": '{"id": 1}\n'})
    config = InputConfig(path=str(tmp_path / "data" / "a[1].json"), format="json")
    with pytest.raises(InputError, match=r"rename .*a\[1\]\.json, or name its columns in input\.schema"):
        read_table(spark, config, "input")
    assert read_table(spark, config.model_copy(update={"columns": "id INT"}), "input")[0].collect() == [(1,)]
