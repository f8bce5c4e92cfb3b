"""The engine host: loads one engine and serves every task of its executor until the executor is gone.

    python -m dolly_batch.host.server PLACE_FOLDER LISTENER_DESCRIPTOR

The main thread alone touches the engine: it takes all rows that have arrived, encodes and submits them, makes a step,
passes the completions on. Reading, sending, accepting and looking after the owner are threads of their own.
"""

import faulthandler
import logging
import os
import socket
import sys
import threading
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, NoReturn

from dolly_batch.errors import EngineError, ModelError
from dolly_batch.host.acceptor import Acceptor
from dolly_batch.host.connection import Connection, IncomingRows
from dolly_batch.host.encoding import RowEncoder, failed
from dolly_batch.host.runtime_dir import HostRecord, RuntimeDir
from dolly_batch.process import end_by
from dolly_batch.records import Completion, Failure, Scores
from dolly_batch.watchdog import Watchdog

if TYPE_CHECKING:
    from dolly_batch.engine.protocol import Engine

log = logging.getLogger("dolly_batch.host")

# Rows that one client may have outstanding: enough to fill a batch and sort it by length, little in memory.
WINDOW = 1024


class HostServer:
    """One loaded engine and the clients whose rows are in it."""

    def __init__(self, runtime_dir: RuntimeDir, record: HostRecord, listener: socket.socket) -> None:
        self._runtime_dir = runtime_dir
        self._record = record
        self._watchdog = Watchdog(record.spec.step_timeout_s)
        self._inbox: SimpleQueue[IncomingRows] = SimpleQueue()
        self._acceptor = Acceptor(runtime_dir, record, listener, self._inbox)
        self._encoder: RowEncoder
        self._submitted: dict[str, Connection] = {}
        self._next: IncomingRows | None = None  # waits until the engine is empty
        self._turn: str | None = None

    def run(self) -> NoReturn:
        """Loads, then serves for ever; the acceptor or the watchdog ends the process."""
        log.info("%s: loading, for the %d. time", self._record.engine_id, self._record.incarnation)
        self._acceptor.start()
        self._watchdog.allow(self._record.spec.load_timeout_s)
        engine = self._load()
        self._watchdog.disarm()
        self._acceptor.set_ready(
            {
                "engine_id": self._record.engine_id,
                "incarnation": self._record.incarnation,
                "host_pid": os.getpid(),
                "window": WINDOW,
            }
        )
        while True:
            self._take_rows(engine)
            if engine.num_unfinished:
                # The engine alone gives heartbeats: a pool's step returns even while its processes are stuck.
                self._watchdog.arm()
                self._route(engine.step())
            if not engine.num_unfinished:
                self._watchdog.disarm()
                if self._submitted:
                    raise EngineError(f"the engine left {len(self._submitted)} requests without an answer")

    def _load(self) -> "Engine":
        # Imported here: the host itself needs the standard library alone, and is to listen while torch is imported.
        from dolly_batch.engine.load import load_engine
        from dolly_batch.prompt import PromptEncoder

        device = self._record.device
        # The environment shows the process its one GPU, whose number here is 0.
        device = "cuda:0" if device is not None and device.startswith("cuda") else device
        engine = load_engine(self._record.spec, device, self._watchdog.beat)
        if self._record.spec.prompt_format == "dolly" and not isinstance(engine.encoder, PromptEncoder):
            raise ModelError(f"{self._record.spec.model_folder}: its tokenizer lacks Dolly's markers")
        self._encoder = RowEncoder(engine.encoder, engine.max_positions)
        log.info("loaded")
        return engine

    def _take_rows(self, engine: "Engine") -> None:
        """Submits the rows that have arrived, in that order; waits for the first when the engine has nothing to do.

        A turn begins when all rows before it are answered, and nothing is submitted until its own are.
        """
        try:
            incoming = self._next or self._inbox.get(block=not engine.num_unfinished)
            while not engine.num_unfinished or (incoming.turn is None and self._turn is None):
                self._next = None
                self._begin_turn(incoming)
                self._submit(engine, incoming)
                incoming = self._inbox.get_nowait()
            self._next = incoming
        except Empty:
            return

    def _begin_turn(self, incoming: IncomingRows) -> None:
        """Leaves word of whose rows the engine has, for the case that it ends with them."""
        if incoming.turn is not None:
            log.info("%d rows have a turn to themselves", len(incoming.rows))
        if incoming.turn != self._turn:
            self._runtime_dir.write_turn(self._record.incarnation, incoming.turn)
            self._turn = incoming.turn

    def _submit(self, engine: "Engine", incoming: IncomingRows) -> None:
        connection, rows, _ = incoming
        if connection.closed:
            return
        self._watchdog.arm()  # from here on: a grammar is compiled as its request is submitted
        for row, request in zip(rows, self._encoder.encode(rows), strict=True):
            if isinstance(request, Failure):
                connection.send([failed(row, request)])
            else:
                engine.submit(request)
                self._submitted[row.key] = connection

    def _route(self, answers: list[Completion | Scores]) -> None:
        """Passes answers on to the clients that asked; those that have left are not missed."""
        by_client: dict[Connection, list[Completion | Scores]] = {}
        for answer in answers:
            by_client.setdefault(self._submitted.pop(answer.key), []).append(answer)
        for connection, ended in by_client.items():
            connection.send(ended)


def main() -> None:
    """Becomes a process of its own, apart from the Python worker that started it, and serves."""
    runtime_dir, listener = RuntimeDir(Path(sys.argv[1])), socket.socket(fileno=int(sys.argv[2]))
    listener.set_inheritable(False)
    record = runtime_dir.read_record()
    if record is None:
        raise EngineError(f"{runtime_dir.path} holds no host.json: hosts are started by host/launch.py")
    if os.fork():
        os._exit(0)  # The worker that waits for this process goes on; nobody has to wait for the host itself.
    logging.basicConfig(format="%(asctime)s %(process)d %(message)s", level=logging.WARNING)
    logging.getLogger("dolly_batch").setLevel(logging.INFO)
    faulthandler.enable()
    report = partial(runtime_dir.write_failure, record.incarnation)

    def end_by_thread(fault: threading.ExceptHookArgs) -> None:
        end_by(fault.exc_value or SystemExit(), report)

    threading.excepthook = end_by_thread
    try:
        HostServer(runtime_dir, record, listener).run()
    except BaseException as error:  # The last place where it can be told.
        end_by(error, report)


if __name__ == "__main__":
    main()
