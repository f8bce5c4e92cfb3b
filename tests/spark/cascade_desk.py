"""A classification by the echo engine, whose labels a proxy can learn: the label that a text begins with.

Where it begins with none, all labels are as likely, and `none_below` gives the row no label.
"""

import random
from typing import Any

from tests.spark.desk import Desk

LABELS = ["good", "bad", "odd"]
WORDS = ["the", "a", "chair", "table", "lamp", "door", "window", "came", "late", "early", "green", "blue", "tall"]
CASCADE = {"agreement": 0.9, "sample": 200, "gold": None}
TASK = {"kind": "classify", "labels": LABELS, "instruction": "What is it?", "none_below": 0.5, "cascade": CASCADE}


def told(num_rows: int, seed: int = 1, first: int = 0) -> list[dict[str, Any]]:
    """Rows of different texts, with what the echo engine says of each as `gold`: no label for one in eight."""
    numbers = random.Random(seed)
    rows = []
    for at in range(first, first + num_rows):
        label = numbers.choices([*LABELS, None], [5, 3, 1, 1.3])[0]
        words = [*numbers.sample(WORDS, 4), str(at)]
        text = f"{label}\n{' '.join(words)}" if label else f"none of them {' '.join(words)}"
        rows.append({"id": f"r{at:05d}", "text": text, "gold": label})
    return rows


def again(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Other rows that ask the same."""
    return [{**row, "id": f"again-{row['id']}"} for row in rows]


def prepared(document: dict[str, Any], folder: Any, shard_rows: int = 120) -> None:
    """Make a job's document classify with a cascade, in waves of two shards of about `shard_rows` rows."""
    schema = "id STRING, text STRING, gold STRING"
    document["input"] = {"path": str(folder / "input.jsonl"), "format": "json", "id": "id", "schema": schema}
    document["task"] = {**TASK, "cascade": dict(CASCADE)}
    document["output"] |= {"keep": ["gold"]}
    document["plan"] = {"max_shard_rows": shard_rows, "shards_per_slot": 1, "slots": 2}
    document.pop("generation", None)


def answers(desk: Desk) -> dict[str, tuple[Any, ...]]:
    """What the table says of each row that no start and no place of a folder changes."""
    names = ("response", "status", "confidence", "margin", "answered_by", "proxy_hash", "num_prompt_tokens")
    return {row["id"]: tuple(row[name] for name in names) for row in desk.rows()}
