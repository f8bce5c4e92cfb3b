"""Random kills: runs of 40 waves are hit again and again at random moments, then completed, and counted over.

    python benchmarks/kills.py --kills 200

Each round is a job of its own, of a kind drawn at random: the output's format and mode, whether output and work folder
are reached as local files or by Hadoop, on one machine or on a standalone cluster of two workers. One process after
another is killed with -9, or the driver is stopped by Ctrl-C: the driver, its JVM, an executor, all Python workers of
one, its engine host; the first time, always the driver at half of its waves. Whenever the command has ended without a
result it is started again, as a user would. At the end of a round every row must be there once.

Prints one line a round, and at the end the kills by victim and by kind of round; the rows lost, those there twice, the
ends with a code or a message that docs/troubleshooting.md does not have; and the answer tokens that were paid for
again, as the engine hosts have counted them.
"""

import argparse
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.cluster.standalone import Cluster
from tests.crash.command import Job, Start
from tests.crash.processes import below, hosts_of, jvm_of, kill, workers_of
from tests.spark.desk import questions

PROJECT = Path(__file__).parent.parent
NUM_ROWS, NUM_WAVES = 800, 40
KILLS_A_ROUND = 5
VICTIMS = ["driver", "jvm", "workers", "host", "ctrl-c"]
MODES = {"parquet": ("append", "overwrite"), "delta": ("append", "merge", "overwrite")}
OUTPUTS = [(format, mode) for format, modes in MODES.items() for mode in modes]
ENDS = {"complete", "nothing_to_do"}
STORE = "store://box"
"""A file system that only Hadoop reaches, without a rename that replaces: its files lie in the round's folder."""
TRACES = ("Traceback (most", "\tat ", "Exception in thread", "py4j.protocol")


def store_conf(folder: Path) -> dict[str, str]:
    """What makes Spark know that file system."""
    overload = "org.apache.hadoop.fs.viewfs.ViewFileSystemOverloadScheme"
    return {
        "spark.hadoop.fs.store.impl": overload,
        "spark.hadoop.fs.viewfs.overload.scheme.target.file.impl": "org.apache.hadoop.fs.RawLocalFileSystem",
        "spark.hadoop.fs.viewfs.mounttable.box.link./data": f"file://{folder}",
        "spark.delta.logStore.store.impl": "io.delta.storage.LocalLogStore",
    }


@dataclass
class Tally:
    """What all rounds have come to."""

    kills: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    rounds: int = 0
    starts: int = 0
    lost: int = 0
    twice: int = 0
    unexplained: list[str] = field(default_factory=list)
    tokens: int = 0
    again: int = 0

    def lines(self) -> list[str]:
        """The summary."""
        num_kills = self.kills.total()
        share = self.again / max(1, self.tokens)
        return [
            f"{self.rounds} rounds of {NUM_ROWS} rows in {NUM_WAVES} waves, {self.starts} starts",
            f"{num_kills} kills: {dict(self.kills)}; rounds: {dict(self.kinds)}",
            *self.unexplained,
            f"lost {self.lost} / twice {self.twice} / unexplained {len(self.unexplained)}",
            f"answer tokens paid again: {share:.2%} of all runs' tokens, "
            f"{share * self.rounds / max(1, num_kills):.2%} of a run for each kill",
        ]


