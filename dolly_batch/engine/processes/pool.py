"""A pool of engine processes with one thread each: on a CPU, several threads in one process mostly wait for each other.

One process loads the model and forks the others, so that the weights are in memory once. The pool itself holds no model
and imports no torch: it hands requests out, longest first, and passes answers on. If a process ends, the engine ends
(`EngineError`), and none survives the pool's process, whatever ends that.
"""

import select
import socket
import subprocess
import sys
import time
from bisect import insort
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dolly_batch.engine.protocol import no_heartbeat
from dolly_batch.engine.requests import Deduplication, num_positions, too_long
from dolly_batch.engine.waiting import Rank, WaitingOrder, begin_alike
from dolly_batch.errors import EngineError
from dolly_batch.models.folder import read_config
from dolly_batch.prompt import PromptEncoder
from dolly_batch.records import Completion, EngineSpec, Request, ScoreRequest, Scores
from dolly_batch.system.ipc import Channel, RecordReader, RecordWriter
from dolly_batch.system.process import ProcessFailure, child_environment
from dolly_batch.tokenizer import TextEncoder

# Requests that a process may have: enough to refill a slot at once, few enough that all processes end together.
WINDOW = 80
_MORE_ALIKE = 16  # requests by which a process may be ahead of another, to have prompts that begin alike in one batch
_POLL_S = 0.2
_EXIT_TIMEOUT_S = 5.0
# Settings of glibc. By default it returns a step's memory to the system and takes it again for the next step, page by
# page: some percent of all time. What lasts longer than a step, keys and values, is not in the heap.
_KEEP_HEAP = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 31)}


