"""What is decided for each row, as truth tables: Spark's expressions are made from them, and a model of the store in
tests/store_model runs them without Spark.

Nothing here knows columns or tables.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import and_
from typing import Any

from pyspark.sql import Column
from pyspark.sql import functions as F

# State of a row: to be answered; skipped, with a status; existing in the output; carried over into a new output; or
# given a copy of the answer that the output has for another row. The values are on disk, in snapshots and in plan ids.
TODO, SKIPPED, EXISTING, CARRIED_OVER, COPIED = "todo", "aside", "held", "reused", "copied"
# No states, but parts of a snapshot. Where several rows ask the same, TODO holds one of them and this all of them.
ASKING = "asking"
ANSWERS = "answers"  # those that are copied, by request key
DONE = "done"
UPDATE, KEEP = "update", "keep"


@dataclass(frozen=True)
class TruthTable:
    """Rules in their order: the first one whose facts all are as it says decides. The last one has no facts.

    A fact that is null, or not given, is false.
    """

    rules: tuple[tuple[Mapping[str, bool], str], ...]

    def decide(self, **facts: bool | None) -> str:
        """The decision for one row."""
        return next(
            to for wanted, to in self.rules if all(bool(facts.get(name)) == is_ for name, is_ in wanted.items())
        )

    def may_be(self, decision: str) -> bool:
        """Whether a row can be decided so."""
        return any(to == decision for _, to in self.rules)

    def column(self, **facts: Column) -> Column:
        """The decision for each row, as an expression over expressions of its facts."""
        known = {name: F.coalesce(fact, F.lit(False)) for name, fact in facts.items()}
        decision = F.lit(self.rules[-1][1])
        for wanted, to in reversed(self.rules[:-1]):
            terms = [known.get(name, F.lit(False)) == F.lit(is_) for name, is_ in wanted.items()]
            decision = F.when(reduce(and_, terms), to).otherwise(decision)
        return decision


# Is a row asked (again)? `there`: the output holds it. `retried`: with a status that `--retry` names. `resumable`: its
# tokens can be reused; `full`: it has some, and no position is left. `runs`: nothing keeps the row from being asked.
# DONE is EXISTING, or CARRIED_OVER where the output is overwritten.
ASKED = TruthTable(
    (
        ({"there": True, "retried": False}, DONE),
        ({"there": True, "full": True}, DONE),
        ({"runs": True}, TODO),
        ({"too_long": True, "resumable": True}, TODO),  # its limit is its own, not the job's that it exceeds
        ({}, SKIPPED),
    )
)

# Does a new row replace the one that it meets in the output? `later`: it is a later attempt. `changed`: it asks
# something else. `newer_there`: the other one is of a plan made later than this, which commits late.
_REPLACES = {
    "append": TruthTable((({}, KEEP),)),
    "retry": TruthTable((({"later": True}, UPDATE), ({}, KEEP))),
    "merge": TruthTable(
        (
            ({"newer_there": True}, KEEP),
            ({"changed": True}, UPDATE),
            ({"later": True}, UPDATE),
            ({}, KEEP),
        )
    ),
}
ROW_KEY, REQUEST_KEY = "row_key", "request_key"


@dataclass(frozen=True)
class Publishing:
    """How rows enter a table that holds others: which of them it meets, by `keys`; and which of those it replaces.

    A row that meets none is inserted.
    """

    keys: tuple[str, ...]
    replaces: TruthTable


def identified_by(mode: str) -> tuple[str, ...]:
    """The keys by which a row of the output is known in this mode: it holds no two rows with the same ones."""
    return (ROW_KEY,) if mode == "merge" else (ROW_KEY, REQUEST_KEY)


def publishing(mode: str, retries: bool) -> Publishing:
    """Publishing in mode append or merge."""
    return Publishing(identified_by(mode), _REPLACES["retry" if mode == "append" and retries else mode])


def miscounted(want: Any, have: Any, greatest: Callable[[Any, Any], Any], none: Any = 0) -> tuple[Any, Any]:
    """How many rows of one key are missing, and how many are too many; of numbers, or of columns."""
    return greatest(want - have, none), greatest(have - want, none)


def is_complete(num_planned: int, num_found: int, num_missing: int, num_repeated: int) -> bool:
    """Whether an audit that counted this may say that all planned rows are there, once each."""
    return num_found == num_planned and not num_missing and not num_repeated
