"""What Spark and the way to it cost: answer tokens per second of the job against its engine alone, on the same rows.

    python benchmarks/job_vs_engine.py [--rows 2000] [--new-tokens 32] [--max-prompt-tokens 96] [--pairs 2]

The job: `run_job` in local[2] into a Parquet table, its host loaded before by a few rows. Its tokens per second are
those of its report: answer tokens by the seconds of its generate stage, which begins with the first wave's Spark job
and ends when the last wave's folder is in place. The engine alone: the engine that the job's hosts load, with the same
processes, given all the rows' token ids at once; the clock runs from the first `submit` to the last answer. Both are
greedy, and their answers are compared. They take turns, job first; a ratio is of two neighbours. On a machine that is
busy with other work too the CPU seconds tell more: of the engine's processes in the job and alone, and of what stands
around them (host, Python workers, and the JVM over the whole run, planning and publishing included). Linux only.

The model has pythia-70m's shape and random weights, the rows are the first of databricks-dolly-15k that are short
enough, with GPT-NeoX's tokenizer, from $DOLLY_BATCH_SHARED/data (default ../shared/data). Where that is not there,
`tiny` answers made-up questions.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from pyarrow import parquet
from pyspark.sql import SparkSession
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from dolly_batch.config.job import JobConfig, check_job
from dolly_batch.engine.load import load_engine
from dolly_batch.engine.protocol import Engine
from dolly_batch.models.folder import write_manifest
from dolly_batch.prompt import PromptEncoder
from dolly_batch.records import Completion, Request
from dolly_batch.spark.model import resolve_model
from dolly_batch.spark.run import run_job
from dolly_batch.tiny import MODEL_FOLDER

GATE = 0.92
NUM_CORES = 2
WARM_ROWS = 16
SHARED = Path(os.environ.get("DOLLY_BATCH_SHARED", Path(__file__).resolve().parent.parent.parent / "shared")) / "data"


def main() -> int:
    """Measure the pairs and print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--max-prompt-tokens", type=int, default=96, help="longer rows are left out")
    parser.add_argument("--pairs", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = random_70m(folder / "model") if SHARED.is_dir() else MODEL_FOLDER
        encoder = PromptEncoder.from_folder(model)
        rows = table_rows(encoder, arguments.rows, arguments.max_prompt_tokens)
        for file, part in (("warm", rows[:WARM_ROWS]), ("rows", rows)):
            text = "".join(json.dumps(row) + "\n" for row in part)
            (folder / f"{file}.jsonl").write_text(text, encoding="utf-8")
        found = measure(folder, model, encoder, rows, arguments)
    show(found, len(rows), arguments)
    return 0


def random_70m(folder: Path) -> Path:
    """A folder of pythia-70m's shape with random weights."""
    config = json.loads((SHARED / "configs" / "pythia-70m.derived.config.json").read_text())
    shape = {key: value for key, value in config.items() if not key.startswith("_")} | {"vocab_size": 50304}
    torch.manual_seed(0)
    GPTNeoXForCausalLM(GPTNeoXConfig(**shape)).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    shutil.copyfile(SHARED / "tokenizer" / "dolly_v2_tokenizer_derived.json", folder / "tokenizer.json")
    write_manifest(folder, source="random", revision="0")
    return folder


def table_rows(encoder: PromptEncoder, num_rows: int, max_prompt_tokens: int) -> list[dict[str, str]]:
    """The first rows whose prompts are short enough."""
    if not SHARED.is_dir():
        return [{"id": f"{i:05d}", "instruction": f"What is {i} plus three?", "context": ""} for i in range(num_rows)]
    table = SHARED / "dolly15k" / "databricks-dolly-15k.jsonl"
    with table.open(encoding="utf-8") as lines:
        read = [{"id": f"{i:05d}", **json.loads(line)} for i, line in enumerate(lines)]
    prompts = encoder.encode_batch([(row["instruction"], row["context"]) for row in read])
    kept = [row for row, ids in zip(read, prompts, strict=True) if len(ids) <= max_prompt_tokens][:num_rows]
    return [{name: row[name] for name in ("id", "instruction", "context")} for row in kept]


def job(folder: Path, model: Path, table: str, name: str, new_tokens: int) -> JobConfig:
    """The job over one of the two tables."""
    document: dict[str, Any] = {
        "name": name,
        "model": {"path": str(model)},
        "input": {"path": str(folder / f"{table}.jsonl"), "format": "json", "id": "id", "context": "context"},
        "output": {"path": str(folder / f"out-{name}"), "format": "parquet", "mode": "overwrite"},
        "generation": {"max_new_tokens": new_tokens, "do_sample": False},
        "spark": {"master": f"local[{NUM_CORES}]", "conf": {"spark.sql.shuffle.partitions": "4"}},
        "work_dir": str(folder / "work"),
    }
    return check_job(document, name)


def measure(
    folder: Path, model: Path, encoder: PromptEncoder, rows: list[dict[str, str]], arguments: argparse.Namespace
) -> list[dict[str, float]]:
    """Tokens per second of job and engine, in turns."""
    new_tokens = arguments.new_tokens
    warm = job(folder, model, "warm", "warm", new_tokens)
    run_job(warm)
    spec = resolve_model(SparkSession.active(), warm, str(folder / "work"), print).engine_spec(warm)
    engine = load_engine(spec, "cpu")
    prompts = encoder.encode_batch([(row["instruction"], row["context"]) for row in rows])
    params = warm.generation.params
    requests = [Request(row["id"], tuple(ids), params) for row, ids in zip(rows, prompts, strict=True)]
    alone(engine, requests[:WARM_ROWS])
    found = []
    for pair in range(arguments.pairs):
        before, began = cpu_seconds(), time.monotonic()
        report = run_job(job(folder, model, "rows", f"pair-{pair}", new_tokens))
        wall_s = time.monotonic() - began
        between = cpu_seconds()
        engine_s, texts = alone(engine, requests)
        after = cpu_seconds()
        check(folder / f"out-pair-{pair}", texts)
        num_tokens = report.num_completion_tokens
        cpu = {f"cpu_{name}_s": round(between[name] - before[name], 2) for name in before if name != "pool"}
        cpu["cpu_alone_s"] = round(after["pool"] - between["pool"], 2)
        found.append(
            {
                "tokens": num_tokens,
                "job_wall_s": wall_s,
                "job_generate_s": report.seconds["generate"],
                "engine_s": engine_s,
                "job_tokens_per_s": num_tokens / report.seconds["generate"],
                "engine_tokens_per_s": num_tokens / engine_s,
                "ratio": engine_s / report.seconds["generate"],
                "shards": report.num_shards,
                **cpu,
            }
        )
        print(json.dumps(found[-1]), flush=True)
    return found


def alone(engine: Engine, requests: list[Request]) -> tuple[float, dict[str, str]]:
    """Seconds that the engine takes for all requests, and its answers."""
    texts = {}
    began = time.monotonic()
    for request in requests:
        engine.submit(request)
    while engine.num_unfinished:
        for answer in engine.step():
            assert isinstance(answer, Completion)
            texts[answer.key] = answer.text
    return time.monotonic() - began, texts


def cpu_seconds() -> dict[str, float]:
    """CPU seconds so far of this process's descendants: the engine's own pool, and what runs the job."""
    processes = {pid: fields for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if (fields := stat(pid))}
    children: dict[int, list[int]] = {}
    for pid, fields in processes.items():
        children.setdefault(int(fields[1]), []).append(pid)

    def below(pid: int) -> list[int]:
        return [found for child in children.get(pid, []) for found in (child, *below(child))]

    def spent(pids: list[int]) -> float:
        ticks = sum(int(number) for pid in pids for number in processes[pid][11:15])
        return ticks / os.sysconf("SC_CLK_TCK")

    own = below(os.getpid())
    pool = [pid for pid in own if "dolly_batch.engine.processes.worker" in command(pid)]
    jvms = [pid for pid in own if "java" in command(pid).split("\0")[0]]
    workers = [pid for jvm in jvms for pid in below(jvm)]
    # A host is no descendant: it is found by the folder that its owner's pid names.
    hosts = [pid for pid in processes for jvm in jvms if "host.server" in command(pid) and f"/{jvm}-" in command(pid)]
    engine = [pid for host in hosts for pid in below(host)]
    found = {"engine": engine, "host": hosts, "workers": workers, "jvm": jvms, "pool": pool}
    return {name: spent(pids) for name, pids in found.items()}


def stat(pid: int) -> list[str]:
    """The fields of a process's stat behind its name, state first; none when it has gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return []


def command(pid: int) -> str:
    """A process's command line, its words ended by NUL."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def check(output: Path, texts: dict[str, str]) -> None:
    """Ends with what is wrong when the job's answers are not the engine's."""
    rows = parquet.read_table(output, columns=["id", "response"]).to_pylist()
    wrong = [row["id"] for row in rows if row["response"] != texts.get(row["id"])]
    if wrong or len(rows) != len(texts):
        raise SystemExit(f"{len(wrong)} of {len(rows)} answers differ from the engine's {len(texts)}: {wrong[:5]}")


def show(found: list[dict[str, float]], num_rows: int, arguments: argparse.Namespace) -> None:
    """The table, and one JSON line."""
    print(f"\n{num_rows:,} rows, {arguments.new_tokens} new tokens at most, {NUM_CORES} cores")
    print("| answer tokens | job: generate s | whole run s | engine s | job tokens/s | engine tokens/s | ratio |")
    print("|---|---|---|---|---|---|---|")
    for row in found:
        print(
            f"| {row['tokens']:,} | {row['job_generate_s']:.1f} | {row['job_wall_s']:.1f} | {row['engine_s']:.1f} "
            f"| {row['job_tokens_per_s']:,.0f} | {row['engine_tokens_per_s']:,.0f} | {row['ratio']:.3f} |"
        )
    print("\n| CPU s: engine in the job | alone | host | Python workers | JVM, whole run |")
    print("|---|---|---|---|---|")
    for row in found:
        names = ("engine", "alone", "host", "workers", "jvm")
        print("| " + " | ".join(f"{row[f'cpu_{name}_s']:.1f}" for name in names) + " |")
    ratio = statistics.median(row["ratio"] for row in found)
    print(f"median ratio {ratio:.3f} (aimed at: {GATE} and more)")
    print(json.dumps({"rows": num_rows, "ratio": ratio, "pairs": found}))


if __name__ == "__main__":
    raise SystemExit(main())
