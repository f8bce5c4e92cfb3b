"""The processes of an engine pool.

    python -m dolly_batch.engine.processes.worker LIFE_DESCRIPTOR CHANNEL_DESCRIPTOR...

The first process, the leader, loads the model and forks one process for each further channel; packed weights are theirs
in common, page by page. Each serves its channel; the leader, which serves the first, ends when one of the others does.
All end with the pool: the kernel kills a process whose parent is gone, and where it does not, the end of the life line
does.
"""

import ctypes
import faulthandler
import gc
import os
import signal
import socket
import sys
import threading
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from dolly_batch.ipc import Channel, RecordReader, RecordWriter
from dolly_batch.process import EXIT_FAULT, ProcessFailure, end_by
from dolly_batch.records import EngineSpec, Request, ScoreRequest
from dolly_batch.watchdog import Watchdog

if TYPE_CHECKING:
    from dolly_batch.engine.weights.loading import LoadedModel

_PR_SET_PDEATHSIG = 1


def serve(channel: Channel, spec: EngineSpec, loaded: "LoadedModel", num_sharing: int) -> None:
    """Answer the pool until it is gone."""
    import torch

    from dolly_batch.engine.load import fast_engine

    torch.set_num_threads(spec.num_threads or 1)
    reader: RecordReader[Request | ScoreRequest] = RecordReader()
    writer = RecordWriter()
    watchdog = Watchdog(spec.step_timeout_s, lambda: channel.send({"beat": True}))
    engine: Any = fast_engine(spec, loaded, watchdog.beat, num_sharing)
    channel.send({"ready": os.getpid()})
    while not channel.is_closed:
        for message in channel.receive(0 if engine.num_unfinished else None):
            if "request" in message:
                watchdog.arm()
                engine.submit(reader.read(message["request"]))
            elif "score" in message:
                watchdog.arm()
                channel.send({"scores": engine.score(*message["score"])})
            else:
                channel.send({"stats": engine.stats()})
        if engine.num_unfinished:
            answers = engine.step()
            if answers:
                channel.send({"answers": [writer.write(answer) for answer in answers]})
        else:
            watchdog.disarm()


def report(channel: Channel, failure: ProcessFailure) -> None:
    """Tell the pool why this process ends."""
    channel.send({"error": asdict(failure)})


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, stopped or stuck as it may be. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def watch(life: socket.socket) -> None:
    """End this process when the pool's end of the life line closes."""

    def wait() -> None:
        life.recv(1)
        os._exit(0)

    threading.Thread(target=wait, name="life line", daemon=True).start()


def watch_others(count: int) -> None:
    """End this process when one of the processes that it has forked ends."""

    def wait() -> None:
        os.wait()
        os._exit(EXIT_FAULT)

    if count:
        threading.Thread(target=wait, name="others", daemon=True).start()


def main() -> None:
    """Load, fork, serve."""
    die_with_parent()
    faulthandler.enable()
    life, *socks = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    channels = [Channel(sock) for sock in socks]
    try:
        messages = channels[0].receive()
        if not messages:
            return
        spec = EngineSpec(**messages[0]["spec"])
        import torch

        # Before anything is computed: threads of the leader would not be there in the forked ones.
        torch.set_num_threads(1)
        from dolly_batch.engine.load import load_packed

        loaded = load_packed(spec)
    except BaseException as error:  # The last place where it can be told.
        end_by(error, partial(report, channels[0]))
    # What is loaded by now is left out of collections: they write to every object, and what is written to is shared no
    # longer.
    gc.collect()
    gc.freeze()
    mine = channels[0]
    for channel in channels[1:]:
        if os.fork() == 0:
            die_with_parent()
            mine = channel
            break
    else:
        watch_others(len(channels) - 1)
    for other in channels:
        if other is not mine:
            other.close()
    watch(life)
    try:
        serve(mine, spec, loaded, len(channels))
    except BaseException as error:  # As above.
        end_by(error, partial(report, mine))
    os._exit(0)


if __name__ == "__main__":
    main()
