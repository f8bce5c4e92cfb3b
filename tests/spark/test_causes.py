"""What is told of Spark's errors: the deepest cause, no class of Java, no cell."""

import re
import sys
from pathlib import Path

import pytest
from pyspark.errors import AnalysisException, ParseException, PythonException, UnknownException
from pyspark.errors.exceptions.connect import SparkException as ConnectException

from dolly_batch.errors import Refused
from dolly_batch.spark.causes import cause, file_of, is_of_data, reason
from dolly_batch.spark.preflight.package import check_local_python
from dolly_batch.spark.signals import as_dolly_error

DELTA = "org.apache.spark.sql.delta"
READING = """An error occurred while calling o46.parquet.
: org.apache.spark.SparkException: [FAILED_READ_FILE.NO_HINT] Encountered error while reading file file:///d/a%20b.csv.
\tat org.apache.spark.sql.errors.QueryExecutionErrors$.cannotReadFilesError(QueryExecutionErrors.scala:940)
Caused by: """


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (READING + "java.io.IOException: not a gzip file", "not a gzip file"),
        (READING + "org.apache.spark.SparkRuntimeException: [MALFORMED_CSV_RECORD] SECRET", "[MALFORMED_CSV_RECORD]"),
        (
            "[CAST_INVALID_INPUT] The value 'SECRET' of the type \"STRING\" cannot be cast. Use `try_cast` to tolerate "
            "malformed input and return NULL instead. SQLSTATE: 22018\n== SQL ==",
            "[CAST_INVALID_INPUT]: `try_cast` is null where a value does not fit",
        ),
        (
            READING + "java.lang.NullPointerException",
            "[FAILED_READ_FILE.NO_HINT] Encountered error while reading file ",
        ),
    ],
)
def test_the_deepest_cause_is_told(text: str, told: str) -> None:
    assert cause(Exception(text)).startswith(told)
    assert "SECRET" not in cause(Exception(text))
    assert file_of(Exception(text)) == ("file:///d/a%20b.csv" if "FAILED_READ" in text else None)


ABORTED = "org.apache.spark.SparkException: Job aborted due to stage failure: most recent failure: Lost task 0.0 (h):"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"{ABORTED} org.apache.spark.SparkRuntimeException: [DUPLICATED_MAP_KEY] Duplicate map key SECRET was found",
         "[DUPLICATED_MAP_KEY]"),
        ("(org.apache.spark.SparkException) Job aborted due to stage failure: java.lang.RuntimeException: SECRET",
         "RuntimeException"),
        ("java.lang.NumberFormatException: For input string: \"SECRET\"", "NumberFormatException"),
        ("java.time.format.DateTimeParseException: Text 'SECRET' could not be parsed", "DateTimeParseException"),
        ("com.fasterxml.jackson.core.JsonParseException: Unrecognized token 'SECRET'", "JsonParseException"),
        ("com.univocity.parsers.common.TextParsingException: Parsed content: SECRET", "TextParsingException"),
        ("java.util.regex.PatternSyntaxException: Dangling meta near index 0 SECRET", "PatternSyntaxException"),
        ("org.apache.spark.SparkIllegalArgumentException: [INVALID_FORMAT.MISMATCH_INPUT] The format is wrong: '9'. "
         "The input 'SECRET' does not match it. SQLSTATE: 42601", "[INVALID_FORMAT.MISMATCH_INPUT]"),
        ("org.apache.spark.SparkUpgradeException: [INCONSISTENT_BEHAVIOR_CROSS_VERSION.PARSE_DATETIME_BY_NEW_PARSER] "
         "Fail to parse 'SECRET' SQLSTATE: 42K0B",
         "[INCONSISTENT_BEHAVIOR_CROSS_VERSION.PARSE_DATETIME_BY_NEW_PARSER]"),
        # What a cell holds is no part of the error, whatever it looks like.
        ("org.apache.spark.SparkNumberFormatException: [CAST_INVALID_INPUT] The value 'SQLSTATE: 58030\n"
         "Caused by: java.io.IOException: SECRET\nreading file SECRET' of the type \"STRING\" cannot be cast to "
         "\"INT\" because it is malformed. SQLSTATE: 22018", '[CAST_INVALID_INPUT] from "STRING" to "INT"'),
    ],
)  # fmt: skip
def test_nothing_of_a_row_is_told(text: str, told: str) -> None:
    error = UnknownException(f"An error occurred while calling o4.save.\n: {text}")
    assert cause(error) == told
    assert is_of_data(error)
    assert file_of(error) is None


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        ("ValueError: could not convert 'SECRET'", "ValueError (its message may quote a row"),
        ("pyarrow.lib.ArrowInvalid: SECRET", "ArrowInvalid (its message may quote a row"),
        ("KeyError", "KeyError"),
        (
            "pyspark.errors.exceptions.base.PySparkRuntimeError: [PYTHON_VERSION_MISMATCH] x",
            "PySparkRuntimeError: [PYTHON",
        ),
        ("dolly_batch.errors.EngineError: the engine host ended", "EngineError: the engine host ended"),
        ("ModuleNotFoundError: No module named 'x'", "ModuleNotFoundError: No module named 'x'"),
    ],
)
def test_of_an_error_in_python_the_message_is_told_where_it_quotes_no_row(raised: str, told: str) -> None:
    text = f'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    x = "KeyError: SECRET"\n{raised}\n'
    assert str(as_dolly_error(PythonException(f"See below.\n{text}"))).startswith(f"a task failed: {told}")
    assert not is_of_data(PythonException(text))


