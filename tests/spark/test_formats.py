"""The registry of table formats: what it says is what the formats do, and what a job file is told."""

from typing import Any

import pytest

from dolly_batch.config.tables import InputConfig, OutputConfig
from dolly_batch.spark.tables.base import InputFormat, OutputFormat
from dolly_batch.spark.tables.formats import FORMATS, input_format, output_formats


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_what_the_registry_says(name: str) -> None:
    format, facts = input_format(name), FORMATS[name]
    assert isinstance(format, InputFormat)
    assert format.name == name == facts.name
    assert isinstance(format, OutputFormat) == bool(facts.modes)
    assert (format in output_formats()) == bool(facts.modes)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (InputConfig, {"path": "p", "format": "orc"}, "must be parquet, delta"),
        (InputConfig, {"path": "p"}, "`format` is needed with `path`: parquet"),
        (InputConfig, {"path": "p", "format": "delta", "schema": "a INT"}, "`schema` is for json"),
        (InputConfig, {"table": "t", "schema": "a INT"}, "`schema` is for json"),
        (OutputConfig, {"path": "p", "format": "csv"}, "must be parquet"),
        (OutputConfig, {"path": "p", "format": "parquet", "mode": "merge"}, "mode merge needs `format: delta`"),
        (OutputConfig, {"table": "t", "format": "parquet"}, "a catalog table is written as `format: delta`"),
    ],
)
def test_a_job_file_is_told_what_a_format_can_do(section: Any, values: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        section.model_validate(values)
