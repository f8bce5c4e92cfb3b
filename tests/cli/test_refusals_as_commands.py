"""Each refusal as a user meets it: the command in a fresh folder ends with exit 4, soon, and leaves all as it was."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import dolly_batch
from tests.random_models import write_random_model

pytestmark = pytest.mark.chaos

TINY = Path(dolly_batch.__file__).parent / "tiny" / "model"
PROJECT = Path(__file__).parents[2]
# A refusal has 30 s on a machine of its own; where processes queue for the cores, as many times longer.
LIMIT_S = 30.0
NOISE = re.compile(r"\bWARN|log4j|log level|incubator|Traceback|py4j|^\s+at |Exception in", re.MULTILINE)


def command(folder: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """`dolly-batch run`: its exit code, its report, and what it said on the terminal."""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "TMPDIR": str(hosts_of(folder))}
    ran = subprocess.run(
        [sys.executable, "-m", "dolly_batch.cli", "run", *arguments, "--json"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    return ran.returncode, json.loads(ran.stdout.splitlines()[-1]), ran.stderr


def hosts_of(folder: Path) -> Path:
    """Where the folder's commands would put engine hosts; a short path, since sockets lie there."""
    link = folder / "hosts"
    if not link.is_symlink():
        link.symlink_to(tempfile.mkdtemp(prefix="dbr", dir="/tmp"))
    return link.readlink()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a job that is complete. Its paths are relative, so a copy of it is another such folder."""
    folder = tmp_path_factory.mktemp("finished")
    ids = [f"r{i}" for i in range(8)]
    columns = {"id": ids, "instruction": [f"say {i}" for i in ids], "number": [*range(8)], "status": ["new"] * 8}
    (folder / "questions").mkdir()
    pq.write_table(pa.table(columns), folder / "questions" / "part.parquet")
    shutil.copytree(TINY, folder / "model")
    write_random_model(folder / "gptj", architecture="gptj", manifest=True)
    document = {
        "name": "job",
        "model": {"path": "./model"},
        "engine": {"kind": "echo"},
        "input": {"path": "questions", "format": "parquet", "id": "id"},
        "output": {"path": "answers", "format": "parquet", "mode": "overwrite"},
        "generation": {"do_sample": False},
        "work_dir": "work",
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    code, report, said = command(folder, "job.yaml")
    assert (code, report["by_status"]) == (0, {"ok": 8}), said
    assert not NOISE.search(said), said
    shutil.rmtree(hosts_of(folder))
    (folder / "hosts").unlink()
    return folder


def setting(*pairs: str) -> list[str]:
    return ["job.yaml", *(part for pair in pairs for part in ("--set", pair))]


def appending(text: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        with (folder / "job.yaml").open("a", encoding="utf-8") as job:
            job.write(text)

    return spoil


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "model" / name).unlink()


def configured(**settings: object) -> Callable[[Path], None]:
    """The model's config with other settings, and no manifest that would tell that it was changed."""

    def spoil(folder: Path) -> None:
        file = folder / "model" / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
        (folder / "model" / "manifest.json").unlink()

    return spoil


def truncated(folder: Path) -> None:
    os.truncate(folder / "model" / "model.safetensors", 1_000_000)


def with_every_row_twice(folder: Path) -> None:
    shutil.copy(folder / "questions" / "part.parquet", folder / "questions" / "again.parquet")


def as_it_is(folder: Path) -> None:
    pass


REAL = "engine.kind=plain"
CLASSIFY = ("task.kind=classify", "task.labels=[a, b]", "input.text=instruction")
CASES: dict[str, tuple[list[str], Callable[[Path], None], str]] = {
    "no such file": (["nope.yaml"], as_it_is, "nope.yaml cannot be read"),
    "unknown key": (setting("generation.max_new_token=5"), as_it_is, "max_new_token.*max_new_tokens"),
    "wrong type": (setting("limits.max_rows=many"), as_it_is, "limits.max_rows"),
    "key given twice": (setting(), appending("work_dir: elsewhere\n"), "`work_dir` is given twice"),
    "object in YAML": (setting(), appending("x: !!python/object/apply:os.mkdir [executed]\n"), "python/object"),
    "merge into Parquet": (setting("output.mode=merge"), as_it_is, "mode merge needs `format: delta`"),
    "--retry on Parquet": ([*setting(), "--retry", "too_long"], as_it_is, "--retry needs output.format delta"),
    "missing column": (setting("input.instruction=instructoin"), as_it_is, "`instructoin`.*`instruction`"),
    "column of numbers": (setting("input.instruction=number"), as_it_is, "`number` is .*int.*string"),
    "repeated ids": (setting(), with_every_row_twice, "16 rows have a null or repeated id"),
    "colliding column": (setting("output.keep=[status]"), as_it_is, "`status`.*output.prefix"),
    "no input": (setting("input.path=nowhere"), as_it_is, "nowhere"),
    "output is input": (setting("output.path=./questions/."), as_it_is, "questions"),
    "output in input": (setting("output.path=questions/answers"), as_it_is, "questions"),
    "other columns": (setting("output.keep=[number]"), as_it_is, r"\+ number"),
    "other task": (setting(*CLASSIFY), as_it_is, r"\+ label_scores"),
    "too many rows": (setting("limits.max_rows=3", "generation.max_new_tokens=9"), as_it_is, "limits.max_rows = 3"),
    "work_dir unwritable": (setting("work_dir=/proc/nowhere"), as_it_is, "work_dir"),
    "no such model": (setting(REAL, "model.path=./no/model"), as_it_is, "no/model"),
    "no config": (setting(REAL), without("config.json"), r"config\.json"),
    "no tokenizer": (setting(REAL), without("tokenizer.json"), r"tokenizer\.json"),
    "no weights": (setting(REAL), without("model.safetensors"), "safetensors"),
    "truncated weights": (setting(REAL), truncated, r"model\.safetensors"),
    "Llama": (setting(REAL), configured(architectures=["LlamaForCausalLM"], model_type="llama"), "(?i)llama"),
    "code in the model": (setting(REAL), configured(auto_map={"AutoModel": "evil.Evil"}), "auto_map"),
    "int8, plain": (setting(REAL, "model.quantization=int8"), as_it_is, "model.quantization is 'int8'.*plain"),
    "GPT-J, fast": (setting("engine.kind=fast", "model.path=./gptj"), as_it_is, "engine.kind is 'fast'.*GPT-J"),
}


@pytest.mark.parametrize("case", CASES)
def test_refused(finished: Path, tmp_path: Path, case: str) -> None:
    arguments, spoil, message = CASES[case]
    folder = tmp_path / "fresh"
    shutil.copytree(finished, folder)
    spoil(folder)
    before = contents(folder)
    try:
        began = time.monotonic()
        code, report, said = command(folder, *arguments)
        took = time.monotonic() - began
        queue = max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))
        print(f"{case}: {took:.1f} s, {queue:.1f} processes a core", file=sys.stderr)
        assert (code, report["exit_code"]) == (4, 4), said
        assert re.search(message, said, re.DOTALL), said
        assert report["message"] in said
        assert not NOISE.search(said), said
        assert contents(folder) == before
        assert not list(hosts_of(folder).glob("dolly-batch-*/*")), "an engine host was started"
        assert took < LIMIT_S * queue
    finally:
        shutil.rmtree(hosts_of(folder))


def contents(folder: Path) -> dict[str, bytes]:
    """All files but those of the work folder, which a refused start may lock and sweep."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_relative_to(folder / "hosts"))
    return {str(path): path.read_bytes() for path in files if "work" not in path.relative_to(folder).parts}
