"""On the import path of a run, this makes its engine hosts die by SIGKILL whenever they work on a row that says so.

It stands for a fault in native code, which ends a process without a word. Python imports it by itself when it starts.
"""

import os
import signal
import sys

DEADLY = "This row is deadly."

if "dolly_batch.host.server" in sys.orig_argv:
    from dolly_batch.engine.echo import EchoEngine
    from dolly_batch.records import Completion, Request, ScoreRequest, Scores

    answer = EchoEngine._answer

    def die_or_answer(engine: EchoEngine, request: Request | ScoreRequest) -> Completion | Scores:
        found = answer(engine, request)
        if isinstance(found, Completion) and DEADLY in found.text:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    EchoEngine._answer = die_or_answer  # type: ignore[method-assign]
