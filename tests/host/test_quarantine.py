"""No answer is lost when a host crashes, and a row that crashes its hosts fails alone. Real processes, really dead."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice

import pytest

from dolly_batch.errors import EngineError
from dolly_batch.host.address import HostAddress
from dolly_batch.host.quarantine import RetryingClient
from dolly_batch.host.runtime_dir import RuntimeDir
from dolly_batch.records import EngineSpec, PromptRow, Row
from tests.crash.processes import hosts_of, kill

Prompts = Callable[..., Iterator[PromptRow]]

# Hosts inherit the limit on memory. One of them has room for short rows, and not for encoding one of 900,000 bytes:
# there the tokenizer's allocation fails, which ends the process by SIGABRT.
THREE_TASKS = """
import json, os, resource, sys, threading
from itertools import islice
from pathlib import Path
from dolly_batch.host.client import EngineClient
from dolly_batch.system.process import ProcessId
from dolly_batch.host.address import HostAddress
from dolly_batch.host.quarantine import RetryingClient
from dolly_batch.records import EngineSpec, GenerationParams, PromptRow, Row

spec, owner, root = json.loads(sys.argv[1])
spec, address = EngineSpec(**spec), HostAddress(ProcessId(**owner), None, Path(root))
threading.stack_size(1 << 20)
# So that each client's two threads in the host take little of its memory.
resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, resource.getrlimit(resource.RLIMIT_STACK)[1]))
with EngineClient.connect(spec, address) as client:
    size = int(Path(f"/proc/{client.host_pid}/statm").read_text().split()[0]) * resource.getpagesize()
    os.kill(client.host_pid, 9)
resource.setrlimit(resource.RLIMIT_AS, (size + (28 << 20),) * 2)

answers, loads = {}, []
def task(name):
    texts = [f"{name} says {i}" for i in range(60)]
    if name == "b":
        texts[41] = "too many " * 100_000
    params = GenerationParams(do_sample=False)
    rows = iter([PromptRow(f"{name}{i}", text, None, params) for i, text in enumerate(texts)])
    with RetryingClient(spec, address) as client:
        found = list(client.answer(lambda num_rows: list(islice(rows, num_rows))))
    answers[name] = [(answer.key, answer.text, answer.failure and answer.failure.message) for answer in found]
    loads.append(client.incarnation)

tasks = [threading.Thread(target=task, args=(name,)) for name in "abc"]
for thread in tasks: thread.start()
for thread in tasks: thread.join()
print(json.dumps([answers, max(loads)]))
"""


def test_a_row_that_crashes_its_hosts_fails_alone_and_no_other_is_blamed(echo: EngineSpec, address: HostAddress):
    wanted = json.dumps([asdict(replace(echo, echo_delay_s=0.003)), asdict(address.owner), str(address.root)])
    tasks = subprocess.run(
        [sys.executable, "-c", THREE_TASKS, wanted],
        env={**os.environ, "MALLOC_ARENA_MAX": "1", "TOKENIZERS_PARALLELISM": "false"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=True,
    )
    answers, num_loads = json.loads(tasks.stdout)
    for name in "abc":
        told = {key: (text, failure) for key, text, failure in answers[name]}
        assert len(answers[name]) == len(told) == 60
        if name == "b":
            text, failure = told.pop("b41")
            assert text == ""
            assert "the last 2 times with no other row in work" in failure
        assert told == {key: (f"{name} says {key[1:]}", None) for key in told}
    print(f"{num_loads - 1} hosts after the first", file=sys.stderr)
    assert num_loads <= 10


def test_rows_of_hosts_killed_from_outside_are_all_answered(echo: EngineSpec, address: HostAddress, prompts: Prompts):
    """Three kills, the last one while those that the first two made suspects are in quarantine."""
    rows, killed = prompts(100), []
    with RetryingClient(replace(echo, echo_delay_s=0.01), address) as client:
        answers = []
        for answer in client.answer(lambda num_rows: list(islice(rows, num_rows))):
            answers.append((answer.key, answer.text, answer.failure))
            if len(answers) in (10, 20, 40):
                killed += kill_hosts(address)
        assert client.incarnation == 4
    assert len(killed) == 3
    assert sorted(answers) == sorted((f"key-{i}", f"row {i}", None) for i in range(100))


def test_an_engine_that_crashes_on_the_canary_blames_no_row(echo: EngineSpec, address: HostAddress, prompts: Prompts):
    spec = replace(echo, echo_delay_s=0.4)
    folder = RuntimeDir(address.make_folder(spec))
    rows, done = prompts(20), threading.Event()

    def kill_every_host_with_the_canary() -> None:
        killed = set()  # their records stay until the next host, which must be able to start, writes its own
        while not done.wait(0.02):
            record = folder.read_record()
            quarantine = record and folder.read_quarantine(record.incarnation)
            if record and quarantine and quarantine.endswith("/0") and record.incarnation not in killed:
                killed.add(record.incarnation)
                kill_hosts(address)

    def take(num_rows: int) -> Sequence[Row]:
        threading.Timer(0.2, kill_hosts, [address]).start()
        return list(islice(rows, num_rows))

    watcher = threading.Thread(target=kill_every_host_with_the_canary)
    watcher.start()
    try:
        with RetryingClient(spec, address) as client, pytest.raises(EngineError, match="the simplest request"):
            list(client.answer(take))
        assert client.incarnation >= 3
    finally:
        done.set()
        watcher.join()


def kill_hosts(address: HostAddress) -> list[int]:
    pids = [*hosts_of(address.owner.pid)]
    for pid in pids:
        kill(pid)
    while any(pid in hosts_of(address.owner.pid) for pid in pids):
        time.sleep(0.01)
    return pids
