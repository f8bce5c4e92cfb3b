"""One engine in a process of its own, `python -m benchmarks.contest.child RUNNER`, with JSON lines on stdin and stdout.

It is told a setup, loads, and says `ready`. Then, for every list of rows, it answers them all and says when the
first request went in and when the last answer came out. Whatever libraries print goes to stderr.
"""

import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path

from benchmarks.contest.work import Row


def main() -> None:
    """Serve until stdin ends."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def reply(**message: object) -> None:
        replies.write(json.dumps(message) + "\n")

    try:
        runner = importlib.import_module(f"benchmarks.contest.runners.{sys.argv[1]}")
        answer = runner.load(json.loads(sys.stdin.readline()))
        reply(ready=True)
        for line in sys.stdin:
            order = json.loads(line)
            rows = [Row(key, tuple(ids), count) for key, ids, count in json.loads(Path(order["rows"]).read_text())]
            started = time.monotonic()
            answers, stats = answer(rows)
            ended = time.monotonic()
            Path(order["answers"]).write_text(json.dumps({key: list(ids) for key, ids in answers}))
            reply(started=started, ended=ended, stats=stats)
    except BaseException as error:
        traceback.print_exc()
        reply(error=f"{type(error).__name__}: {error}"[:500])
        raise


if __name__ == "__main__":
    main()
