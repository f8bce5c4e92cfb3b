"""vLLM's offline mode: all prompts in one call, a length for each row."""

from collections.abc import Callable
from typing import Any

from vllm import LLM, SamplingParams

from benchmarks.contest.work import Row


def load(setup: dict[str, Any]) -> Callable[[list[Row]], Any]:
    """`setup`: model, dtype. vLLM binds its threads to cores itself. Prompts of earlier runs are forgotten."""
    llm = LLM(model=setup["model"], dtype=setup["dtype"], enable_prefix_caching=True, max_model_len=2048)

    def answer(rows: list[Row]) -> Any:
        llm.reset_prefix_cache()
        prompts = [{"prompt_token_ids": list(row.prompt_ids)} for row in rows]
        params = [SamplingParams(temperature=0.0, max_tokens=row.num_new_tokens, ignore_eos=True) for row in rows]
        results = llm.generate(prompts, params, use_tqdm=False)
        return [(row.key, result.outputs[0].token_ids) for row, result in zip(rows, results, strict=True)], {}

    return answer
