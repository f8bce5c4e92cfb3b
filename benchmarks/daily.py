"""What a day costs: some new rows into a Delta table of many, by the seconds of each step and the rows that are read.

    python -m benchmarks.daily 1000000 10000000 /tmp/daily [--new 1000] [--days 3] [--ids hashed] [--sampled]

An output of so many rows is made once, in a folder of the folder, and stays there: rows of 50 plans, in 8 files. Each
day's input holds the new rows alone. Rows of the output that are read are counted by Spark's own metrics of its scans.
The engine is an echo: plan, publish and audit are the package's own. Of several sizes, how the seconds grow from the
least to the most is told too.
"""

import argparse
import hashlib
import json
import math
import os
import statistics
import time
from pathlib import Path
from typing import Any

import yaml
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from dolly_batch import JobConfig, load_job, run_job
from dolly_batch.spark.session.session import open_session

PATHS_WHOLE = {"spark.sql.maxMetadataStringLength": "10000"}
"""Settings under which scans say which table they read."""
STEPS = ("plan", "publish", "audit")
BARS_S, BAR_GROWTH = {1_000_000: 45, 10_000_000: 90}, 0.3
SCANNED = "number of output rows"


def job_of(folder: Path, source: str, sampled: bool) -> JobConfig:
    """The job over one of the folder's inputs."""
    document = {
        "name": "daily",
        "model": {"path": "tiny", "stage_dir": str(folder / "models")},
        "engine": {"kind": "echo"},
        "input": {"path": str(folder / source), "format": "json", "id": "id"},
        "output": {"path": str(folder / "out"), "format": "delta", "mode": "append"},
        "generation": {"do_sample": sampled},
        "work_dir": str(folder / "work"),
        "spark": {"master": "local[2]", "conf": {"spark.driver.memory": "2500m", **PATHS_WHOLE}},
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return load_job(path)


def id_of(number: int, hashed: bool) -> str:
    """An id: one that grows, or one that says nothing of its time."""
    return hashlib.sha256(str(number).encode()).hexdigest()[:16] if hashed else f"r{number:012d}"


def put(folder: Path, name: str, start: int, count: int, hashed: bool) -> None:
    """An input of new rows."""
    rows = ({"id": id_of(i, hashed), "instruction": f"Say the number {i}."} for i in range(start, start + count))
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_output(spark: SparkSession, folder: Path, num_rows: int, hashed: bool) -> None:
    """The output as the first run makes it, and `num_rows` more like its rows."""
    put(folder, "first.jsonl", 0, 100, hashed)
    run_job(job_of(folder, "first.jsonl", False))
    table = spark.read.format("delta").load(str(folder / "out"))
    number = F.col("number").cast("string")
    id = F.substring(F.sha2(number, 256), 1, 16) if hashed else F.format_string("r%012d", "number")
    plan = F.concat(F.lit("p"), F.substring(F.sha2((F.col("number") % 50).cast("string"), 256), 1, 31))
    made = {"id": id, "request_key": F.substring(F.sha2(F.concat(F.lit("q"), number), 256), 1, 32), "plan_id": plan}
    like = table.limit(1).drop(*made)
    many = spark.range(1000, num_rows + 1000, numPartitions=8).withColumnRenamed("id", "number")
    rows = many.crossJoin(F.broadcast(like)).select(
        *(made.get(name, F.col(name)).alias(name) for name in table.columns)
    )
    rows.write.format("delta").mode("append").save(str(folder / "out"))


def scanned_rows(spark: Any, path: Path) -> dict[int, int]:
    """Rows that scans of the table have read so far, by Spark's execution."""
    spark.sparkContext._jsc.sc().listenerBus().waitUntilEmpty()
    store = spark._jsparkSession.sharedState().statusStore()
    executions, found = store.executionsList(), {}
    for i in range(executions.size()):
        execution = executions.apply(i).executionId()
        values, nodes = store.executionMetrics(execution), store.planGraph(execution).allNodes()
        for node in (nodes.apply(k) for k in range(nodes.size())):
            if node.name().startswith("Scan") and f"{path}]" in node.desc():
                metrics = [node.metrics().apply(k) for k in range(node.metrics().size())]
                read = (values.get(m.accumulatorId()) for m in metrics if m.name() == SCANNED)
                counts = (int(value.get().replace(",", "")) for value in read if value.isDefined())
                found[execution] = found.get(execution, 0) + sum(counts)
    return found


def cpu_seconds(spark: Any) -> float:
    """CPU time of Spark's JVM so far: other programs on the machine change it less than the clock's time."""
    pid = spark._jvm.java.lang.ProcessHandle.current().pid()
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def day(spark: SparkSession, folder: Path, num_rows: int, options: argparse.Namespace) -> dict[str, float]:
    """Add a day's rows; seconds of the steps, CPU seconds and rows read."""
    put(folder, "new.jsonl", int(time.time() * 1000) * 1000, options.new, options.ids == "hashed")
    before, cpu = scanned_rows(spark, folder / "out"), cpu_seconds(spark)
    report = run_job(job_of(folder, "new.jsonl", options.sampled))
    cpu = round(cpu_seconds(spark) - cpu, 1)
    num_read = sum(scanned_rows(spark, folder / "out").values()) - sum(before.values())
    seconds = {step: round(report.seconds[step], 1) for step in STEPS}
    found = {"rows": num_rows, **seconds, "sum": round(sum(seconds.values()), 1), "cpu": cpu}
    return {**found, "read": num_read, "of the output": round(num_read / num_rows, 2)}


def main() -> None:
    """Make the outputs where they are not there, and add the days."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=int, nargs="+")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--new", type=int, default=1000)
    parser.add_argument("--days", type=int, default=3)
    parser.add_argument("--ids", choices=["growing", "hashed"], default="growing")
    parser.add_argument("--sampled", action="store_true", help="no answer is copied from other rows")
    options = parser.parse_args()
    sums: dict[int, list[float]] = {}
    for num_rows in options.rows:
        folder, hashed = options.folder / str(num_rows), options.ids == "hashed"
        folder.mkdir(parents=True, exist_ok=True)
        spark = open_session(job_of(folder, "first.jsonl", False))
        if not (folder / "out").exists():
            make_output(spark, folder, num_rows, hashed)
        for _ in range(options.days):
            found = day(spark, folder, num_rows, options)
            sums.setdefault(num_rows, []).append(found["sum"])
            print(json.dumps(found), flush=True)
    for num_rows, found_s in sums.items():
        bar = f", bar {BARS_S[num_rows]}" if num_rows in BARS_S else ""
        print(
            f"{num_rows:,} rows: plan, publish and audit {statistics.median(found_s):.1f} s, median of {found_s}{bar}"
        )
    (least, some), (most, many) = min(sums.items()), max(sums.items())
    if most > least:
        growth = math.log(statistics.median(many) / statistics.median(some)) / math.log(most / least)
        print(f"growth exponent from {least:,} to {most:,} rows: {growth:.2f}, bar {BAR_GROWTH}")


if __name__ == "__main__":
    main()
