"""A process of the worker pool, which runs an engine on one thread.

    python -m dolly_batch.engine.processes.worker PARENT_PIPE_DESCRIPTOR CHANNEL_DESCRIPTOR...

The first process, the leader, loads the model and forks one process for each further channel; they share the pages of
the packed weights. Each serves its channel; the leader, which serves the first, ends when one of the others does. All
end with the pool: the kernel kills a process whose parent has ended, and on other systems than Linux the end of the
parent pipe ends it.
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

from dolly_batch.records import EngineSpec, Request, ScoreRequest
from dolly_batch.system.ipc import Channel, RecordReader, RecordWriter
from dolly_batch.system.process import EXIT_FAULT, ProcessFailure, end_by
from dolly_batch.system.watchdog import Watchdog

if TYPE_CHECKING:
    from dolly_batch.engine.weights.loading import LoadedModel

_PR_SET_PDEATHSIG = 1


def serve(channel: Channel, spec: EngineSpec, loaded: "LoadedModel", num_sharing: int) -> None:
    """Answer the pool's requests until it closes the channel."""
    import torch

    from dolly_batch.engine.continuous.load import continuous_engine

    torch.set_num_threads(spec.num_threads or 1)
    reader: RecordReader[Request | ScoreRequest] = RecordReader()
    writer = RecordWriter()
    watchdog = Watchdog(spec.step_timeout_s, lambda: channel.send({"beat": True}))
    engine: Any = continuous_engine(spec, loaded, watchdog.beat, num_sharing)
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
    """Have the kernel kill this process when its parent ends, even if this one is stopped or stuck. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def watch_parent(parent_pipe: socket.socket) -> None:
    """End this process when the pool's end of the parent pipe closes."""

    def wait() -> None:
        parent_pipe.recv(1)
        os._exit(0)

    threading.Thread(target=wait, name="parent pipe", daemon=True).start()


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
    parent_pipe, *socks = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    channels = [Channel(sock) for sock in socks]
    try:
        messages = channels[0].receive()
        if not messages:
            return
        spec = EngineSpec(**messages[0]["spec"])
        import torch

        # Before anything is computed: threads of the leader would not be there in the forked ones.
        torch.set_num_threads(1)
        from dolly_batch.engine.continuous.load import load_packed

        loaded = load_packed(spec)
    except BaseException as error:  # the last chance to report it
        end_by(error, partial(report, channels[0]))
    # Garbage collections leave out what is loaded by now: they write to every object, and what is written to is no
    # longer shared.
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
    watch_parent(parent_pipe)
    try:
        serve(mine, spec, loaded, len(channels))
    except BaseException as error:  # as above
        end_by(error, partial(report, mine))
    os._exit(0)


if __name__ == "__main__":
    main()
