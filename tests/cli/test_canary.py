"""A secret in every kind of input that fails: it is in no message, no log, no report, and in nothing that is left."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import PROJECT

pytestmark = pytest.mark.chaos

CANARY = "CANARY"
TEXT = f"{CANARY} my account\nCaused by: java.io.IOException: {CANARY}\nKeyError: {CANARY}"
# Runs many commands in one process, so that one Spark session does for all of them.
MANY = """
import json, sys
from dolly_batch.cli import main
for command in json.load(open(sys.argv[1])):
    print("####", command["case"], flush=True)
    print("####", command["case"], file=sys.stderr, flush=True)
    print("exit", main(command["arguments"]), flush=True)
"""


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


LONG = TEXT * 999
GOOD = lines({"id": "r1", "instruction": TEXT}, {"id": "r2", "instruction": "say b"})
JSON: dict[str, Any] = {"format": "json"}
CSV: dict[str, Any] = {"format": "csv"}
# What this package finds by itself: the file's text, the input's other settings, the exit code.
FOUND: dict[str, tuple[str, dict[str, Any], int]] = {
    "rows that are answered": (GOOD, JSON, 0),
    "rows with a status": (
        lines(
            {"id": None, "instruction": TEXT},
            {"id": "r1", "instruction": ""},
            {"id": "r2", "instruction": LONG},
            {"id": f"{CANARY} Smith 3", "instruction": LONG},
        ),
        {**JSON, "on_bad_id": "status"},
        3,
    ),
    "ids that repeat": (lines(*[{"id": f"{CANARY}@example.org", "instruction": "x"}] * 2), JSON, 4),
    "a line that is no object": (GOOD + f"{CANARY} is no JSON\n", JSON, 4),
    "two objects on a line": (GOOD.strip() + lines({"id": "r3", "instruction": TEXT}), JSON, 4),
    "no header": (f"r1,{CANARY}\nr2,b\n", CSV, 4),
    "a quote that is never closed": (f'id,instruction\nr1,"{CANARY}\nr2,b\n', CSV, 4),
    "no such column": (GOOD, {**JSON, "instruction": "question"}, 4),
    "a where without sense": (GOOD, {**JSON, "where": "instruction ="}, 4),
}  # fmt: skip
# What stops Spark itself at a value. Its own records of the failed task (event log, executor's log) quote that value.
STOPPED: dict[str, tuple[str, dict[str, Any], int]] = {
    "a cast": (GOOD, {**JSON, "where": "cast(instruction as int) > 0"}, 4),
    "a date": (GOOD, {**JSON, "where": "to_timestamp(instruction, 'yyyy') > now()"}, 4),
    "a number's format": (GOOD, {**JSON, "where": "to_number(instruction, '99') > 0"}, 4),
    "a regular expression": (GOOD, {**JSON, "where": "'a' rlike concat('(', instruction)"}, 4),
    "a key that repeats": (
        GOOD,
        {**JSON, "where": "size(map_from_arrays(array(instruction, instruction), array(1, 2))) > 0"},
        4,
    ),
    "an error of the user's": (GOOD, {**JSON, "where": "raise_error(instruction) is null"}, 4),
    "JSON in a cell": (GOOD, {**JSON, "where": "parse_json(instruction) is null"}, 4),
    "a value of another type": (GOOD, {**JSON, "schema": "id STRING, instruction STRUCT<a: INT>"}, 4),
    "a CSV value of another type": (
        f"id,instruction,n\nr1,{CANARY},{CANARY}\n",
        {**CSV, "schema": "id STRING, instruction STRING, n INT", "where": "n > 0"},
        4,
    ),
    "cells too many": (f"id,instruction\nr1,{CANARY},more,{CANARY}\n", CSV, 4),
}


def run_all(folder: Path, cases: dict[str, tuple[str, dict[str, Any], int]]) -> subprocess.CompletedProcess[str]:
    """Run a job for each case in one process; its input is deleted then, so that whatever is left is of the runs."""
    commands, inputs = [], []
    (folder / "events").mkdir()
    for number, (case, (text, settings, _)) in enumerate(cases.items()):
        source = folder / f"in{number}.{settings['format']}"
        source.write_text(text, encoding="utf-8")
        inputs.append(source)
        job = {
            "name": f"job{number}",
            "model": {"path": "tiny", "stage_dir": str(folder / "models")},
            "engine": {"kind": "echo"},
            "input": {"path": str(source), "id": "id", **settings},
            "output": {"path": str(folder / f"out{number}"), "format": "parquet", "mode": "overwrite"},
            "generation": {"do_sample": False},
            "spark": {
                "master": "local[2]",
                "conf": {"spark.eventLog.enabled": "true", "spark.eventLog.dir": f"file://{folder}/events"},
            },
            "work_dir": str(folder / "work"),
        }
        path = folder / f"job{number}.yaml"
        path.write_text(yaml.safe_dump(job), encoding="utf-8")
        inputs.append(path)
        commands.append({"case": case, "arguments": ["run", str(path), "--json"]})
    (folder / "commands.json").write_text(json.dumps(commands))
    environ = {**os.environ, "PYTHONPATH": str(PROJECT), "TMPDIR": str(folder)}
    command = [sys.executable, "-c", MANY, str(folder / "commands.json")]
    ran = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=1200, check=False)
    for path in inputs:
        path.unlink()
    return ran


def holders(folder: Path) -> set[str]:
    """The files below a folder, but those of outputs, that hold the secret."""
    files = (path for path in folder.rglob("*") if path.is_file() and "out" not in path.relative_to(folder).parts[0])
    return {str(path.relative_to(folder)) for path in files if CANARY.encode() in path.read_bytes()}


@pytest.mark.parametrize("stopped", [False, True], ids=["found", "stopped"])
def test_no_message_holds_a_secret_of_a_row(tmp_path: Path, stopped: bool) -> None:
    cases = STOPPED if stopped else FOUND
    ran = run_all(tmp_path, cases)
    codes = [int(line.split()[1]) for line in ran.stdout.splitlines() if line.startswith("exit ")]
    assert codes == [code for *_, code in cases.values()], ran.stdout + ran.stderr
    assert CANARY not in ran.stdout, ran.stdout
    assert CANARY not in ran.stderr, ran.stderr
    assert len(list(tmp_path.glob("work/p*/report.html"))) == sum(code in (0, 3) for code in codes)
    assert len(list(tmp_path.glob("work/p*/progress.json"))) == sum(code in (0, 3) for code in codes)
    events = {name for name in holders(tmp_path) if name.startswith("events/")}
    assert holders(tmp_path) - events == set()
    assert not events or stopped, "Spark's own log of a query that no value has stopped"
