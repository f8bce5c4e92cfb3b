"""Spark's `predict_batch_udf`: batches of prompts, padded on the left, generated together to the longest answer.

Rows are sorted by the length of their prompts, so that little is padded; a batch is a task, so that the workers end at
nearly the same time. A row is stopped at its own length (`StoppingCriteria`), but its slot stays until the batch ends.
"""

from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.contest.runners.spark import Answer, ask, ids_to_text, load_model, start_session, text_to_ids, warm
from benchmarks.contest.work import Row, until_stop


def load(setup: dict[str, Any]) -> Answer:
    """`setup`: model, dtype, processes, threads, batch_size."""
    from pyspark.ml.functions import predict_batch_udf

    def make_predict() -> Any:
        def predict(prompts: np.ndarray, limits: np.ndarray) -> np.ndarray:
            model = load_model(setup["model"], setup["dtype"], setup["threads"], tuple(setup["stop_ids"]))
            return _generate(model, [text_to_ids(prompt) for prompt in prompts], limits.tolist())

        return predict

    session = start_session(setup)
    function = predict_batch_udf(make_predict, return_type=_string(), batch_size=setup["batch_size"])
    warm(session, function, setup["processes"])

    def answer(rows: list[Row]) -> Any:
        size = setup["batch_size"]
        ordered = sorted(rows, key=lambda row: -len(row.prompt_ids))
        num_tasks = -(-len(ordered) // size)
        # As Spark cuts a list into slices.
        cuts = [i * len(ordered) // num_tasks for i in range(num_tasks + 1)]
        batches = [ordered[start:stop] for start, stop in pairwise(cuts)]
        answers = ask(session, function, ordered, size)
        lengths = {key: len(until_stop(ids, setup["stop_ids"])) for key, ids in answers}
        slots = sum(len(batch) * max(lengths[row.key] for row in batch) for batch in batches)
        return answers, {"occupancy": sum(lengths.values()) / max(1, slots)}

    return answer


def _string() -> Any:
    from pyspark.sql.types import StringType

    return StringType()


def _generate(model: Any, prompts: list[list[int]], limits: list[int]) -> np.ndarray:
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    length = max(map(len, prompts))

    class OwnLength(StoppingCriteria):
        def __call__(self, ids: Any, scores: Any, **_: Any) -> Any:
            return torch.tensor([ids.shape[1] - length >= limit for limit in limits])

    ids = torch.tensor([[0] * (length - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.inference_mode():
        output = model.generate(
            ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=max(limits),
            use_cache=True,
            stopping_criteria=StoppingCriteriaList([OwnLength()]),
        )
    answers = [row[length : length + limit] for row, limit in zip(output.tolist(), limits, strict=True)]
    return np.array([ids_to_text(answer) for answer in answers], dtype=object)
