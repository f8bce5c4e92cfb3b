"""On the import path of a run, this has its engine hosts count the tokens that they answer, in a file beside it each.

Python imports it by itself when it starts.
"""

import os
import sys

if "dolly_batch.host.server" in sys.orig_argv:
    from dolly_batch.engine.echo import EchoEngine
    from dolly_batch.records import Completion, Request, ScoreRequest, Scores

    answer = EchoEngine._answer
    counts = os.path.join(os.path.dirname(os.path.abspath(__file__)), "answered")

    def answer_and_count(engine: EchoEngine, request: Request | ScoreRequest) -> Completion | Scores:
        found = answer(engine, request)
        if isinstance(found, Completion):
            with open(f"{counts}.{os.getpid()}", "a", encoding="ascii") as file:
                file.write(f"{len(found.token_ids)}\n")
        return found

    EchoEngine._answer = answer_and_count  # type: ignore[method-assign]
