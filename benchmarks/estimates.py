"""How near the time is that a plan prints: each task's first run, and a later one of twice as many other rows.

    python -m benchmarks.estimates [--models tiny,smollm2] [--rows 1000,150] [--tasks generate,classify,...]

The first run of a task has nothing but constants to go by; the second has what the first one took, from the `work_dir`
that they share. Texts are contexts of databricks-dolly-15k, a cold local session runs each, two slots. Printed: the
estimate, the seconds of the generate stage, and their ratio; the bar is a factor of 2 for the second runs.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from benchmarks.tables import contexts

BAR = 2.0
TASKS: dict[str, dict[str, Any]] = {
    "generate": {"kind": "generate", "template": "What is this text about? {text}"},
    "classify": {"kind": "classify", "labels": ["person", "place", "science", "sports", "other"]},
    "summarize": {"kind": "summarize"},
    "extract": {"kind": "extract", "schema": "name STRING, year INT"},
}


def write_job(folder: Path, model: str, task: str, turn: int, rows: list[tuple[int, str]]) -> Path:
    """The job of a turn, over rows of its own."""
    lines = (json.dumps({"id": f"r{number}", "text": text}) + "\n" for number, text in rows)
    (folder / f"{task}-{turn}.jsonl").write_text("".join(lines), encoding="utf-8")
    document = {
        "name": f"{task}-{turn}",
        "model": {"path": model, **({} if model == "tiny" else {"quantization": "int8"})},
        "task": TASKS[task],
        "input": {"path": str(folder / f"{task}-{turn}.jsonl"), "format": "json", "id": "id"},
        "output": {"path": str(folder / f"{task}-{turn}.out"), "format": "parquet", "mode": "overwrite"},
        "work_dir": str(folder / "work"),
        "spark": {"master": "local[2]"},
    }
    path = folder / f"{task}-{turn}.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def report_of(command: str, job: Path) -> dict[str, Any]:
    """What `dolly-batch plan` or `run` reports."""
    line = [sys.executable, "-P", "-m", "dolly_batch.cli", command, str(job), "--json"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3):
        raise SystemExit(f"{command} {job.name} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    """Print a line for each run. Returns 1 where a later estimate misses the bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="tiny,smollm2")
    parser.add_argument("--rows", default="1000,150", help="of a first run, for each model; others take twice as many")
    parser.add_argument("--tasks", default=",".join(TASKS))
    given = parser.parse_args()
    print("| model | task | rows | estimate | took | estimate / took |\n|---|---|---|---|---|---|", flush=True)
    num_missed = 0
    for model, num_rows in zip(given.models.split(","), map(int, given.rows.split(",")), strict=True):
        texts = list(enumerate(contexts(3 * num_rows, 2000)))
        turns = texts[:num_rows], texts[num_rows:]
        with tempfile.TemporaryDirectory() as folder:
            for task in given.tasks.split(","):
                for turn, rows in enumerate(turns):
                    job = write_job(Path(folder), model, task, turn, rows)
                    estimate = report_of("plan", job)["estimated_s"]
                    took = report_of("run", job)["seconds"]["generate"]
                    ratio = estimate / took
                    num_missed += turn > 0 and not 1 / BAR <= ratio <= BAR
                    line = [model, task, f"{len(rows):,}", f"{estimate:.0f} s", f"{took:.0f} s", f"{ratio:.2f}"]
                    print(f"| {' | '.join(line)} |", flush=True)
    print(f"later runs that miss a factor of {BAR:.0f}: {num_missed}")
    return int(num_missed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
