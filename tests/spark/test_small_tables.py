"""Queries of small tables are interpreted, for as long as the run takes."""

from typing import Any

import pytest
from pyspark.sql import SparkSession

from dolly_batch.errors import DollyBatchError
from dolly_batch.spark.session.session import own_session
from dolly_batch.spark.small_tables import INTERPRETED, SMALL_BYTES, compiling_if_large
from tests.spark.desk import Desk, questions


@pytest.fixture
def plain(spark: SparkSession) -> SparkSession:
    """A session that says nothing of compiling; the one of these tests does."""
    own = own_session(spark)
    for key in INTERPRETED:
        own.conf.unset(key)
    return own


def settings(spark: SparkSession) -> dict[str, str]:
    return {key: value for key, value in spark.conf.getAll.items() if key in INTERPRETED}


def inside(spark: SparkSession, desk: Desk, **sections: Any) -> dict[str, str]:
    with compiling_if_large(spark, desk.job(**sections)):
        return settings(spark)


def test_a_small_tables_run_is_interpreted_and_the_session_is_as_before(plain: SparkSession, desk: Desk) -> None:
    desk.put(questions(3))
    assert inside(plain, desk) == INTERPRETED
    assert settings(plain) == {}
    with pytest.raises(DollyBatchError), compiling_if_large(plain, desk.job()):
        raise DollyBatchError
    assert settings(plain) == {}


def test_a_run_beside_another_one_or_a_users_setting_changes_nothing(plain: SparkSession, desk: Desk) -> None:
    desk.put(questions(3))
    key = next(iter(INTERPRETED))
    for value in ("true", "false"):
        plain.conf.set(key, value)
        assert inside(plain, desk) == {key: value}
        assert settings(plain) == {key: value}


def test_large_tables_and_those_whose_size_is_not_known_are_compiled(plain: SparkSession, desk: Desk) -> None:
    desk.put(questions(3))
    pattern = str(desk.folder / "inp*.jsonl")
    for sections in ({"input": {"path": pattern}}, {"input": {"path": str(desk.folder / "none.jsonl")}}):
        assert inside(plain, desk, **sections) == {}
    (desk.folder / "out").mkdir()
    part = desk.folder / "out" / "part-0.parquet"
    for size, expected in ((SMALL_BYTES, INTERPRETED), (SMALL_BYTES + 1, {})):
        part.write_bytes(bytes(size))
        assert inside(plain, desk) == expected
    part.unlink()
    desk.put(questions(SMALL_BYTES // 40))
    assert inside(plain, desk) == {}
