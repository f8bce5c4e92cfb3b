"""The child of `first_minutes.py`: runs the checks and timings whose names it reads, one a line, until there are none.

What it has to say goes to the file descriptor that it is given, a JSON object a line: `said` while a task runs, then
`told` with what it found, or `failed` with the traceback. It may die at any point: the parent sees to that.
"""

import faulthandler
import gc
import json
import os
import runpy
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # as a script, without the package installed


def main() -> None:
    """Serve until the names end. Arguments: descriptor, device, and a file with more CHECKS, or nothing."""
    faulthandler.enable()
    descriptor, device, also = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    with os.fdopen(descriptor, "w", buffering=1) as results:

        def send(**what: Any) -> None:
            results.write(json.dumps(what, default=str) + "\n")
            results.flush()

        planted: dict[str, Callable[[str], Any]] = runpy.run_path(also)["CHECKS"] if also else {}
        for line in sys.stdin:
            name = line.strip()
            try:
                told = planted[name](device) if name in planted else _run(name, device, send)
                send(told=told)
            except Exception:
                send(failed=traceback.format_exc(limit=12))


def _run(name: str, device: str, send: Callable[..., None]) -> Any:
    """A check of `checks.py` by its name, or a timing: `time` and the arguments of `main.py`."""
    import torch

    kind, _, words = name.partition(" ")
    on = torch.device(device)
    if on.type == "cuda":
        torch.cuda.set_device(on)
    torch.backends.cuda.matmul.allow_tf32 = False
    if kind == "time":
        return _time(words.split(), on, send)
    from benchmarks.gpu.checks import CHECKS
    from benchmarks.gpu.eight_bits_checks import EIGHT_BITS_CHECKS
    from benchmarks.gpu.int8_checks import INT8_CHECKS

    try:
        return {**CHECKS, **EIGHT_BITS_CHECKS, **INT8_CHECKS}[name](on)
    finally:
        gc.collect()
        if on.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()


def _time(words: list[str], device: Any, send: Callable[..., None]) -> Any:
    from benchmarks.gpu import main as timing

    given = timing.arguments([*words, "--device", str(device)])
    started = time.monotonic()
    timing.say = lambda text: send(said=text, at_s=round(time.monotonic() - started, 1))
    table: list[str] = []
    found = timing.time_model(given.models[0], given, device, started + 60 * given.minutes, table)
    return {"table": table, "result": found}


if __name__ == "__main__":
    main()