@dataclass
class Round:
    """One job, on its way through its kills."""

    job: Job
    counting: Path
    cluster: Cluster | None
    kind: str
    killed: set[int] = field(default_factory=set)
    """Drivers that this program has ended."""
    report: dict[str, Any] = field(default_factory=dict)
    """What the last start has reported."""

    def start(self) -> Start:
        """Start the command, its engine hosts counting."""
        path = os.pathsep.join([str(self.counting), str(PROJECT)])
        conf = self.job.document["spark"]["conf"]
        conf |= {"spark.executorEnv.PYTHONPATH": path, "spark.executorEnv.TMPDIR": str(self.job.hosts_folder)}
        return self.job.start(PYTHONPATH=path)

    def executors(self, start: Start) -> list[int]:
        """The JVMs that run tasks."""
        if self.cluster is None:
            return [pid for pid in [jvm_of(start.pid)] if pid is not None]
        daemons = [daemon.process.pid for daemon in self.cluster.daemons]
        return [
            process.pid
            for daemon in daemons
            for process in below(daemon)
            if any("CoarseGrainedExecutorBackend" in word for word in process.words)
        ]

    def strike(self, victim: str, start: Start, chance: random.Random) -> bool:
        """Kill; whether there was somebody to be hit."""
        if victim in ("driver", "ctrl-c", "jvm"):
            jvm = jvm_of(start.pid)
            # Before there is a JVM, Python imports modules, and what Ctrl-C does then is Python's.
            if not start.is_running() or (jvm is None and victim != "driver"):
                return False
            pid = jvm if jvm is not None and victim == "jvm" else start.pid
            self.killed.add(start.pid)
            os.kill(pid, signal.SIGINT if victim == "ctrl-c" else signal.SIGKILL)
            start.process.wait()
            return True
        executors = self.executors(start)
        if not executors:
            return False
        one = chance.choice(executors)
        pids = {"executor": [one], "workers": workers_of(one), "host": [*hosts_of(one)]}[victim]
        for pid in pids:
            kill(pid)
        return bool(pids)

    def end(self, start: Start, tally: Tally) -> str | None:
        """Wait for the end of a start, and note one that nothing explains; the outcome, None without one."""
        code, report = start.end()
        self.report = report
        fault = "" if code == -signal.SIGKILL and start.pid in self.killed else unexplained(code, report, start.said())
        if fault:
            tally.unexplained.append(f"unexplained, in {self.kind}: {fault}")
        return report.get("outcome") if code == 0 else None

    def count(self, rows: Sequence[dict[str, Any]], tally: Tally) -> None:
        """Count what is there, and what was paid for it."""
        found, wanted = self.job.rows(), Counter(row["id"] for row in rows)
        asked = {row["id"]: row["instruction"] for row in rows}
        right = Counter(row["id"] for row in found if (row["response"] or "").startswith(asked.get(row["id"], "\0")))
        tally.lost += (wanted - right).total()
        tally.twice += (Counter(row["id"] for row in found) - wanted).total()
        once = sum(row["num_completion_tokens"] for row in found)
        paid = sum(int(line) for path in self.counting.glob("answered.*") for line in path.read_text().split())
        by_status = dict(Counter(row["status"] for row in found))
        if self.report.get("outcome") == "complete" and self.report["by_status"] != by_status:
            tally.unexplained.append(f"unexplained, in {self.kind}: {self.report['by_status']} is {by_status}")
        tally.tokens += once
        tally.again += paid - once


