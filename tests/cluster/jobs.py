"""Jobs over a small table, for commands that run in processes of their own."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from tests.spark.desk import echo_document, questions


def write_job(folder: Path, name: str = "job", num_rows: int = 24, **sections: dict[str, Any]) -> Path:
    """An echo job `NAME.yaml` over `num_rows` questions, with sections of the job file put over it."""
    lines = (json.dumps(row) + "\n" for row in questions(num_rows))
    (folder / "input.jsonl").write_text("".join(lines), encoding="utf-8")
    document = echo_document(folder) | {"plan": {"max_shard_rows": 4}, "work": {"keep_days": 1.0}}
    for key, value in sections.items():
        document[key] = document.get(key, {}) | value if isinstance(value, dict) else value
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def answers(output: Path) -> list[dict[str, Any]]:
    """What the answers say, by id: without the plan and the time, which differ from run to run."""
    rows: list[dict[str, Any]] = pq.read_table(output).drop_columns(["plan_id", "created_at"]).to_pylist()
    return sorted(rows, key=lambda row: row["id"])


def staged_engines(work: Path) -> set[str]:
    """The engines that the staged answers name."""
    files = [file for file in work.glob("p*/staging/wave=*/*.parquet")]
    return {name for file in files for name in pq.read_table(file, columns=["engine_id"])["engine_id"].to_pylist()}


def manifest(work: Path) -> dict[str, Any]:
    (found,) = work.glob("p*/manifest.json")
    read: dict[str, Any] = json.loads(found.read_text(encoding="utf-8"))
    return read
