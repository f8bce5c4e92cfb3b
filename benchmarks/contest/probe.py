"""How fast the machine is at this moment: a matrix product of one thread, alone and on two cores at once."""

import json
import os
import subprocess
import sys
import time

_ROWS, _IN, _OUT, _TIMES = 512, 768, 3_072, 8


class Probe:
    """Processes that wait for their turn to multiply, one for each of two cores."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.contest.probe"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for _ in range(min(2, len(os.sched_getaffinity(0))))
        ]
        self.best = [float("inf"), float("inf")]

    def measure(self) -> list[float]:
        """Seconds of the same products by one process, and by two at once: the slower one's."""
        found = [_ask(self._processes[:1]), _ask(self._processes)]
        self.best = [min(best, seconds) for best, seconds in zip(self.best, found, strict=True)]
        return found

    def noise(self, found: list[float]) -> float:
        """How many times slower than the best ever seen, of both kinds the worse."""
        return max(seconds / best for seconds, best in zip(found, self.best, strict=True))

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.communicate()


def _ask(processes: list[subprocess.Popen[str]]) -> float:
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    return max(float(json.loads(process.stdout.readline())) for process in processes if process.stdout)


def main() -> None:
    """Multiply whenever a line comes."""
    import torch

    torch.set_num_threads(1)
    left, right = torch.randn(_ROWS, _IN), torch.randn(_IN, _OUT)
    left @ right
    for _ in sys.stdin:
        started = time.perf_counter()
        for _ in range(_TIMES):
            left @ right
        print(json.dumps(time.perf_counter() - started), flush=True)


if __name__ == "__main__":
    main()
