"""vLLM's offline mode: all prompts in one call, a length for each row or a token that ends it.

On a CPU it is set up as its pages for CPUs advise: its threads are bound to cores of its own (by itself it would leave
one of two free), Intel's OpenMP and tcmalloc are loaded first where they are there, and its keys and values get as much
memory as ours.
"""

import ctypes.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.contest.work import Row


def load(setup: dict[str, Any]) -> Callable[[list[Row]], Any]:
    """`setup`: models (folders by quantization), quantization, dtype, kv_bytes (of all processes), threads, index."""
    cores = sorted(os.sched_getaffinity(0))[setup["index"] * setup["threads"] :][: setup["threads"]]
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
    # For the processes that vLLM starts, which do the work.
    os.environ["LD_PRELOAD"] = ":".join(filter(None, (_library("tcmalloc_minimal"), _library("iomp5"))))
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=setup["models"][setup["quantization"]],
        dtype=setup["dtype"],
        enable_prefix_caching=True,
        max_model_len=2048,
        kv_cache_memory_bytes=setup["kv_bytes"] // setup["of"],
        gpu_memory_utilization=0.3,  # of which it wants to see that much free, whatever it takes
    )

    def answer(rows: list[Row]) -> Any:
        llm.reset_prefix_cache()  # prompts of earlier runs are forgotten
        prompts = [{"prompt_token_ids": list(row.prompt_ids)} for row in rows]
        params = [
            SamplingParams(
                temperature=0.0,
                max_tokens=row.num_new_tokens,
                ignore_eos=not setup["stop_ids"],
                stop_token_ids=setup["stop_ids"],
                detokenize=False,
            )
            for row in rows
        ]
        results = llm.generate(prompts, params, use_tqdm=False)
        return [(row.key, result.outputs[0].token_ids) for row, result in zip(rows, results, strict=True)], {}

    return answer


def _library(name: str) -> str | None:
    own = Path(sys.prefix) / "lib" / f"lib{name}.so"
    return str(own) if own.exists() else ctypes.util.find_library(name)
