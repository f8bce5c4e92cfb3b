"""All of databricks-dolly-15k through the job, checked row by row: `make whole-table`.

A random-weight GPT-NeoX (2 layers, hidden 64) with the real GPT-NeoX tokenizer answers 8 new tokens a row, into Parquet
and into Delta. So what is timed is everything but the model: reading, planning, tokenizing, shipping rows to the engine
and back, publishing, auditing. The data is looked for at $DOLLY_BATCH_SHARED/data (default ../shared/data); without it
nothing is measured.

Checked: every id once, `too_long` exactly where the tokenizer says so, the same rows through delta-rs, and that a
second run writes nothing.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml
from deltalake import DeltaTable
from pyarrow import parquet
from tokenizers import Tokenizer
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from dolly_batch.models.folder import write_manifest

MAX_POSITIONS = 2048
NEW_TOKENS = 8
INTRO = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
SHARED = Path(os.environ.get("DOLLY_BATCH_SHARED", Path(__file__).resolve().parent.parent.parent / "shared")) / "data"


def main() -> int:
    """Run both formats and print one table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=None, help="only the first N rows")
    parser.add_argument("--formats", nargs="+", default=["parquet", "delta"])
    arguments = parser.parse_args()
    table, tokenizer = (
        SHARED / "dolly15k/databricks-dolly-15k.jsonl",
        SHARED / "tokenizer/dolly_v2_tokenizer_derived.json",
    )
    if not table.is_file() or not tokenizer.is_file():
        print(f"databricks-dolly-15k and its tokenizer are not at {SHARED} (DOLLY_BATCH_SHARED); nothing was measured")
        return 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = write_input(table, folder / "input.jsonl", arguments.rows)
        make_model(folder / "model", tokenizer)
        too_long = expected_too_long(rows, tokenizer)
        results = {kind: run(folder, kind, rows, too_long) for kind in arguments.formats}
    print("| output | rows | too_long | wall s | of it generating s | rows/s | second run s |")
    print("|---|---|---|---|---|---|---|")
    for kind, found in results.items():
        print(
            f"| {kind} | {len(rows):,} | {len(too_long)} | {found['wall_s']:.0f} | {found['generate_s']:.0f} "
            f"| {len(rows) / found['wall_s']:.0f} | {found['again_s']:.0f} |"
        )
    print(json.dumps({"rows": len(rows), "formats": results}))
    return 0


def write_input(table: Path, path: Path, limit: int | None) -> list[dict[str, str]]:
    """The table with an `id` for each row, as it has none of its own."""
    lines = table.read_text(encoding="utf-8").splitlines()[:limit]
    rows = [{"id": f"{i:05d}", **json.loads(line)} for i, line in enumerate(lines)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return rows


def make_model(folder: Path, tokenizer: Path) -> None:
    """A GPT-NeoX of random weights, small enough to take no time."""
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=50_304,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=MAX_POSITIONS,
    )
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    shutil.copy(tokenizer, folder / "tokenizer.json")
    write_manifest(folder, "random weights", None)


def expected_too_long(rows: list[dict[str, str]], path: Path) -> set[str]:
    """The ids whose prompt does not fit, from the reference text and the tokenizer, and from nothing of ours."""
    tokenizer = Tokenizer.from_file(str(path))
    prompts = []
    for row in rows:
        context = f"\n\nInput:\n{row['context']}" if row["context"] else ""
        prompts.append(f"{INTRO}\n\n### Instruction:\n{row['instruction']}{context}\n\n### Response:\n")
    encoded = tokenizer.encode_batch(prompts)
    return {row["id"] for row, e in zip(rows, encoded, strict=True) if len(e.ids) + NEW_TOKENS > MAX_POSITIONS}


def run(folder: Path, kind: str, rows: list[dict[str, str]], too_long: set[str]) -> dict[str, float]:
    """Run the job twice and check what came out. Ends with what is wrong."""
    out = folder / f"out-{kind}"
    job = {
        "name": f"whole-table-{kind}",
        "model": {"path": str(folder / "model")},
        "input": {"path": str(folder / "input.jsonl"), "format": "json", "id": "id", "context": "context"},
        "output": {
            "path": str(out),
            "format": kind,
            "mode": "append" if kind == "delta" else "overwrite",
            "keep": ["category"],
        },
        "generation": {"max_new_tokens": NEW_TOKENS, "do_sample": False},
        "work_dir": str(folder / f"work-{kind}"),
    }
    path = folder / f"{kind}.yaml"
    path.write_text(yaml.safe_dump(job), encoding="utf-8")
    report, wall_s = command(path)
    read = DeltaTable(str(out)).to_pyarrow_table() if kind == "delta" else parquet.read_table(out)
    check(sorted(read["id"].to_pylist()) == [row["id"] for row in rows], "each id must be there exactly once")
    found = {i for i, s in zip(read["id"].to_pylist(), read["status"].to_pylist(), strict=True) if s == "too_long"}
    check(found == too_long, f"too_long must be the tokenizer's {len(too_long)} rows, not these {len(found)}")
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    again, again_s = command(path)
    check(again["outcome"] == "nothing_to_do", "a second run must find nothing to do")
    check({file: file.stat().st_mtime_ns for file in out.rglob("*")} == before, "a second run must write nothing")
    seconds = report["seconds"]
    return {"wall_s": wall_s, "generate_s": seconds["generate"], "again_s": again_s, **seconds}


def command(job: Path) -> tuple[dict[str, dict[str, float]], float]:
    """Run the job as a user would, and return its report and the wall time."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "dolly_batch.cli", "run", str(job), "--json"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1]), time.monotonic() - started


def check(holds: bool, claim: str) -> None:
    """Fail the benchmark: a number of a wrong run is worth nothing."""
    if not holds:
        raise SystemExit(f"FAILED: {claim}")


if __name__ == "__main__":
    sys.exit(main())
