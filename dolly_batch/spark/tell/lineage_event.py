"""A complete run as one event of OpenLineage, from its input to its output.

Spark's own listener sees two unconnected graphs, since the answers lie in the work folder in between. Datasets are
named as that listener names them, by where they lie, so that both meet. Where the event goes is the client's business:
OPENLINEAGE_URL, openlineage.yml and the like.
"""

import os
import re
import uuid
from pathlib import Path
from typing import Any

from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

import dolly_batch
from dolly_batch.config.job import JobConfig
from dolly_batch.config.tables import TableConfig
from dolly_batch.spark.hadoop_files import OBJECT_STORES
from dolly_batch.spark.plan.manifest import Plan
from dolly_batch.spark.tables.places import table_location

PRODUCER = f"https://pypi.org/project/dolly-batch/{dolly_batch.__version__}"
# Of Hadoop, not of the web: `#` and `?` are letters of a path.
_URI = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):(?://(?P<store>[^/]*))?(?P<path>.*)", re.DOTALL)
_IDS = uuid.UUID("5a1e2c52-6a56-4d0b-9d0f-0b8f6f9c4c11")


def emit_run(spark: SparkSession, job: JobConfig, plan: Plan, at: str) -> None:
    """Emit the event. `at` is when the run was complete (ISO 8601). Raises whatever the client does."""
    from openlineage.client import OpenLineageClient

    client = OpenLineageClient()
    client.emit(_event(spark, job, plan, at))
    client.close()


def _event(spark: SparkSession, job: JobConfig, plan: Plan, at: str) -> Any:
    from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
    from openlineage.client.generated.dataset_version_dataset import DatasetVersionDatasetFacet
    from openlineage.client.generated.output_statistics_output_dataset import OutputStatisticsOutputDatasetFacet
    from openlineage.client.generated.processing_engine_run import ProcessingEngineRunFacet

    version: dict[str, Any] = {}
    if plan.input_version is not None:
        version = {"version": DatasetVersionDatasetFacet(str(plan.input_version), producer=PRODUCER)}
    rows = OutputStatisticsOutputDatasetFacet(rowCount=plan.num_planned, producer=PRODUCER)
    engine = ProcessingEngineRunFacet(spark.version, "spark", producer=PRODUCER)
    source, target = (dataset_name(spark, table) for table in (job.input, job.output))
    return RunEvent(
        eventType=RunState.COMPLETE,
        eventTime=at,
        run=Run(run_id(plan), facets={"processing_engine": engine}),
        job=Job(os.environ.get("OPENLINEAGE_NAMESPACE", "dolly_batch"), job.name),
        inputs=[InputDataset(*source, facets=version)],
        outputs=[OutputDataset(*target, outputFacets={"outputStatistics": rows})],
        producer=PRODUCER,
    )


def run_id(plan: Plan) -> str:
    """The run's id: the same whenever the plan's event is emitted."""
    return str(uuid.uuid5(_IDS, f"{plan.plan_id} {plan.created_at}"))


def dataset_name(spark: SparkSession, table: TableConfig) -> tuple[str, str]:
    """Namespace and name of a table: by where it lies; by the catalog's name where that does not say."""
    place = table.path if table.path is not None else _location(spark, str(table.table))
    return ("spark", str(table.table)) if place is None else place_name(place)


def place_name(place: str) -> tuple[str, str]:
    """Namespace and name of a path or a URI, by OpenLineage's rules."""
    uri = _URI.fullmatch(place)
    if uri is None or uri["scheme"] == "file":
        return "file", str(Path(place if uri is None else uri["path"]).absolute())
    scheme, name = re.sub(r"^s3[an]?$", "s3", uri["scheme"]), uri["path"].strip("/")
    return f"{scheme}://{uri['store']}" if uri["store"] else scheme, name if scheme in OBJECT_STORES else f"/{name}"


def _location(spark: SparkSession, table: str) -> str | None:
    try:
        return table_location(spark, table)
    except PySparkException:  # a catalog that does not tell
        return None