class EngineProcess:
    """One process as the pool sees it."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.writer = RecordWriter()
        self.reader: RecordReader[Completion | Scores] = RecordReader()
        self.outstanding: set[str] = set()
        self.last_ids: Sequence[int] = ()  # of the prompt that it was given last
        self.answers: deque[Any] = deque()  # of `score` and `stats`
        self.is_asked = False
        self.beat_at = time.monotonic()

    @property
    def is_busy(self) -> bool:
        """Whether it has work, and must give heartbeats."""
        return self.is_asked or bool(self.outstanding)


class WorkerPool:
    """Distributes requests over `count` fast engines; see `protocol.Engine` for the interface.

    It passes heartbeats on only when every process that has work has given one: a stuck process is a stuck engine.
    """

    def __init__(self, spec: EngineSpec, count: int, heartbeat: Callable[[], None] = no_heartbeat) -> None:
        kind = PromptEncoder if spec.prompt_format == "model" else TextEncoder
        self.encoder: TextEncoder = kind.from_folder(spec.model_folder)
        self.max_positions = read_config(Path(spec.model_folder), spec.max_positions).max_positions
        self._heartbeat = heartbeat
        self._passed_on_at = time.monotonic()
        self._waiting: list[tuple[Rank, Request | ScoreRequest]] = []  # by rank
        self._order = WaitingOrder()
        self._ended: list[Completion | Scores] = []
        self._deduplication = Deduplication()
        self._processes, self._parent_pipe, self._leader = _launch(spec, count)
        try:
            for process in self._processes:
                self._receive(process, timeout_s=None)
        except BaseException:
            self.close()
            raise

    @property
    def num_unfinished(self) -> int:
        """Requests submitted whose answer has not come out."""
        num_outstanding = sum(len(process.outstanding) for process in self._processes)
        return len(self._waiting) + num_outstanding + len(self._ended) + self._deduplication.num_duplicates

    def submit(self, request: Request | ScoreRequest) -> None:
        """Take a request; one that can't be run comes out as a failure."""
        if isinstance(request, ScoreRequest) or self._deduplication.is_primary(request):
            rank = self._order.rank(request.prompt_ids, _size(request))
            insort(self._waiting, (rank, request), key=lambda waiting: waiting[0])

    def step(self) -> list[Completion | Scores]:
        """Hand out what the processes have room for, wait a little, return the answers received."""
        self._hand_out()
        if not self._ended:
            self._poll(_POLL_S)
            self._hand_out()
        ended, self._ended = self._ended, []
        answers: list[Completion | Scores] = []
        for answer in ended:
            answers += [answer] if isinstance(answer, Scores) else self._deduplication.with_duplicates(answer)
        return answers

    def score(self, prompt_ids: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[float]:
        """Return the log-probability of each continuation's tokens after the prompt, in order."""
        failure = too_long(ScoreRequest("", tuple(prompt_ids), tuple(map(tuple, continuations))), self.max_positions)
        if failure or not prompt_ids:
            raise ValueError(failure.message if failure else "a prompt of 0 tokens cannot be scored")
        process = min(self._processes, key=lambda process: len(process.outstanding))
        scores: list[float] = self._ask(process, {"score": [prompt_ids, continuations]})
        return scores

    def stats(self) -> dict[str, float]:
        """The sums of the processes' counts; `occupancy` over all their slots."""
        all_stats = [self._ask(process, {"stats": True}) for process in self._processes]
        sums = {name: sum(stats[name] for stats in all_stats) for name in all_stats[0]}
        return {**sums, "occupancy": sums["slot_steps_used"] / max(1, sums["slot_steps"])}

    def close(self) -> None:
        """End the processes. They also end when this object is collected or this process ends."""
        for process in self._processes:
            process.channel.close()
        self._parent_pipe.close()
        try:
            self._leader.wait(_EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._leader.kill()  # stopped, or stuck where no thread of it runs
            self._leader.wait()

    def _hand_out(self) -> None:
        while self._waiting:
            process = self._process_for(self._waiting[0][1])
            if len(process.outstanding) >= WINDOW:
                return
            _, request = self._waiting.pop(0)
            if not process.is_busy:
                process.beat_at = time.monotonic()
            process.outstanding.add(request.key)
            process.last_ids = request.prompt_ids
            self._send(process, {"request": process.writer.write(request)})

    def _process_for(self, request: Request | ScoreRequest) -> EngineProcess:
        """The process with the least to do; one that got a prompt which begins alike may have a little more."""

        def load(process: EngineProcess) -> int:
            is_full = len(process.outstanding) >= WINDOW
            knows = not is_full and begin_alike(process.last_ids, request.prompt_ids)
            return len(process.outstanding) - (_MORE_ALIKE if knows else 0)

        return min(self._processes, key=load)

    def _poll(self, timeout_s: float) -> None:
        """Receive what the processes send, and send what is queued; waits until either is possible."""
        by_channel = {process.channel: process for process in self._processes}
        unsent = [channel for channel in by_channel if channel.has_unsent]
        readable, writable, _ = select.select(list(by_channel), unsent, [], timeout_s)
        for channel in readable:
            self._receive(by_channel[channel], timeout_s=0)
        for channel in writable:
            self._send(by_channel[channel])
        busy = [process.beat_at for process in self._processes if process.is_busy]
        if min(busy, default=time.monotonic()) > self._passed_on_at:
            self._passed_on_at = time.monotonic()
            self._heartbeat()

    def _receive(self, process: EngineProcess, timeout_s: float | None) -> None:
        for message in process.channel.receive(timeout_s):
            process.beat_at = time.monotonic()
            if "answers" in message:
                answers = [process.reader.read(answer) for answer in message["answers"]]
                process.outstanding.difference_update(answer.key for answer in answers)
                self._ended += answers
            elif "error" in message:
                failure = ProcessFailure(**message["error"])
                raise failure.refusal() or EngineError(f"an engine process ended by {failure}")
            elif "scores" in message or "stats" in message:
                process.answers.append(message.get("scores", message.get("stats")))
        if process.channel.is_closed:
            raise EngineError(f"an engine process ended by itself, with {len(process.outstanding)} rows unanswered")

    def _ask(self, process: EngineProcess, question: dict[str, Any]) -> Any:
        process.is_asked, process.beat_at = True, time.monotonic()
        self._send(process, question)
        while not process.answers:
            self._poll(_POLL_S)
        process.is_asked = False
        return process.answers.popleft()

    def _send(self, process: EngineProcess, *messages: dict[str, Any]) -> None:
        """Never blocks: a process that is sending answers takes no requests until they are received."""
        try:
            process.channel.queue(*messages)
        except OSError as error:
            raise EngineError(f"an engine process ended by itself: {error}") from error


def _size(request: Request | ScoreRequest) -> int:
    """What a request costs, roughly: the tokens that are run for it."""
    return len(request.prompt_ids) if isinstance(request, ScoreRequest) else num_positions(request)


def _launch(spec: EngineSpec, count: int) -> tuple[list[EngineProcess], socket.socket, subprocess.Popen[bytes]]:
    """Start the process that loads the model and forks the others; return them and the parent pipe."""
    pairs = [socket.socketpair() for _ in range(count)]
    parent_pipe, their_pipe = socket.socketpair()
    theirs = [their_pipe, *(their for _, their in pairs)]
    descriptors = [str(sock.fileno()) for sock in theirs]
    try:
        leader = subprocess.Popen(
            [sys.executable, "-P", "-m", "dolly_batch.engine.processes.worker", *descriptors],
            stdin=subprocess.DEVNULL,
            env={**_KEEP_HEAP, **child_environment(spec.num_threads or 1)},
            pass_fds=[sock.fileno() for sock in theirs],
        )
    except OSError as error:
        raise EngineError(f"engine processes could not be started by {sys.executable}: {error}") from error
    finally:
        for sock in theirs:
            sock.close()
    processes = [EngineProcess(Channel(ours)) for ours, _ in pairs]
    processes[0].channel.send({"spec": asdict(spec)})
    return processes, parent_pipe, leader
