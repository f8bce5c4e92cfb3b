"""Many rows through plan, echo engine, publish and audit: what the driver holds does not grow with them.

DOLLY_BATCH_ROWS says how many: a million by default.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import functions as F

from dolly_batch.spark import run
from dolly_batch.spark.session.session import own_session
from tests.spark.desk import Desk

pytestmark = pytest.mark.chaos

NUM_ROWS = int(os.environ.get("DOLLY_BATCH_ROWS", "1000000"))
MAX_GROWTH_MB = {"JVM": 64.0, "Python": 32.0}
"""By how much a step's memory may grow from a tenth of the rows to all of them: by less than an id's worth a row."""
# The session of the tests interprets queries, which is quicker for some rows and much slower for many.
COMPILED = {"spark.sql.codegen.wholeStage": "true", "spark.sql.codegen.factoryMode": "FALLBACK"}


class Memory:
    """What JVM and Python hold in MB, at the ends of steps: the JVM after a collection, where an executor is in it."""

    def __init__(self, spark: Any) -> None:
        self._java = spark._jvm.java.lang
        self.found: dict[str, dict[str, float]] = {}

    def look(self, step: str) -> None:
        for _ in range(3):  # what is cleaned after one collection (broadcasts) is collected by the next
            self._java.System.gc()
            time.sleep(0.5)
        heap = self._java.management.ManagementFactory.getMemoryMXBean().getHeapMemoryUsage().getUsed()
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        now = {"JVM": heap / 2**20, "Python": pages * os.sysconf("SC_PAGE_SIZE") / 2**20}
        self.found[step] = {name: max(value, self.found.get(step, now)[name]) for name, value in now.items()}


def looking_after(memory: Memory, patch: pytest.MonkeyPatch) -> None:
    """Have memory looked at when a step ends, and beside the waves every now and then."""

    def after(name: str, done: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any) -> Any:
            result = done(*arguments)
            memory.look(name)
            return result

        return step

    for name in ("make_plan", "publish", "audit"):
        patch.setattr(run._Start, name, after(name, getattr(run._Start, name)))
    generate, last = run._Start.generate, [time.monotonic()]

    def generate_and_look(start: Any, opened: Any, check: Callable[[], None]) -> None:
        def check_and_look() -> None:  # called at the end of each wave
            check()
            if time.monotonic() - last[0] > 10:
                memory.look("waves")
                last[0] = time.monotonic()

        generate(start, opened, check_and_look)
        memory.look("generate")

    patch.setattr(run._Start, "generate", generate_and_look)


def run_rows(desk: Desk, num_rows: int) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """A run of so many rows, each with a question of its own; the memory of its steps and their seconds."""
    spark, name = own_session(desk.spark), f"{num_rows}-rows"
    for key, value in COMPILED.items():
        spark.conf.set(key, value)
    number = F.col("id")
    text = F.format_string("Row %d: which number follows %d, and what do you know of it?", number, number)
    rows = spark.range(0, num_rows, numPartitions=8).select(
        F.format_string("r%09d", number).alias("id"), text.alias("instruction")
    )
    rows.write.parquet(str(desk.folder / name))
    memory = Memory(spark)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "open_session", lambda job: spark)
        looking_after(memory, patch)
        report = desk.run(
            name=name,
            input={"path": str(desk.folder / name), "format": "parquet", "context": None},
            output={"path": str(desk.folder / f"{name}-out")},
        )
    assert (report.outcome, report.by_status) == ("complete", {"ok": num_rows})
    table = spark.read.format("delta").load(str(desk.folder / f"{name}-out"))
    assert table.select(F.count("id"), F.count_distinct("id")).collect()[0][:] == (num_rows, num_rows)
    return memory.found, report.seconds


def test_what_the_driver_holds_does_not_grow_with_the_rows(delta_desk: Desk) -> None:
    few, _ = run_rows(delta_desk, NUM_ROWS // 10)
    many, seconds = run_rows(delta_desk, NUM_ROWS)
    print(json.dumps({"rows": NUM_ROWS, "seconds": seconds, "MB, a tenth": few, "MB": many}))
    for step, held in few.items():
        for name, before in held.items():
            assert many[step][name] - before < MAX_GROWTH_MB[name], (step, name, few, many)