def test_over_connect_the_condition_is_told_too() -> None:
    text = (
        "Job aborted due to stage failure: Lost task 0.0 (h): org.apache.spark.SparkNumberFormatException: "
        "[CAST_INVALID_INPUT] The value 'SECRET\nCaused by: java.io.IOException: SECRET' of the type \"STRING\" cannot "
        'be cast to "INT"'
    )
    assert cause(ConnectException(text)) == '[CAST_INVALID_INPUT] from "STRING" to "INT"'
    assert is_of_data(ConnectException(text))


def test_an_error_of_the_driver_that_may_quote_a_row_tells_where_it_was_raised() -> None:
    with pytest.raises(ValueError, match="SECRET") as caught:
        int("SECRET")
    assert re.match(r"ValueError in test_causes.py, line \d+ \(its message", str(as_dolly_error(caught.value)))
    assert str(as_dolly_error(RuntimeError("no thread"))) == "RuntimeError: no thread"


def test_another_python_is_refused_by_name(tmp_path: Path) -> None:
    check_local_python(sys.executable)
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -I "$@"\n')
    bare.chmod(0o755)
    for python, fault in ((str(bare), "it lacks pandas, pyarrow, tokenizers"), ("/no/such/python", "there is none")):
        with pytest.raises(Refused, match=rf"PYSPARK_PYTHON is {python}, .*: {fault}"):
            check_local_python(python)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PermissionError(13, "Permission denied", "/x"), "Permission denied"),
        (
            AnalysisException("[SCHEMA_NOT_FOUND] No `main`.`a.b`. SQLSTATE: 42704\nTo tolerate"),
            "[SCHEMA_NOT_FOUND] No `main`.`a.b`.",
        ),
        (
            AnalysisException(f"The {DELTA}.sources.DeltaDataSource@65 datasource has no `x`."),
            "The Delta datasource has no `x`.",
        ),
        (
            ValueError(
                "An error occurred while calling o5.parquet.\n: org.apache.spark.SparkException: Job aborted (driver): "
                "java.io.IOException: Mkdirs failed to create file:/proc/x\n\tat org.apache.Thing.f(Thing.java:1)"
            ),
            "Mkdirs failed to create file:/proc/x",
        ),
        (
            ValueError(
                f"An error occurred while calling o5.save.\n: {DELTA}.DeltaException: outer\n\tat x.Y.z(Y.java:1)\n"
                f"Caused by: {DELTA}.schema.DeltaInvariantViolationException: broken by:\n - status : SECRET"
            ),
            "DeltaInvariantViolationException",
        ),
        (
            ParseException(
                "\n[PARSE_SYNTAX_ERROR] Syntax error at or near '''. SQLSTATE: 42601 (line 1, pos 5)\n\n== SQL"
            ),
            "[PARSE_SYNTAX_ERROR] Syntax error at or near '''. (line 1, pos 5)",
        ),
        (ValueError(""), "no reason is given"),
    ],
)
def test_the_reason_of_an_error(error: BaseException, expected: str) -> None:
    assert reason(error) == expected
