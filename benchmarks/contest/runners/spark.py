"""What the two peers inside Spark share: a local session, and a model in each Python worker."""

import os
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from benchmarks.contest.work import Row


def start_session(setup: dict[str, Any]) -> Any:
    """A local session with a slot for each process, whose Python workers live as long as it does."""
    from pyspark.sql import SparkSession

    from dolly_batch.spark.session.java import prepare_java

    prepare_java()
    os.environ["PYSPARK_PYTHON"] = sys.executable
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    session = (
        SparkSession.builder.master(f"local[{setup['processes']}]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.memory", "1g")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.executorEnv.OMP_NUM_THREADS", str(setup["threads"]))
        .config("spark.python.worker.idleTimeoutSeconds", "0")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", "4096")
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("ERROR")
    return session


def ask(session: Any, function: Any, rows: list[Row], rows_a_task: int) -> list[tuple[str, list[int]]]:
    """Run the UDF over the rows, in their order, so many a task; the answers' ids by key."""
    table = [(row.key, ids_to_text(row.prompt_ids), row.num_new_tokens) for row in rows]
    num_tasks = -(-len(table) // rows_a_task)
    frame = session.createDataFrame(
        session.sparkContext.parallelize(table, num_tasks), "key string, prompt string, num_new_tokens int"
    )
    answered = frame.select("key", function("prompt", "num_new_tokens").alias("answer")).collect()
    return [(row["key"], text_to_ids(row["answer"])) for row in answered]


def warm(session: Any, function: Any, num_workers: int) -> None:
    """Have every Python worker load the model: tasks of one token, all at once."""
    for _ in range(2):
        rows = [Row(f"warm{i}", (1, 2, 3), 1) for i in range(num_workers)]
        ask(session, function, rows, 1)


@lru_cache(maxsize=1)
def load_model(folder: str, dtype: str, threads: int, stop_ids: tuple[int, ...]) -> Any:
    """The model as Dolly's examples load it, once in each Python worker."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    model.generation_config.eos_token_id = [*stop_ids] or None
    model.generation_config.pad_token_id = 0
    time.sleep(1)  # so that the other worker gets a task of its own
    return model


def ids_to_text(ids: Any) -> str:
    """Ids as a text, which is what fits through every UDF."""
    return " ".join(map(str, ids))


def text_to_ids(text: str) -> list[int]:
    """The ids back."""
    return [int(number) for number in text.split()]


Answer = Callable[[list[Row]], Any]
