"""A Spark standalone cluster of real processes on this machine, and jobs submitted to it."""

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyspark

from dolly_batch.spark.session.java import find_java
from tests.light_jvm import with_archive

SPARK_HOME = Path(pyspark.__file__).parent
PROJECT = Path(__file__).parents[2]
# The interpreter under the virtual environment: it processes no .pth files of the environment, and so knows nothing of
# an editable install there.
BASE_PYTHON = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
START_TIMEOUT_S = 120.0

T = TypeVar("T")


def environment(**extra: str) -> dict[str, str]:
    """For Spark's processes: Java, Spark and the installed packages, but not this one."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SPARK_", "PYSPARK_", "PYTHON"))}
    return {
        **kept,
        "JAVA_TOOL_OPTIONS": with_archive(),
        "JAVA_HOME": str(find_java(os.environ).home),
        "SPARK_HOME": str(SPARK_HOME),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_DAEMON_MEMORY": "256m",
        "PYSPARK_PYTHON": str(BASE_PYTHON),
        "PYTHONPATH": sysconfig.get_path("purelib"),
        "OMP_NUM_THREADS": "1",
        **extra,
    }


@dataclass
class Daemon:
    """A process of Spark's own, with its output in a log."""

    log: Path
    process: subprocess.Popen[bytes]

    @classmethod
    def start(cls, log: Path, *command: str | Path, **extra: str) -> "Daemon":
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(part) for part in command],
                cwd=log.parent,
                env=environment(**extra),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return cls(log, process)

    def said(self, pattern: str) -> list[str]:
        return re.findall(pattern, self.log.read_text(errors="replace"))

    def wait_for(self, pattern: str) -> str:
        return wait_until(lambda: next(iter(self.said(pattern)), None), f"{pattern!r} in {self.log}", self)

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def wait_until(found: Callable[[], T | None], what: str, daemon: Daemon) -> T:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and daemon.process.poll() is None:
        value = found()
        if value:
            return value
        time.sleep(0.1)
    raise TimeoutError(f"waited for {what}; the log ends:\n{daemon.log.read_text(errors='replace')[-3000:]}")


@dataclass
class Cluster:
    """One master and two workers, each with a pretended GPU of its own, which says that it is a V100."""

    folder: Path
    hidden: Path | None = None
    """A folder that the second worker and its executors see as an empty one of their own."""
    daemons: list[Daemon] = field(default_factory=list)
    url: str = ""

    def start(self) -> "Cluster":
        master = self._spark_class("master", "org.apache.spark.deploy.master.Master", "--port", "0")
        self.url = master.wait_for(r"Starting Spark master at (spark://\S+)")
        for number in range(2):
            self._start_worker(number)
        wait_until(lambda: len(master.said("Registering worker")) == 2, "two workers", master)
        return self

    def _start_worker(self, number: int) -> None:
        script = self.folder / f"gpu-{number}.sh"
        script.write_text(f"""#!/bin/sh\necho '{{"name": "gpu", "addresses": ["{number}"]}}'\n""", encoding="ascii")
        script.chmod(0o755)
        driver = self.folder / "bin" / "nvidia-smi"
        driver.parent.mkdir(exist_ok=True)
        driver.write_text("#!/bin/sh\necho 'Tesla V100-SXM2-16GB, 16384, 7.0'\n", encoding="ascii")
        driver.chmod(0o755)
        options = (
            f"-Dspark.worker.resource.gpu.amount=1 -Dspark.worker.resource.gpu.discoveryScript={script} "
            "-Dspark.worker.cleanup.enabled=false"
        )
        self._spark_class(
            f"worker-{number}",
            "org.apache.spark.deploy.worker.Worker",
            *("--cores", "2", "--memory", "1g", "--work-dir", str(self.folder / f"work-{number}"), self.url),
            within=hiding(self.hidden) if self.hidden and number == 1 else (),
            host=f"127.0.0.{number + 1}",  # Spark puts no copy of a task on the same host
            SPARK_WORKER_OPTS=options,
            PATH=f"{driver.parent}{os.pathsep}{os.environ['PATH']}",
        )

    def _spark_class(
        self, name: str, main: str, *arguments: str, within: tuple[str, ...] = (), host: str = "127.0.0.1", **extra: str
    ) -> Daemon:
        command = (*within, SPARK_HOME / "bin" / "spark-class", main, "--host", host, "--webui-port", "0")
        daemon = Daemon.start(self.folder / f"{name}.log", *command, *arguments, SPARK_LOCAL_IP=host, **extra)
        self.daemons.append(daemon)
        return daemon

    def stop(self) -> None:
        for daemon in reversed(self.daemons):
            daemon.stop()


def hiding(folder: Path) -> tuple[str, ...]:
    """The start of a command whose process sees an empty folder of its own in place of `folder`."""
    return ("unshare", "--mount", "sh", "-c", f"mount -t tmpfs none '{folder}' && exec \"$@\"", "sh")


@dataclass(frozen=True)
class Ended:
    """How a submitted job ended: its exit code, its report (the last one's, if there were several), all it said."""

    code: int
    report: dict[str, Any]
    output: str

    @property
    def reports(self) -> list[dict[str, Any]]:
        """The reports of all commands, in order."""
        return [json.loads(line) for line in self.output.splitlines() if line.startswith("{") and '"by_status"' in line]


def submit(script: str, job: Path, *options: str, arguments: tuple[str, ...] = ()) -> Ended:
    """`spark-submit OPTIONS jobs/SCRIPT JOB --json`, from a folder that is not the project's."""
    command = [SPARK_HOME / "bin" / "spark-submit", *options, PROJECT / "jobs" / script, job, "--json", *arguments]
    return run_command([str(part) for part in command], job.parent, environment())


def submit_several(folder: Path, commands: list[list[str]], *options: str) -> Ended:
    """`spark-submit` of several commands, one after the other in one application."""
    script = Path(__file__).with_name("several.py")
    command = [SPARK_HOME / "bin" / "spark-submit", *options, script, json.dumps(commands)]
    return run_command([str(part) for part in command], folder, environment())


def run_command(command: list[str], folder: Path, env: dict[str, str] | None = None) -> Ended:
    ended = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=900, check=False)
    lines = ended.stdout.splitlines()
    report = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    return Ended(ended.returncode, report, ended.stdout + ended.stderr)
