"""Counts and cuts prompts on executors with the model's own tokenizer, before any model is loaded."""

from collections.abc import Callable, Sequence

import pandas as pd
from pyspark.sql import Column
from pyspark.sql.pandas.functions import pandas_udf

from dolly_batch.tasks.base import TaskModel
from dolly_batch.tasks.truncate import Side, make_fit

COUNT_TYPE = "num_tokens INT, is_bound BOOLEAN"
CUT_TYPE = "num_tokens INT, is_bound BOOLEAN, num_dropped INT, instruction STRING, context STRING"


def count_tokens(model: TaskModel, limit: int) -> Callable[[Column, Column], Column]:
    """A Spark function (instruction, context) -> struct(num_tokens, is_bound); null for a null instruction.

    `is_bound` marks a prompt that is surely longer than `limit` and was not counted out.
    """

    def count(instructions: pd.Series, contexts: pd.Series) -> pd.DataFrame:
        return _count(model, limit, instructions, contexts)

    # Marked so that Spark never evaluates it twice by merging projections.
    udf: Callable[[Column, Column], Column] = pandas_udf(count, COUNT_TYPE).asNondeterministic()  # type: ignore[call-overload]
    return udf


def cut_to_fit(model: TaskModel, limit: int, literals: Sequence[str], side: Side) -> Callable[[Column, Column], Column]:
    """A Spark function (values, context) -> struct as `count_tokens` gives it, and the texts of a prompt that was cut.

    `values` is the array of what stands between the template's literals. `num_dropped` is 0, and the texts null, where
    nothing was cut; a prompt that cannot be made to fit stays as long as it is.
    """
    fixed = tuple(literals)

    def cut(values: pd.Series, contexts: pd.Series) -> pd.DataFrame:
        return _cut(model, limit, fixed, side, values, contexts)

    udf: Callable[[Column, Column], Column] = pandas_udf(cut, CUT_TYPE).asNondeterministic()  # type: ignore[call-overload]
    return udf


def _count(model: TaskModel, limit: int, instructions: pd.Series, contexts: pd.Series) -> pd.DataFrame:
    encoder = model.encoder
    counts: list[tuple[int | None, bool | None]] = []
    for instruction, context in zip(instructions, contexts, strict=True):
        if pd.isna(instruction):
            counts.append((None, None))
            continue
        found = encoder.count(instruction, None if pd.isna(context) else context, limit)
        counts.append((found.num_tokens, not found.is_exact))
    return pd.DataFrame(counts, columns=["num_tokens", "is_bound"]).astype({"num_tokens": "Int32", "is_bound": object})


def _cut(
    model: TaskModel, limit: int, literals: Sequence[str], side: Side, values: pd.Series, contexts: pd.Series
) -> pd.DataFrame:
    encoder = model.encoder
    found: list[tuple[object, ...]] = []
    for own, context in zip(values, contexts, strict=True):
        if own is None or any(value is None for value in own):
            found.append((None, None, None, None, None))
            continue
        cut = make_fit(encoder, literals, list(own), None if pd.isna(context) else context, limit, side)
        if cut.num_dropped and cut.fits:
            found.append((cut.num_tokens, False, cut.num_dropped, cut.instruction, cut.context))
        else:
            found.append((cut.num_tokens + cut.num_dropped, False, 0, None, None))
    names = ["num_tokens", "is_bound", "num_dropped", "instruction", "context"]
    frame = pd.DataFrame(found, columns=names)
    return frame.astype({"num_tokens": "Int32", "is_bound": object, "num_dropped": "Int32"})
