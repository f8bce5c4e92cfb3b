"""A desk for a test: a folder with an input, an output and a work folder, and a job over them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyspark.sql import SparkSession

from dolly_batch import DollyBatchError, JobConfig, Options, Report, load_job, run_job


def load_job_text(folder: Path, document: dict[str, Any]) -> JobConfig:
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return load_job(path)


@dataclass
class Desk:
    """A folder with an input, an output and a work folder, and a job over them."""

    spark: SparkSession
    folder: Path
    document: dict[str, Any]

    def put(self, rows: list[dict[str, Any]], name: str = "input.jsonl") -> None:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (self.folder / name).write_text(text, encoding="utf-8")

    def job(self, **sections: Any) -> JobConfig:
        document = {key: dict(value) if isinstance(value, dict) else value for key, value in self.document.items()}
        for key, value in sections.items():
            document[key] = {**document.get(key, {}), **value} if isinstance(value, dict) else value
        return load_job_text(self.folder, document)

    def run(self, options: Options | None = None, **sections: Any) -> Report:
        return run_job(self.job(**sections), options or Options())

    def refused(self, options: Options | None = None, **sections: Any) -> DollyBatchError:
        with pytest.raises(DollyBatchError) as caught:
            self.run(options, **sections)
        return caught.value

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def rows(self, format: str = "parquet") -> list[dict[str, Any]]:
        return [row.asDict(recursive=True) for row in self.spark.read.format(format).load(str(self.out)).collect()]


def echo_document(folder: Path) -> dict[str, Any]:
    return {
        "name": "job",
        "model": {"path": "tiny"},
        "engine": {"kind": "echo"},
        "input": {"path": str(folder / "input.jsonl"), "format": "json", "id": "id", "context": "context"},
        "output": {"path": str(folder / "out"), "format": "parquet", "mode": "overwrite"},
        "generation": {"do_sample": False},
        "report": {"html": False},  # some queries less in each of hundreds of runs
        "work_dir": str(folder / "work"),
    }


def questions(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Rows of different instructions, one in three with a context."""
    return [
        {"id": f"r{i:05d}", "instruction": f"Say the number {i}.", "context": f"It is {i}." if i % 3 == 0 else None}
        for i in range(start, start + count)
    ]


def asked_again(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Other rows, of ids of their own, that ask what these ask."""
    return [{**row, "id": f"again-{row['id']}"} for row in rows]
