"""What Dolly's public examples come to on Spark: a pandas UDF that calls `generate` for one row after the other."""

from typing import Any

import pandas as pd

from benchmarks.contest.runners.spark import Answer, ask, ids_to_text, load_model, start_session, text_to_ids, warm
from benchmarks.contest.work import Row

_ROWS_A_TASK = 4


def load(setup: dict[str, Any]) -> Answer:
    """`setup`: model, dtype, processes, threads."""
    from pyspark.sql.functions import pandas_udf

    def answer_rows(prompts: pd.Series, limits: pd.Series) -> pd.Series:
        import torch

        model = load_model(setup["model"], setup["dtype"], setup["threads"], tuple(setup["stop_ids"]))
        answers = []
        for prompt, limit in zip(prompts, limits, strict=True):
            ids = torch.tensor([text_to_ids(prompt)])
            with torch.inference_mode():
                output = model.generate(
                    ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=int(limit), use_cache=True
                )
            answers.append(ids_to_text(output[0, ids.shape[1] :].tolist()))
        return pd.Series(answers)

    session = start_session(setup)
    function = pandas_udf(answer_rows, "string")
    warm(session, function, setup["processes"])

    def answer(rows: list[Row]) -> Any:
        # The longest rows first, so that the workers end at nearly the same time.
        ordered = sorted(rows, key=lambda row: -row.num_new_tokens)
        rows_a_task = 1 if len(rows) < 100 else _ROWS_A_TASK
        return ask(session, function, ordered, rows_a_task), {"occupancy": 1.0}

    return answer
