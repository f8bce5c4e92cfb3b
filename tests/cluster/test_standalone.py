"""spark-submit on a standalone cluster of two workers that hold the wheel's dependencies, but not this package."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import yaml

from tests.cluster.standalone import Cluster, submit
from tests.spark.desk import echo_document, questions


def test_the_shipped_wheel_gives_the_table_of_a_local_run(cluster: Cluster, wheel: Path, tmp_path: Path) -> None:
    rows = questions(60)
    (tmp_path / "input.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tables, loads = {}, {}
    for name, master in (("cluster", cluster.url), ("local", "local[2]")):
        document = echo_document(tmp_path)
        document["engine"] = {"kind": "plain"}
        document["model"]["dtype"] = "float32"  # in bfloat16 the company of a row can change its last bits
        document["generation"] = {"do_sample": True, "max_new_tokens": 8}
        document["output"]["path"] = str(tmp_path / name)
        document["work_dir"] = str(tmp_path / f"work-{name}")
        document["plan"] = {"max_shard_rows": 8}
        job = tmp_path / f"{name}.yaml"
        job.write_text(yaml.safe_dump(document), encoding="utf-8")
        ended = submit("run_table.py", job, "--master", master, "--py-files", str(wheel), "--executor-memory", "1g")
        assert ended.code == 0, ended.output
        found = pq.read_table(tmp_path / name, columns=["id", "response", "status", "request_key"]).to_pylist()
        tables[name], loads[name] = sorted(found, key=lambda row: row["id"]), ended.report["model_loads"]
    assert tables["cluster"] == tables["local"]
    assert [row["id"] for row in tables["local"]] == [row["id"] for row in rows]
    assert loads["local"] == 1
    assert 1 <= loads["cluster"] <= 2
