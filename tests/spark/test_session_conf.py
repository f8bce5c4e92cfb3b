"""The caller's session has the settings it had, after anything that changes them for a while."""

import pytest
from pyspark.sql import SparkSession

from dolly_batch.errors import DollyBatchError
from dolly_batch.spark.generate.waves import ONE_FILE_A_TASK
from dolly_batch.spark.session.conf import session_conf
from tests.spark.desk import Desk, questions
from tests.spark.staging_desk import staged

SIZE = "spark.sql.adaptive.advisoryPartitionSizeInBytes"
SPLIT = "spark.sql.files.maxPartitionBytes"


@pytest.mark.parametrize("before", [None, "9m"])
@pytest.mark.parametrize("fails", [False, True])
def test_settings_are_restored_also_after_an_exception(spark: SparkSession, before: str | None, fails: bool) -> None:
    if before is not None:
        spark.conf.set(SIZE, before)
    try:
        settings, default = dict(spark.conf.getAll), spark.conf.get(SIZE)
        try:
            with session_conf(spark, {SIZE: "5m", SPLIT: "7m"}):
                assert (spark.conf.get(SIZE), spark.conf.get(SPLIT)) == ("5m", "7m")
                if fails:
                    raise DollyBatchError
        except DollyBatchError:
            assert fails
        assert dict(spark.conf.getAll) == settings
        assert spark.conf.get(SIZE) == default
    finally:
        spark.conf.unset(SIZE)


@pytest.mark.parametrize(("format", "mode"), [("parquet", "append"), ("parquet", "overwrite"), ("delta", "overwrite")])
def test_generating_and_publishing_leave_the_callers_settings_as_they_were(
    request: pytest.FixtureRequest, format: str, mode: str
) -> None:
    desk: Desk = request.getfixturevalue("delta_desk" if format == "delta" else "desk")
    desk.put(questions(3))
    desk.document["output"] |= {"format": format, "mode": mode, "target_file_mb": 3}
    changed = {SIZE, *ONE_FILE_A_TASK}
    settings = {key: desk.spark.conf.getAll.get(key) for key in changed}
    staged(desk).publish()
    assert {key: desk.spark.conf.getAll.get(key) for key in changed} == settings
    assert len(desk.rows(format)) == 3
