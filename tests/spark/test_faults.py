"""One line of Spark's errors: the cause, and no class, stack or cell."""

import pytest

from dolly_batch.spark.faults import reason

DELTA = "org.apache.spark.sql.delta"


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
