"""The command as a user starts it, in a folder of its own, and what its starts leave there."""

import contextlib
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

from tests.crash.processes import Process, environ, hosts_of, jvm_of, kill, processes, state_of, suspend, wait_for
from tests.light_jvm import LIGHT_JVM
from tests.spark.desk import echo_document

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

    def kill_all(self) -> None:
        """kill -9 of the driver and its JVM, suspended or not, if they are still there."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(END_S)

    def killed_itself(self) -> None:
        """Waits until the start has ended by the SIGKILL of its step."""
        code = self.process.wait(END_S)
        assert code == -signal.SIGKILL, (code, self.said())

    def stopped_itself(self) -> None:
        """Waits until the start has suspended itself at its step."""
        wait_for("the suspended driver", lambda: self.is_suspended() or not self.is_running())
        assert self.is_running(), self.said()

    def suspend_all(self) -> None:
        """SIGSTOP of the driver and its JVM."""
        os.killpg(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT of the driver and its JVM."""
        os.killpg(self.pid, signal.SIGCONT)

    def is_suspended(self) -> bool:
        return state_of(self.pid) == "T"

    def said(self) -> str:
        """What a user sees on the terminal beside the result."""
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

    def start(self, *arguments: str, step: str = "", without: str = "", **environment: str) -> Start:
        """Start the command; with `step` or `without` by way of stepped.py, which says what they mean."""
        (self.folder / "job.yaml").write_text(yaml.safe_dump(self.document), encoding="utf-8")
        name = f"start-{len(self.starts)}"
        out, err = self.folder / f"{name}.out", self.folder / f"{name}.err"
        environment = {
            **os.environ,
            **environment,
            "TMPDIR": str(self.hosts_folder),
            "JAVA_TOOL_OPTIONS": LIGHT_JVM,
            "OMP_NUM_THREADS": "1",
            "SPARK_WORKER_DIR": str(self.folder / "executors"),
            "STEP": step,
            "WITHOUT": without,
        }
        script = [str(Path(__file__).with_name("stepped.py"))] if step or without else ["-m", "dolly_batch.command"]
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, *script, "run", "job.yaml", "--json", *arguments],
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
        """The finished waves and when Spark committed each, in nanoseconds."""
        found = {}
        for folder in (self.folder / "work").glob("p*/staging/wave=*"):
            with contextlib.suppress(FileNotFoundError):  # a complete run's answers are being deleted
                found[folder.name] = (folder / "_SUCCESS").stat().st_mtime_ns
        return found

    def num_waves(self) -> int:
        """Waves in all, 0 as long as there is no plan."""
        plan = self.plan()
        return len(json.loads((plan / "manifest.json").read_text())["waves"]) if plan else 0

    def marker(self, name: str) -> dict[str, Any]:
        """What a marker of the plan holds, `published.json` for one."""
        plan = self.plan()
        assert plan is not None
        found: dict[str, Any] = json.loads((plan / name).read_text())
        return found

    def all_staged(self) -> bool:
        return 0 < self.num_waves() == len(self.staged())

    def rows(self) -> list[dict[str, Any]]:
        """The output, read without Spark."""
        out = self.folder / "out"
        table = DeltaTable(str(out)).to_pyarrow_table() if (out / "_delta_log").is_dir() else pq.read_table(out)
        found: list[dict[str, Any]] = table.to_pylist()
        return found

    def num_commits(self) -> int:
        """Commits of the output's Delta table, 0 as long as there is no table."""
        return len([*(self.folder / "out" / "_delta_log").glob("*.json")])

    def own_jvms(self) -> list[int]:
        """JVMs of starts of this job, known by the environment that they inherited."""
        mark = f"SPARK_WORKER_DIR={self.folder}/".encode()
        return [p.pid for p in processes() if "org.apache.spark.deploy.SparkSubmit" in p.words and mark in environ(p)]

    def own_processes(self) -> list[Process]:
        """Processes that name this job's folders: hosts and executors; and the starts themselves."""
        marks = (str(self.folder), str(self.hosts_folder))
        return [p for p in processes() if any(mark in word for word in p.words for mark in marks)]


def check_nothing_lost(job: Job, report: dict[str, Any], questions: list[dict[str, Any]]) -> None:
    """Ids out = ids in as multisets, one status each, and report and manifest count what the table holds.

    Each answer of the echo engine begins with its own question.
    """
    rows = job.rows()
    assert Counter(row["id"] for row in rows) == Counter(row["id"] for row in questions)
    by_status = dict(Counter(row["status"] for row in rows))
    assert report["outcome"] == "complete"
    assert report["by_status"] == by_status
    assert job.marker("published.json")["by_status"] == by_status
    assert job.marker("complete.json") == {"by_status": by_status, "num_rows": len(questions)}
    if job.document["engine"]["kind"] == "echo":
        assert set(by_status) == {"ok"}
        asked = {row["id"]: row["instruction"] for row in questions}
        assert all(row["response"].startswith(asked[row["id"]]) for row in rows)


def between_data_and_commit(job: Job, start: Start, num_commits: int) -> None:
    """Suspends the JVM when the Delta table has so many commits and files that the next one is to name."""
    jvm, out = start.jvm(), job.folder / "out"
    wait_for(f"{num_commits} commits", lambda: job.num_commits() >= num_commits)
    known = set(out.glob("part-*.parquet"))
    wait_for("files of the new rows", lambda: set(out.glob("part-*.parquet")) - known)
    suspend(jvm)
    assert job.num_commits() == num_commits, "the commit was faster than this test"


def check_quiet(start: Start) -> None:
    """No stack trace of Python or Java on the terminal."""
    said = start.said()
    for sign in ("Traceback", "\tat ", "Exception in thread", "py4j.", "java.lang."):
        assert sign not in said, said
