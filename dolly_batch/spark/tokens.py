"""Counting prompt tokens on executors, with the model's own tokenizer, before any model is loaded."""

from collections.abc import Callable
from functools import lru_cache

import pandas as pd
from pyspark.sql import Column
from pyspark.sql.pandas.functions import pandas_udf

from dolly_batch.prompt import PromptEncoder

COUNT_TYPE = "num_tokens INT, is_bound BOOLEAN"


def count_tokens(model_folder: str, limit: int) -> Callable[[Column, Column], Column]:
    """A Spark function (instruction, context) -> struct(num_tokens, is_bound); null for a null instruction.

    `is_bound` marks a prompt that is surely longer than `limit` and was not counted out.
    """

    def count(instructions: pd.Series, contexts: pd.Series) -> pd.DataFrame:
        return _count(model_folder, limit, instructions, contexts)

    # Marked so that Spark never evaluates it twice by merging projections.
    udf: Callable[[Column, Column], Column] = pandas_udf(count, COUNT_TYPE).asNondeterministic()  # type: ignore[call-overload]
    return udf


@lru_cache(maxsize=4)
def _encoder(model_folder: str) -> PromptEncoder:
    return PromptEncoder.from_folder(model_folder)


def _count(model_folder: str, limit: int, instructions: pd.Series, contexts: pd.Series) -> pd.DataFrame:
    encoder = _encoder(model_folder)
    counts: list[tuple[int | None, bool | None]] = []
    for instruction, context in zip(instructions, contexts, strict=True):
        if pd.isna(instruction):
            counts.append((None, None))
            continue
        found = encoder.count(instruction, None if pd.isna(context) else context, limit)
        counts.append((found.num_tokens, not found.is_exact))
    return pd.DataFrame(counts, columns=["num_tokens", "is_bound"]).astype({"num_tokens": "Int32", "is_bound": object})
