"""The engine host of a run on one machine, started while the rest of the plan is made.

Its load takes seconds, of a large model minutes, and the first task would wait for it. On a cluster the tasks start
their executors' hosts: which executors there will be, only Spark knows.
"""

from typing import Any

from pyspark.sql import SparkSession

from dolly_batch.errors import EngineError
from dolly_batch.host.address import HostAddress
from dolly_batch.host.launch import join_or_start
from dolly_batch.host.runtime_dir import RuntimeDir
from dolly_batch.records import EngineSpec
from dolly_batch.spark.session.session import is_local
from dolly_batch.system.process import ProcessId


def start_early(spark: SparkSession, spec: EngineSpec) -> None:
    """Start the host that the tasks of this run will connect to, where one machine runs all of them.

    It returns before the model is loaded. What keeps a host from starting, the first task will meet and tell.
    """
    if spec.kind == "echo" or not is_local(spark):
        return
    gateway: Any = spark.sparkContext._gateway
    try:
        address = HostAddress(ProcessId.of(gateway.jvm.java.lang.ProcessHandle.current().pid()))
        runtime_dir = RuntimeDir(address.make_folder(spec))
        with runtime_dir.locked(timeout_s=0):
            sock, _ = join_or_start(runtime_dir, spec, address)
    except (EngineError, TimeoutError, OSError):
        return
    sock.close()
