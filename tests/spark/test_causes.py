"""What is told of Spark's errors: the deepest cause, no class of Java, no cell."""

import sys
from pathlib import Path

import pytest

from dolly_batch.errors import Refused
from dolly_batch.spark.causes import cause, file_of, reason
from dolly_batch.spark.preflight.package import check_local_python

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
            "[CAST_INVALID_INPUT] Use `try_cast` to tolerate malformed input and return NULL instead.",
        ),
        (
            "\n[PARSE_SYNTAX_ERROR] Syntax error at or near '''. SQLSTATE: 42601 (line 1, pos 5)\n\n== SQL ==",
            "[PARSE_SYNTAX_ERROR] Syntax error at or near '''. (line 1, pos 5)",
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
            ValueError("[SCHEMA_NOT_FOUND] No `main`.`a.b`. SQLSTATE: 42704\nTo tolerate"),
            "[SCHEMA_NOT_FOUND] No `main`.`a.b`.",
        ),
        (
            ValueError(f"The {DELTA}.sources.DeltaDataSource@65 datasource has no `x`."),
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
                f"calling o5.save.\n: {DELTA}.DeltaException: outer\n\tat x.Y.z(Y.java:1)\n"
                f"Caused by: {DELTA}.schema.DeltaInvariantViolationException: broken by:\n - status : SECRET"
            ),
            "broken by:",
        ),
        (ValueError(""), "no reason is given"),
    ],
)
def test_the_reason_of_an_error(error: BaseException, expected: str) -> None:
    assert reason(error) == expected
