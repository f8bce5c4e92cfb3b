"""plan, run, status and evaluate through Spark Connect: the client holds no JVM, the server is a process of its own."""

import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from dolly_batch.engine.load import load_engine
from dolly_batch.engine.protocol import generate
from dolly_batch.prompt import PromptEncoder
from dolly_batch.records import EngineSpec, GenerationParams, Request
from tests.cluster.standalone import PROJECT, SPARK_HOME, Daemon, Ended, environment, run_command, wait_until
from tests.spark.desk import echo_document, questions

TINY = PROJECT / "dolly_batch" / "tiny" / "model"
NUM_ROWS = 40


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Connect server over local[2], whose Python workers find this package on their path."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "spark.connect.grpc.binding.address": "127.0.0.1",
        "spark.connect.grpc.binding.port": str(port),
        "spark.ui.enabled": "false",
        "spark.sql.shuffle.partitions": "4",
    }
    server = Daemon.start(
        tmp_path_factory.mktemp("connect") / "server.log",
        *(SPARK_HOME / "bin" / "spark-submit", "--master", "local[2]"),
        *(part for key, value in options.items() for part in ("--conf", f"{key}={value}")),
        *("--class", "org.apache.spark.sql.connect.service.SparkConnectServer", "spark-internal"),
        SPARK_DAEMON_MEMORY="1g",
        PYSPARK_PYTHON=sys.executable,
        PYTHONPATH=str(PROJECT),
    )
    try:
        wait_until(lambda: is_listening(port), "the server's port", server)
        yield f"sc://127.0.0.1:{port}"
    finally:
        server.stop()


