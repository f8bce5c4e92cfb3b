"""GPUs for the tasks of a model that lies over several: whole ones, as many as it takes, the same groups every time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.standalone import PROJECT, environment

SHOWN = """
import json, sys
import pandas as pd
from pyspark.sql import SparkSession
from dolly_batch.errors import ConfigError
from dolly_batch.spark.generate.device import task_device
from dolly_batch.spark.preflight.gpus import check_enough_gpus, generation_slots, gpu_profile

def devices(batches):
    for _ in batches:
        yield pd.DataFrame({"device": [task_device(2)]})

conf = {
    "spark.master": "local-cluster[1,4,1024]",
    "spark.worker.resource.gpu.amount": "4",
    "spark.worker.resource.gpu.discoveryScript": sys.argv[1],
    "spark.executor.resource.gpu.amount": "4",
    "spark.executor.memory": "512m",
}
builder = SparkSession.builder
for key, value in conf.items():
    builder = builder.config(key, value)
spark = builder.getOrCreate()
found = spark.range(0, 8, 1, 8).mapInPandas(devices, "device string", profile=gpu_profile(spark, 2)).collect()
faults = []
for num_gpus in (1, 4, 8):
    try:
        check_enough_gpus(spark, num_gpus)
    except ConfigError as error:
        faults.append(str(error))
try:  # the cluster's own tasks have no GPU profile: two of four are asked for, and one is there
    spark.range(1).mapInPandas(devices, "device string", profile=gpu_profile(spark, 1)).collect()
except Exception as error:
    faults.append(str(error))
slots = [generation_slots(spark, num_gpus) for num_gpus in (1, 2, 4)]
print(json.dumps({"devices": [row[0] for row in found], "slots": slots, "faults": faults}))
spark.stop()
"""


ASKED = """
import json
from pyspark.sql import SparkSession
from dolly_batch.spark.preflight.gpus import gpus_of, has_gpus

builder = SparkSession.builder.config("spark.master", "local-cluster[2,1,1024]").config("spark.executor.memory", "512m")
spark = builder.getOrCreate()
print(json.dumps([has_gpus(spark), [gpu.name for gpu in gpus_of(spark)]]))
spark.stop()
"""


@pytest.mark.chaos
@pytest.mark.parametrize("has", [True, False])
def test_where_spark_names_no_gpus_executors_are_asked(tmp_path: Path, has: bool) -> None:
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 'NVIDIA A10, 23028, 8.6'\n" if has else "#!/bin/sh\nexit 9\n", encoding="ascii")
    driver.chmod(0o755)
    env = {**environment(PYTHONPATH=str(PROJECT)), "PYSPARK_PYTHON": sys.executable}
    env["PATH"] = f"{tmp_path}:{env.get('PATH', '')}"
    command = [sys.executable, "-c", ASKED]
    ended = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert json.loads(ended.stdout.splitlines()[-1]) == ([True, ["NVIDIA A10"]] if has else [False, []])


@pytest.mark.chaos
def test_a_task_gets_as_many_whole_gpus_as_share_the_model(tmp_path: Path) -> None:
    script = tmp_path / "gpus.sh"
    script.write_text("""#!/bin/sh\necho '{"name": "gpu", "addresses": ["0", "1", "2", "3"]}'\n""", encoding="ascii")
    script.chmod(0o755)
    env = {**environment(PYTHONPATH=str(PROJECT)), "PYSPARK_PYTHON": sys.executable}
    command = [sys.executable, "-c", SHOWN, str(script)]
    ended = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = json.loads(ended.stdout.splitlines()[-1])
    assert set(found["devices"]) <= {"cuda:0,1", "cuda:2,3"}
    assert len(found["devices"]) == 8
    assert found["slots"] == [4, 2, 1]
    too_many, too_few = found["faults"]
    assert "model.gpus is 8, and spark.executor.resource.gpu.amount is 4" in too_many
    assert "model.gpus is 2, and Spark gave a task 1" in too_few
