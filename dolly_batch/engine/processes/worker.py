"""The processes of an engine pool.

    python -m dolly_batch.engine.processes.worker LIFE_DESCRIPTOR CHANNEL_DESCRIPTOR...

The first process, the leader, loads the model and forks one process for each further channel; packed weights are theirs
in common, page by page. Each serves its channel; the leader, which serves the first, ends when one of the others does.
All end with the pool: the kernel kills a process whose parent is gone, and where it does not, the end of the life line
does.
"""

import contextlib
import ctypes
import faulthandler
import gc
import os
import signal
import socket
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any, NoReturn

from dolly_batch.engine.processes.channel import Channel, answer_to_json, request_from_json
from dolly_batch.errors import DollyBatchError
from dolly_batch.records import EngineSpec

if TYPE_CHECKING:
    from dolly_batch.engine.weights.loading import LoadedModel

_BEAT_S = 0.2
_EXIT_FAULT = 70
_PR_SET_PDEATHSIG = 1


class Pulse:
    """Tells the pool that this process works, and ends the process, its stacks in the log, when it stops working."""

    def __init__(self, channel: Channel, step_timeout_s: float) -> None:
        self._channel = channel
        self._timeout_s = step_timeout_s
        self._interval_s = min(_BEAT_S, step_timeout_s / 10)
        self._beat_at = 0.0

    def beat(self) -> None:
        """One more step or request begins."""
        now = time.monotonic()
        if now - self._beat_at >= self._interval_s:
            self._beat_at = now
            # By a thread of its own that needs no interpreter lock: it also sees a step that is stuck in native code.
            faulthandler.dump_traceback_later(self._timeout_s, exit=True, file=sys.stderr)
            self._channel.send({"beat": True})

    def rest(self) -> None:
        """Nothing to do: no deadline."""
        self._beat_at = 0.0
        faulthandler.cancel_dump_traceback_later()


def serve(channel: Channel, spec: EngineSpec, loaded: "LoadedModel", num_sharing: int) -> None:
    """Answer the pool until it is gone."""
    import torch

    from dolly_batch.engine.continuous.load import continuous_engine

    torch.set_num_threads(spec.num_threads or 1)
    pulse = Pulse(channel, spec.step_timeout_s)
    engine: Any = continuous_engine(spec, loaded, pulse.beat, num_sharing)
    channel.send({"ready": os.getpid()})
    while not channel.is_closed:
        for message in channel.receive(0 if engine.num_unfinished else None):
            if "request" in message:
                pulse.beat()
                engine.submit(request_from_json(message["request"]))
            elif "score" in message:
                pulse.beat()
                channel.send({"scores": engine.score(*message["score"])})
            else:
                channel.send({"stats": engine.stats()})
        if engine.num_unfinished:
            pulse.beat()
            answers = engine.step()
            if answers:
                channel.send({"answers": [answer_to_json(answer) for answer in answers]})
        else:
            pulse.rest()


def end_by(error: BaseException, channel: Channel) -> NoReturn:
    """Tell the pool, leave the stack in the log, and end. Of errors that could quote a row only the class is told."""
    quotable = isinstance(error, DollyBatchError | RuntimeError | OSError | ImportError | MemoryError)
    stack = "".join(traceback.format_tb(error.__traceback__))
    sys.stderr.write(f"engine process {os.getpid()} ended by {type(error).__name__}\n{stack}")
    with contextlib.suppress(OSError):  # when the pool is gone
        channel.send({"error": type(error).__name__, "message": str(error)[:2000] if quotable else ""})
    os._exit(_EXIT_FAULT)


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
        os._exit(_EXIT_FAULT)

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
        from dolly_batch.engine.continuous.load import load_packed

        loaded = load_packed(spec)
    except BaseException as error:  # The last place where it can be told.
        end_by(error, channels[0])
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
        end_by(error, mine)
    os._exit(0)


if __name__ == "__main__":
    main()