@cache
def documented() -> dict[int, list[re.Pattern[str]]]:
    """The messages that docs/troubleshooting.md has for each exit code."""
    found: dict[int, list[re.Pattern[str]]] = {}
    text = (PROJECT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    for section in re.split(r"^## ", text, flags=re.MULTILINE):
        if heading := re.match(r"Exit code (\d)", section):
            first_cells = re.findall(r"^\| (.*?) \|", section, flags=re.MULTILINE)
            messages = [message for cell in first_cells for message in re.findall(r"`([^`]+)`", cell)]
            patterns = [".*".join(map(re.escape, message.split("..."))) for message in messages]
            found[int(heading[1])] = [re.compile(pattern, re.DOTALL) for pattern in patterns if pattern != ".*"]
    return found


def unexplained(code: int, report: dict[str, Any], said: str) -> str:
    """What nothing explains of how a start has ended; empty where all is explained."""
    message = str(report.get("message"))
    known = code == 0 and report.get("outcome") in ENDS
    known = known or any(pattern.search(message) for pattern in documented().get(code, []))
    trace = next((line for line in said.splitlines() if line.startswith(TRACES)), "")
    return "" if known and not trace else f"exit {code}, {report.get('outcome')}: {message[:300]} {trace[:200]}"


def draw(chance: random.Random, tally: Tally, clusters: bool) -> tuple[str, str, bool, bool]:
    """Format and mode, whether by Hadoop, whether on a cluster; every third round is on one."""
    format, mode = OUTPUTS[tally.rounds % len(OUTPUTS)] if tally.rounds < len(OUTPUTS) else chance.choice(OUTPUTS)
    return format, mode, tally.rounds % 2 == 1, clusters and tally.rounds % 3 == 2


def play_round(chance: random.Random, tally: Tally, most: int, cluster: Cluster | None, drawn: Sequence[Any]) -> None:
    """One job from its first start to its end, with at most so many kills."""
    format, mode, by_hadoop, _ = drawn
    folder, hosts = Path(tempfile.mkdtemp(prefix="dolly-kills-")), Path(tempfile.mkdtemp(prefix="dbk", dir="/tmp"))
    counting = folder / "counting"
    shutil.copytree(PROJECT / "benchmarks" / "counting", counting)
    rows = questions(NUM_ROWS)
    job = Job.make(folder, hosts, engine={"echo_delay_s": 0.01}, output={"format": format, "mode": mode})
    job.document["plan"]["max_shard_rows"] = NUM_ROWS // (2 * NUM_WAVES)
    if by_hadoop:
        job.document["spark"]["conf"] |= store_conf(folder)
        job.document["output"]["path"], job.document["work_dir"] = f"{STORE}/data/out", f"{STORE}/data/work"
        job.document["model"]["stage_dir"] = str(folder / "models")
    if cluster is not None:
        job.document["spark"]["master"] = cluster.url
        job.document["spark"]["conf"]["spark.executor.memory"] = "1g"
    job.put(rows)
    where = "a cluster" if cluster else "one machine"
    round_ = Round(job, counting, cluster, f"{format} {mode}, {'Hadoop' if by_hadoop else 'local'}, {where}")
    try:
        kills = play(round_, chance, tally, min(most, KILLS_A_ROUND))
        round_.count(rows, tally)
    finally:
        for start in job.starts:
            start.kill_all()
        for process in job.own_processes():
            kill(process.pid)
        shutil.rmtree(hosts, ignore_errors=True)
    tally.rounds += 1
    tally.starts += len(job.starts)
    tally.kinds[round_.kind] += 1
    print(f"round {tally.rounds}, {round_.kind}: {kills}, {len(job.starts)} starts; {tally.lines()[-2]}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)


def play(round_: Round, chance: random.Random, tally: Tally, num_kills: int) -> list[tuple[str, int]]:
    """Start, kill at random moments, and start again until the command says that it is through; the kills."""
    victims = [*VICTIMS, *(["executor"] * 3 if round_.cluster else [])]
    hits = [("driver", NUM_WAVES // 2)] if tally.rounds == 0 else []
    hits += [(chance.choice(victims), chance.randint(0, NUM_WAVES)) for _ in range(num_kills - len(hits))]
    hits.sort(key=lambda hit: hit[1])
    struck, start, job = [], round_.start(), round_.job
    for victim, at in hits:
        while start.is_running() and len(job.staged()) < at:
            time.sleep(0.02)
        time.sleep(chance.random())
        if not start.is_running():
            if round_.end(start, tally) in ENDS:
                break
            start = round_.start()
            time.sleep(chance.random() * 20)  # anywhere: Spark's start, the model, a wave, the commit
        if round_.strike(victim, start, chance):
            tally.kills[victim] += 1
            struck.append((victim, at))
    for _ in range(10):
        if round_.end(start, tally) in ENDS:
            return struck
        start = round_.start()
    tally.unexplained.append(f"unexplained, in {round_.kind}: no end after ten starts")
    return struck


def main() -> None:
    """Play rounds until there are so many kills."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=240.0, help="no new round is begun after this")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-cluster", action="store_true", help="on one machine alone")
    arguments = parser.parse_args()
    chance, tally = random.Random(arguments.seed), Tally()
    end = time.monotonic() + 60 * arguments.minutes
    with ExitStack() as stack:
        cluster = None
        while tally.kills.total() < arguments.kills and time.monotonic() < end:
            drawn = draw(chance, tally, not arguments.no_cluster)
            if drawn[3] and cluster is None:
                cluster = Cluster(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dolly-cluster-"))))
                stack.callback(cluster.stop)
                cluster.start()
            most, told = arguments.kills - tally.kills.total(), len(tally.unexplained)
            play_round(chance, tally, most, cluster if drawn[3] else None, drawn)
            print("".join(f"{line}\n" for line in tally.unexplained[told:]), end="", flush=True)
    print("\n".join(tally.lines()))
    sys.exit(1 if tally.lost or tally.twice or tally.unexplained else 0)


if __name__ == "__main__":
    main()
