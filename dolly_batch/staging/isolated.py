"""Runs in a child process what the staging process must not import: torch, transformers, pickles of unknown origin.

The child speaks in JSON lines on its standard output: `{"log": ...}` as it goes, `{"error": ...}` at most once.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence

from dolly_batch.errors import DollyBatchError, ModelError
from dolly_batch.system.process import child_environment

Log = Callable[[str], None]


def run_isolated(module: str, arguments: Sequence[str], log: Log) -> None:
    """Run `python -P -m module arguments` to its end, passing its log lines on.

    Raises ModelError with the reason that the child reported, or else with how it ended.
    """
    command = [sys.executable, "-P", "-m", module, *arguments]
    # A file, not a pipe: a child that warns at length must not block while its other stream is being read.
    with tempfile.TemporaryFile("w+") as stderr:
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, env=child_environment(), text=True
        ) as child:
            try:
                error = _follow(child.stdout or (), log)
                code = child.wait()
            finally:
                child.kill()
        stderr.seek(0)
        if error is not None:
            raise ModelError(error)
        if code != 0:
            raise ModelError(f"{module} {_how_it_ended(code, stderr.read())}")


def report(line: str) -> None:
    """In the child: pass a log line to the parent. Ends the child if the parent is gone."""
    _send({"log": line})


def serve(main: Callable[[list[str]], None], arguments: list[str]) -> int:
    """In the child: run `main`, turning named errors and faults of the disk into the parent's ModelError."""
    try:
        main(arguments)
    except DollyBatchError as error:
        _send({"error": str(error)})
        return error.exit_code
    except OSError as error:
        _send({"error": f"writing failed: {error}"})
        return 1
    return 0


def _send(message: dict[str, str]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _follow(lines: Iterable[str], log: Log) -> str | None:
    error: str | None = None
    for line in lines:
        if not line.startswith("{"):
            continue  # a library's own print
        message = json.loads(line)
        if "error" in message:
            error = message["error"]
        else:
            log(message["log"])
    return error


def _how_it_ended(code: int, stderr: str) -> str:
    if code < 0:
        return f"was ended by signal {-code}; signal 9 usually means that memory ran out, try a smaller shard size"
    last = stderr.strip().splitlines()[-1:] or ["no message"]
    if "No module named 'torch'" in last[0]:
        return "needs torch to read pickled weights: pip install dolly-batch[local], or stage on another machine"
    return f"ended with exit code {code}: {last[0]}"
