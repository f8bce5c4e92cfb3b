"""Real local Spark for the tests of this folder: one session for the whole run."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from dolly_batch.spark.session.session import open_session
from tests.spark.desk import Desk, echo_document, load_job_text

SESSION_CONF = {
    "spark.sql.shuffle.partitions": "2",
    "spark.databricks.delta.snapshotPartitions": "2",
    # Compiling a query of some rows takes longer than interpreting it.
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
}


@pytest.fixture(scope="session")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SparkSession, str | None]]:
    """The one session, and why it is without Delta: None where the connector resolves."""
    folder = tmp_path_factory.mktemp("session")
    document = echo_document(folder)
    conf = {**SESSION_CONF, "spark.sql.warehouse.dir": str(folder / "warehouse")}
    document["spark"] = {"master": "local[2]", "conf": conf}
    reason = None
    try:
        document["output"]["format"] = "delta"
        spark = open_session(load_job_text(folder, document))
    except Exception as error:  # whatever keeps the JVM from starting with the connector
        reason = f"the Delta connector cannot be resolved (DELTA_JARS may name its jars): {str(error)[:200]}"
        document["output"]["format"] = "parquet"
        spark = open_session(load_job_text(folder, document))
    yield spark, reason
    spark.stop()


@pytest.fixture(scope="session")
def spark(session: tuple[SparkSession, str | None]) -> SparkSession:
    """The session that every job of these tests runs in."""
    return session[0]


@pytest.fixture(scope="session")
def stage_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `tiny` is staged once, so that jobs of the same engine settings share one engine host."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def desk(spark: SparkSession, stage_dir: Path, tmp_path: Path) -> Desk:
    """A desk with an echo job: Parquet, overwrite, ids in `id`."""
    document = echo_document(tmp_path)
    document["model"]["stage_dir"] = str(stage_dir)
    return Desk(spark, tmp_path, document)


@pytest.fixture
def delta_desk(session: tuple[SparkSession, str | None], desk: Desk) -> Desk:
    """A desk with an echo job into a Delta table, mode append."""
    if session[1]:
        pytest.skip(session[1])
    desk.document["output"] |= {"format": "delta", "mode": "append"}
    return desk