def is_listening(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    (folder / "input.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions(NUM_ROWS)))
    document = echo_document(folder)
    document["engine"] = {"kind": "plain", "max_batch_tokens": 2048}
    document["model"]["dtype"] = "float32"
    document["generation"]["max_new_tokens"] = 8
    (folder / "job.yaml").write_text(yaml.safe_dump(document))
    return folder / "job.yaml"


def command(verb: str, job: Path, variables: Mapping[str, str] = MappingProxyType({}), **settings: str) -> Ended:
    """`dolly-batch VERB JOB`, in a process where no JVM can be started."""
    arguments = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    env = environment(PYTHONPATH=str(PROJECT), PYSPARK_PYTHON=sys.executable, **variables)
    if any(value.startswith("sc://") for value in (*settings.values(), *variables.values())):
        env |= {"JAVA_HOME": "/nonexistent", "PATH": os.path.dirname(sys.executable)}
    return run_command([sys.executable, "-m", "dolly_batch.cli", verb, str(job), "--json", *arguments], job.parent, env)


def answers(folder: Path) -> dict[str, str]:
    return {row["id"]: row["response"] for row in pq.read_table(folder, columns=["id", "response"]).to_pylist()}


def asked_directly() -> dict[str, str]:
    """The answers of the same model without any Spark."""
    spec = EngineSpec("plain", str(TINY), dtype="float32", max_batch_tokens=2048)
    engine = load_engine(spec, device="cpu")
    assert isinstance(engine.encoder, PromptEncoder)
    params = GenerationParams(max_new_tokens=8, do_sample=False)
    rows = questions(NUM_ROWS)
    prompts = engine.encoder.encode_batch([(row["instruction"], row["context"]) for row in rows])
    requests = [Request(row["id"], tuple(ids), params) for row, ids in zip(rows, prompts, strict=True)]
    return {completion.key: completion.text for completion in generate(engine, requests)}


@pytest.mark.long
def test_plan_run_and_status_through_connect(remote: str, job: Path) -> None:
    over = {"spark.remote": remote}
    planned = command("plan", job, **over)
    assert planned.code == 0, planned.output
    assert planned.report["num_input_rows"] == NUM_ROWS
    assert not (job.parent / "out").exists()

    ran = command("run", job, **over)
    assert ran.code == 0, ran.output
    assert (ran.report["outcome"], ran.report["model_loads"]) == ("complete", 1)
    (kept,) = (job.parent / "work").glob("p*/progress.json")
    assert json.loads(kept.read_text())["progress"]["num_rows"] == NUM_ROWS

    stood = command("status", job, **over)
    assert stood.code == 0, stood.output
    assert stood.report["num_input_rows"] == NUM_ROWS

    again = command("run", job, **over)
    assert (again.code, again.report["outcome"]) == (0, "nothing_to_do"), again.output

    assert answers(job.parent / "out") == asked_directly()


@pytest.mark.chaos
def test_evaluate_through_connect_gives_what_it_gives_here(remote: str, tmp_path: Path) -> None:
    """In both quantizations, with a finished table beside; the page and the Parquet lie where they were asked for."""
    rows = [{"label": "a", "response": "a"}, {"label": "b", "response": "a"}]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    document = {
        "name": "check",
        "model": {"path": "tiny", "dtype": "float32"},
        "quantizations": ["none", "int8"],
        "tasks": {"piqa": str(PROJECT / "dolly_batch" / "samples" / "evaluate" / "piqa.jsonl")},
        "quality": [{"kind": "classify", "path": str(tmp_path / "answers.jsonl"), "format": "json", "gold": "label"}],
        "output": {"path": str(tmp_path / "out")},
        "engine": {"num_threads": 1},
        "work_dir": str(tmp_path / "work"),
    }
    (tmp_path / "evaluate.yaml").write_text(yaml.safe_dump(document))
    ended = command("evaluate", tmp_path / "evaluate.yaml", **{"spark.remote": remote})
    assert ended.code == 0, ended.output
    assert [row["value"] for row in ended.report["quality"][:2]] == [0.5, pytest.approx(1 / 3)]
    scores = {row["quantization"]: row for row in ended.report["benchmarks"] if row["benchmark"] == "piqa"}
    spec = EngineSpec("plain", str(TINY), dtype="float32", prompt_format="none")
    assert scores["none"]["acc"] == accuracy(load_engine(spec, device="cpu"))
    assert scores["int8"]["num_questions"] == scores["none"]["num_questions"]
    stored = pq.read_table(tmp_path / "out" / "benchmarks").to_pylist()
    assert [(row["quantization"], row["value"]) for row in stored] == [
        (row["quantization"], row["value"]) for row in ended.report["benchmarks"]
    ]
    assert "What int8 costs" in (tmp_path / "out" / "results.md").read_text(encoding="utf-8")


def accuracy(engine: Any) -> float:
    """The share of the sampled questions whose right solution is the likelier one, without Spark."""
    lines = (PROJECT / "dolly_batch" / "samples" / "evaluate" / "piqa.jsonl").read_text(encoding="utf-8").splitlines()
    right = 0
    for row in map(json.loads, lines):
        choices = [engine.encoder.encode_text(f" {row[name]}") for name in ("sol1", "sol2")]
        first, second = engine.score(engine.encoder.encode_text(f"Question: {row['goal']}\nAnswer:"), choices)
        right += (0 if first >= second else 1) == row["label"]
    return right / len(lines)


def test_a_refusal_through_connect_names_the_thing(remote: str, job: Path) -> None:
    refused = command("run", job, **{"spark.remote": remote, "input.instruction": "instructoin"})
    assert refused.code == 4, refused.output
    assert "instructoin" in refused.report["message"]
    assert "`instruction`" in refused.report["message"]


@pytest.mark.chaos
def test_a_row_that_stops_a_query_through_connect_is_not_told(remote: str, job: Path) -> None:
    over = {"spark.remote": remote, "input.where": "cast(instruction as int) > 0", "output.path": "elsewhere"}
    refused = command("run", job, **over)
    assert refused.code == 4, refused.output
    assert "[CAST_INVALID_INPUT]" in refused.report["message"]
    assert "cast(instruction as int)" in refused.report["message"]
    assert "Say the number" not in refused.output


@pytest.mark.chaos
def test_serverless_compute_of_databricks_is_refused_at_once(remote: str, job: Path) -> None:
    """Where the session that is there is one of Connect; as such compute says by its own variables."""
    env = {"DATABRICKS_RUNTIME_VERSION": "client.4.1", "SPARK_REMOTE": remote}
    began = time.monotonic()
    refused = command("run", job, env)
    assert refused.code == 4, refused.output
    assert "dedicated access mode" in refused.report["message"]
    assert time.monotonic() - began < 60
