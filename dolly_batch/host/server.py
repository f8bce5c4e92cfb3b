"""The engine host: loads one engine and serves every task of its executor until the executor ends.

    python -m dolly_batch.host.server RUNTIME_DIR LISTENER_DESCRIPTOR

Only the main thread uses the engine: it takes all rows that have arrived, encodes and submits them, runs a step and
passes the answers on. Other threads read, send, accept clients and check that the owner is alive.
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

from dolly_batch.engine.local_copy import discard_local_copy, with_local_copy
from dolly_batch.errors import EngineError, ModelError
from dolly_batch.host.acceptor import Acceptor
from dolly_batch.host.connection import Connection, IncomingRows
from dolly_batch.host.encoding import RowEncoder, failed
from dolly_batch.host.metrics import Metrics
from dolly_batch.host.runtime_dir import HostRecord, RuntimeDir
from dolly_batch.records import Completion, Failure, Scores
from dolly_batch.system.process import end_by
from dolly_batch.system.watchdog import Watchdog

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
        self._metrics = Metrics(record.spec.metrics_dir, record.engine_id, record.device)
        self._acceptor = Acceptor(runtime_dir, record, listener, self._inbox)
        self._encoder: RowEncoder
        self._submitted: dict[str, Connection] = {}
        self._next: IncomingRows | None = None  # waits until the engine is empty
        self._quarantine: str | None = None

    def run(self) -> NoReturn:
        """Loads the model, then serves until the acceptor or the watchdog ends the process."""
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
            # The engine alone gives heartbeats: a pool's step returns even while its processes are stuck.
            self._watchdog.arm()
            if engine.num_unfinished:
                self._route(engine.step())
            self._metrics.write(len(self._submitted), getattr(engine, "stats", dict))
            if not engine.num_unfinished:
                self._watchdog.disarm()
                if self._submitted:
                    raise EngineError(f"the engine left {len(self._submitted)} requests without an answer")

    def _load(self) -> "Engine":
        # Imported here: clients import this package too, and the host must listen while torch is imported.
        from dolly_batch.engine.load import load_engine
        from dolly_batch.prompt import PromptEncoder

        device = self._record.device
        # The environment shows the process its one GPU, whose number here is 0.
        device = "cuda:0" if device is not None and device.startswith("cuda") else device
        spec = self._record.spec
        try:
            engine = load_engine(spec if spec.kind == "echo" else with_local_copy(spec), device, self._watchdog.beat)
        except ModelError:
            if spec.local_dir is None or spec.kind == "echo":
                raise
            discard_local_copy(spec)  # it may be the copy that is spoilt
            engine = load_engine(spec, device, self._watchdog.beat)
        if self._record.spec.prompt_format == "model" and not isinstance(engine.encoder, PromptEncoder):
            raise ModelError(f"{self._record.spec.model_folder}: it has no prompt format; name an instruction model")
        self._encoder = RowEncoder(engine.encoder, engine.max_positions)
        log.info("loaded")
        return engine

    def _take_rows(self, engine: "Engine") -> None:
        """Submits the rows that have arrived, in that order. When the engine has nothing to do, waits for the first,
        until the metrics are to say so.

        A quarantine batch is submitted when all rows before it are answered, and nothing else until it is answered.
        """
        try:
            incoming = self._next or self._inbox.get(block=not engine.num_unfinished, timeout=self._metrics.idle_s)
            while not engine.num_unfinished or (incoming.quarantine is None and self._quarantine is None):
                self._next = None
                self._note_quarantine(incoming)
                self._submit(engine, incoming)
                incoming = self._inbox.get_nowait()
            self._next = incoming
        except Empty:
            return

    def _note_quarantine(self, incoming: IncomingRows) -> None:
        """Records which batch is alone in the engine, if one is, in case the engine crashes with it."""
        if incoming.quarantine is not None:
            log.info("%d rows are in quarantine", len(incoming.rows))
        if incoming.quarantine != self._quarantine:
            self._runtime_dir.write_quarantine(self._record.incarnation, incoming.quarantine)
            self._quarantine = incoming.quarantine

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
        """Passes answers on to the clients that sent the rows; drops those of clients that have left."""
        by_client: dict[Connection, list[Completion | Scores]] = {}
        for answer in answers:
            by_client.setdefault(self._submitted.pop(answer.key), []).append(answer)
        self._metrics.count(answers)
        for connection, ended in by_client.items():
            connection.send(ended)


def main() -> None:
    """Detaches from the Python worker that started this process, and serves."""
    runtime_dir, listener = RuntimeDir(Path(sys.argv[1])), socket.socket(fileno=int(sys.argv[2]))
    listener.set_inheritable(False)
    record = runtime_dir.read_record()
    if record is None:
        raise EngineError(f"{runtime_dir.path} holds no host.json: hosts are started by host/launch.py")
    if os.fork():
        os._exit(0)  # The worker waits for this process only, not for the host.
    logging.basicConfig(format="%(asctime)s %(process)d %(message)s", level=logging.WARNING)
    logging.getLogger("dolly_batch").setLevel(logging.INFO)
    faulthandler.enable()
    report = partial(runtime_dir.write_failure, record.incarnation)

    def end_by_thread(fault: threading.ExceptHookArgs) -> None:
        end_by(fault.exc_value or SystemExit(), report)

    threading.excepthook = end_by_thread
    try:
        HostServer(runtime_dir, record, listener).run()
    except BaseException as error:  # the last chance to report it
        end_by(error, report)


if __name__ == "__main__":
    main()
