"""transformers' own continuous batching: the manager behind `generate_batch`, which alone takes a length for each row.

`generate_batch` gives all rows one `max_new_tokens`; it is a loop around the same manager's `add_request` and
`get_result`, which is what stands here.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from benchmarks.contest.work import Row


def load(setup: dict[str, Any]) -> Callable[[list[Row]], Any]:
    """`setup`: model, dtype, threads, attention, page_size, num_tokens (its cache), max_batch_tokens, max_requests."""
    torch.set_num_threads(setup["threads"])
    model = AutoModelForCausalLM.from_pretrained(
        setup["model"], dtype=getattr(torch, setup["dtype"]), attn_implementation=setup["attention"]
    ).eval()
    config = ContinuousBatchingConfig(
        page_size=setup["page_size"],
        num_blocks=setup["num_tokens"] // setup["page_size"],
        max_batch_tokens=setup["max_batch_tokens"],
        max_requests_per_batch=setup["max_requests"],
    )

    stop_ids = setup["stop_ids"] or -1

    def session() -> Any:
        return model.continuous_batching_context_manager(
            generation_config=GenerationConfig(do_sample=False, eos_token_id=stop_ids, pad_token_id=0),
            continuous_batching_config=config,
            block=True,
            persistent_manager=True,
        )

    with session():
        pass  # makes its cache, and keeps it: that is part of loading

    def answer(rows: list[Row]) -> Any:
        # Longest first leaves the shortest tail; its scheduler is first in, first out.
        ordered = sorted(rows, key=lambda row: -(len(row.prompt_ids) + row.num_new_tokens))
        found = []
        with session() as manager:
            for row in ordered:
                manager.add_request(list(row.prompt_ids), row.key, max_new_tokens=row.num_new_tokens)
            while len(found) < len(rows):
                result = manager.get_result(timeout=1)
                if result is None and not manager.is_running():
                    raise RuntimeError(f"its thread ended after {len(found)} of {len(rows)} rows")
                if result is not None and result.error:
                    raise RuntimeError(result.error)
                if result is not None and result.is_finished():
                    found.append((result.request_id, result.generated_tokens))
        return found, {}

    return answer
