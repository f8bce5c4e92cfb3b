"""What crosses to executors imports no job file's reader: their Python need not hold pydantic or yaml."""

import subprocess
import sys

LOOK = """
import sys
import dolly_batch.spark.generate.shard, dolly_batch.spark.generate.sql_call, dolly_batch.spark.plan.token_counts
print(*sorted({"pydantic", "yaml", "torch", "transformers"} & set(sys.modules)))
"""


def test_tasks_of_a_cluster_need_neither_pydantic_nor_torch() -> None:
    found = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
