"""The command as a user starts it, in a folder of its own, and what its starts leave there."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from deltalake import DeltaTable

from tests.crash.processes import Process, hosts_of, jvm_of, kill, processes, wait_for
from tests.spark.desk import echo_document

# A JVM of few threads that compiles little: on a small machine the starts cost less than half.
LIGHT_JVM = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xshare:auto"
END_S = 300.0


@dataclass
class Start:
    """One start of the command, a session and a process group of its own."""

    process: subprocess.Popen[bytes]
    out: Path
    err: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def is_running(self) -> bool:
        return self.process.poll() is None

    def jvm(self) -> int:
        return wait_for("the driver's JVM", lambda: jvm_of(self.pid))

    def hosts(self) -> dict[int, Path]:
        return hosts_of(self.jvm())

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def interrupt(self) -> None:
        """Ctrl-C, as a terminal sends it: to the whole group, the JVM in it."""
        os.killpg(self.pid, signal.SIGINT)

    def end(self) -> tuple[int, dict[str, Any]]:
        """Waits; the exit code and the report on the last line."""
        code = self.process.wait(END_S)
        lines = self.out.read_text(encoding="utf-8").splitlines()
        return code, json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}

    def kill(self) -> None:
        """kill -9 of the driver's Python process, the JVM left to notice by itself."""
        kill(self.pid)
        self.process.wait(END_S)

    def said(self) -> str:
        return self.err.read_text(encoding="utf-8", errors="replace")


@dataclass
class Job:
    """A folder with an input of questions, a job file over it, and all starts made of it."""

    folder: Path
    hosts_folder: Path
    document: dict[str, Any]
    starts: list[Start] = field(default_factory=list)

    @classmethod
    def make(cls, folder: Path, hosts_folder: Path, **sections: dict[str, Any]) -> "Job":
        """The echo engine at 20 ms a row, in waves of two shards of about ten rows, into Parquet."""
        document = echo_document(folder)
        document["engine"]["echo_delay_s"] = 0.02
        document["plan"] = {"max_shard_rows": 10, "shards_per_slot": 1, "slots": 2}
        document["spark"] = {"master": "local[2]", "conf": {"spark.sql.shuffle.partitions": "2"}}
        for name, section in sections.items():
            document[name] = {**document.get(name, {}), **section}
        return cls(folder, hosts_folder, document)

    def put(self, rows: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (self.folder / "input.jsonl").write_text(text, encoding="utf-8")

    def start(self, *arguments: str) -> Start:
        (self.folder / "job.yaml").write_text(yaml.safe_dump(self.document), encoding="utf-8")
        name = f"start-{len(self.starts)}"
        out, err = self.folder / f"{name}.out", self.folder / f"{name}.err"
        environment = {
            **os.environ,
            "TMPDIR": str(self.hosts_folder),
            "JAVA_TOOL_OPTIONS": LIGHT_JVM,
            "OMP_NUM_THREADS": "1",
            "SPARK_WORKER_DIR": str(self.folder / "executors"),
        }
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "dolly_batch.cli", "run", "job.yaml", "--json", *arguments],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        self.starts.append(Start(process, out, err))
        return self.starts[-1]

    def plan(self) -> Path | None:
        """The folder of the plan, once there is one."""
        return next(iter((self.folder / "work").glob("p*/manifest.json")), Path()).parent if self._has_plan() else None

    def _has_plan(self) -> bool:
        return any((self.folder / "work").glob("p*/manifest.json"))

    def staged(self) -> dict[str, int]:
        """The finished waves and when each appeared, in nanoseconds."""
        folders = (self.folder / "work").glob("p*/staging/wave=*")
        return {folder.name: (folder / "_SUCCESS").stat().st_mtime_ns for folder in folders}

    def num_waves(self) -> int:
        """Waves in all, 0 as long as there is no plan."""
        plan = self.plan()
        return len(json.loads((plan / "manifest.json").read_text())["waves"]) if plan else 0

    def all_staged(self) -> bool:
        return 0 < self.num_waves() == len(self.staged())

    def rows(self) -> list[dict[str, Any]]:
        """The output, read without Spark."""
        out = self.folder / "out"
        table = DeltaTable(str(out)).to_pyarrow_table() if (out / "_delta_log").is_dir() else pq.read_table(out)
        found: list[dict[str, Any]] = table.to_pylist()
        return found

    def own_processes(self) -> list[Process]:
        """Processes that name this job's folders: hosts and executors; and the starts themselves."""
        marks = (str(self.folder), str(self.hosts_folder))
        return [p for p in processes() if any(mark in word for word in p.words for mark in marks)]


def check_nothing_lost(job: Job, report: dict[str, Any], questions: list[dict[str, Any]]) -> None:
    """Ids out = ids in as multisets, one answer each that is its own, and the report counts what the table holds."""
    rows = job.rows()
    assert Counter(row["id"] for row in rows) == Counter(row["id"] for row in questions)
    assert report["outcome"] == "complete"
    assert report["by_status"] == dict(Counter(row["status"] for row in rows))
    asked = {row["id"]: row["instruction"] for row in questions}
    assert all(row["response"].startswith(asked[row["id"]]) for row in rows if row["status"] == "ok")
    assert set(report["by_status"]) == {"ok"}
