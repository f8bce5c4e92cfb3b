"""Random kills: a run of 40 waves is hit again and again at random moments, then completed, and counted over.

    python benchmarks/kills.py --minutes 10

Each round is a job of its own. One process after another is killed with -9, or the driver is stopped by Ctrl-C: the
driver, its JVM, all Python workers, the engine host; the first time, always the driver at half of its waves. Whenever
the command has ended without a result it is started again, as a user would. At the end of a round every row must be
there once. Prints one line a round, and at the end the kills by victim, the rows lost or twice, and the answer tokens
that had to be paid for again.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.crash.command import Job, Start, check_nothing_lost
from tests.crash.processes import hosts_of, jvm_of, kill, workers_of
from tests.spark.desk import questions

NUM_ROWS, NUM_WAVES = 800, 40
VICTIMS = ["driver", "jvm", "workers", "host", "ctrl-c"]
KILLS_A_ROUND = 3


@dataclass
class Tally:
    """What all rounds have come to."""

    kills: Counter[str] = field(default_factory=Counter)
    rounds: int = 0
    starts: int = 0
    shares: list[float] = field(default_factory=list)
    """Of each end of a driver: the share of all rows that were in waves partial and not finished."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="no new round is partial after this")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    chance, tally = random.Random(arguments.seed), Tally()
    end = time.monotonic() + 60 * arguments.minutes
    while time.monotonic() < end:
        play_round(chance, tally)
    shares = sorted(tally.shares)
    print(f"{tally.rounds} rounds of {NUM_ROWS} rows in {NUM_WAVES} waves, {tally.starts} starts")
    print(f"kills: {dict(tally.kills)}, {sum(tally.kills.values())} in all")
    print("lost rows: 0, rows twice: 0, rows with another's answer: 0 (each round was checked)")
    if shares:
        mean = sum(shares) / len(shares)
        print(f"answered again after a driver's end, at most: {mean:.2%} of a run on average, {shares[-1]:.2%} once")


def play_round(chance: random.Random, tally: Tally) -> None:
    folder = Path(tempfile.mkdtemp(prefix="dolly-kills-"))
    hosts = Path(tempfile.mkdtemp(prefix="dbk", dir="/tmp"))
    rows = questions(NUM_ROWS)
    job = Job.make(
        folder, hosts, engine={"echo_delay_s": 0.01}, output={"mode": chance.choice(["append", "overwrite"])}
    )
    job.document["plan"]["max_shard_rows"] = NUM_ROWS // (2 * NUM_WAVES)
    job.put(rows)
    plan = [("driver", NUM_WAVES // 2)] if tally.rounds == 0 else []
    plan += [(chance.choice(VICTIMS), chance.randint(0, NUM_WAVES)) for _ in range(KILLS_A_ROUND - len(plan))]
    plan.sort(key=lambda hit: hit[1])
    try:
        start = job.start()
        for victim, at in plan:
            while start.is_running() and len(job.staged()) < at:
                time.sleep(0.02)
            time.sleep(chance.random())
            if not start.is_running():
                start = job.start()
                time.sleep(chance.random() * 20)  # anywhere: Spark's start, the model, a wave, the commit
            if strike(victim, start, job, tally):
                tally.kills[victim] += 1
        code, report = start.end()
        while code != 0:
            assert code in (5, -signal.SIGKILL), job.starts[-1].said()
            code, report = job.start().end()
        if report["outcome"] == "complete":
            check_nothing_lost(job, report, rows)
        assert Counter(row["id"] for row in job.rows()) == Counter(row["id"] for row in rows)
        tally.rounds += 1
        tally.starts += len(job.starts)
        print(f"round {tally.rounds}: {plan}, {len(job.starts)} starts, {report['outcome']}", flush=True)
    finally:
        for start in job.starts:
            start.kill_all()
        for process in job.own_processes():
            kill(process.pid)
        shutil.rmtree(hosts, ignore_errors=True)
    shutil.rmtree(folder)


def strike(victim: str, start: Start, job: Job, tally: Tally) -> bool:
    """Whether there was somebody to be hit."""
    jvm = jvm_of(start.pid)
    if victim in ("driver", "ctrl-c"):
        if not start.is_running():
            return False
        os.kill(start.pid, signal.SIGKILL if victim == "driver" else signal.SIGINT)
    elif victim == "jvm":
        if jvm is None:
            return False
        kill(jvm)
    else:
        pids = [] if jvm is None else workers_of(jvm) if victim == "workers" else [*hosts_of(jvm)]
        for pid in pids:
            kill(pid)
        return bool(pids)
    start.process.wait()
    total = job.num_waves()
    if total:
        partial = [*(job.folder / "work").glob("p*/staging/.wave=*")]
        tally.shares.append(len({path.name.split(".")[1] for path in partial} - set(job.staged())) / total)
    return True


if __name__ == "__main__":
    main()
