"""Tables of any types, names and values: ids and kept columns come back as they were, or the job is refused at once.

Tables are written and read back by pyarrow, csv, json and deltalake, not by Spark. Each example is a job, so there are
few; `make chaos` tries many.
"""

import csv
import datetime as dt
import json
import math
import string
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession

from dolly_batch import DollyBatchError
from tests.spark.desk import Desk, echo_document

QUESTION = "instruction"
TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
# Letters, digits, and what SQL, paths and file formats give a meaning to.
NAMES = st.text(
    [*string.ascii_letters, *string.digits, *" .`'\"[]{}()$-_:!?*%#@+~&|,;=<>^äß中🙂"], min_size=1, max_size=9
)
UTC_TIMES = st.datetimes(dt.datetime(1, 1, 2), dt.datetime(9999, 12, 30), timezones=st.just(dt.UTC))
LOCAL_TIMES = st.datetimes(dt.datetime(1, 1, 2), dt.datetime(9999, 12, 30))


def decimals(precision: int, scale: int) -> st.SearchStrategy[Decimal]:
    limit = 10**precision - 1
    return st.integers(-limit, limit).map(lambda number: Decimal(f"{number}e-{scale}"))


SCALARS: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.bool_(), st.booleans()),
    *(
        (
            pa.int64() if bits == 64 else getattr(pa, f"int{bits}")(),
            st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1),
        )
        for bits in (8, 16, 32, 64)
    ),
    (pa.float32(), st.floats(width=32)),
    (pa.float64(), st.floats()),
    (pa.decimal128(7, 2), decimals(7, 2)),
    (pa.decimal128(38, 10), decimals(38, 10)),
    (pa.string(), TEXT),
    (pa.binary(), st.binary(max_size=8)),
    (pa.date32(), st.dates(dt.date(1, 1, 1), dt.date(9999, 12, 31))),
    (pa.timestamp("us", "UTC"), UTC_TIMES),
    (pa.timestamp("us"), LOCAL_TIMES),
]
OF_IDS = [pair for pair in SCALARS if not pa.types.is_floating(pair[0]) and not pa.types.is_boolean(pair[0])]


@st.composite
def typed(draw: st.DrawFn, depth: int = 2) -> tuple[pa.DataType, st.SearchStrategy[Any]]:
    """A type, and a strategy for its values, null among them."""
    kind = draw(st.sampled_from(["scalar", "scalar", "list", "struct", "map"] if depth else ["scalar"]))
    if kind == "scalar":
        made, values = draw(st.sampled_from(SCALARS))
    elif kind == "list":
        inner, values = draw(typed(depth - 1))
        made, values = pa.list_(inner), st.lists(values, max_size=3)
    elif kind == "map":
        inner, values = draw(typed(depth - 1))
        pairs = st.dictionaries(TEXT, values, max_size=3).map(lambda found: list(found.items()))
        made, values = pa.map_(pa.string(), inner), pairs
    else:
        fields = {name: draw(typed(depth - 1)) for name in draw(unique_names(1, 2))}
        made = pa.struct([(name, inner) for name, (inner, _) in fields.items()])
        values = st.fixed_dictionaries({name: inner for name, (_, inner) in fields.items()})
    return made, st.none() | values


def unique_names(least: int, most: int) -> st.SearchStrategy[list[str]]:
    names = NAMES.filter(lambda name: name.strip() == name and name.lower() not in ("id", QUESTION))
    return st.lists(names, min_size=least, max_size=most, unique_by=str.lower)


@dataclass
class Example:
    """A table: `id`, the question, and columns to keep."""

    ids: list[Any]
    id_type: pa.DataType
    kept: dict[str, tuple[pa.DataType, list[Any]]]

    @property
    def arrow(self) -> pa.Table:
        columns = {"id": pa.array(self.ids, self.id_type), QUESTION: [f"Say {n}." for n in range(len(self.ids))]}
        return pa.table(columns | {name: pa.array(values, kind) for name, (kind, values) in self.kept.items()})


@st.composite
def typed_tables(draw: st.DrawFn) -> Example:
    id_type, ids = draw(st.sampled_from(OF_IDS))
    drawn = draw(st.lists(ids, min_size=1, max_size=5, unique=True))
    columns = {}
    for name in draw(unique_names(1, 5)):
        kind, values = draw(typed())
        columns[name] = (kind, [draw(values) for _ in drawn])
    return Example(drawn, id_type, columns)


@st.composite
def text_tables(draw: st.DrawFn) -> Example:
    """Ids and cells are strings: what CSV can hold."""
    cells = TEXT.filter(lambda text: not {"\r", "\n", "\0"} & {*text} and text.strip() == text)
    ids = draw(st.lists(cells.filter(bool), min_size=1, max_size=5, unique=True))
    names = draw(unique_names(1, 4))
    return Example(ids, pa.string(), {name: (pa.string(), [draw(cells) or None for _ in ids]) for name in names})


def write_parquet(example: Example, path: Path) -> dict[str, Any]:
    pq.write_table(example.arrow, path)
    return {"format": "parquet"}


def write_csv(example: Example, path: Path) -> dict[str, Any]:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_MINIMAL, lineterminator="\n")
        writer.writerow(example.arrow.column_names)
        writer.writerows([("" if cell is None else cell) for cell in row.values()] for row in example.arrow.to_pylist())
    return {"format": "csv"}


def write_json(example: Example, path: Path) -> dict[str, Any]:
    path.write_text("".join(json.dumps(row) + "\n" for row in example.arrow.to_pylist()), encoding="utf-8")
    return {
        "format": "json",
        "schema": ", ".join(f"`{name.replace('`', '``')}` string" for name in example.arrow.column_names),
    }


Write = Callable[[Example, Path], dict[str, Any]]


def read_back(out: Path) -> pa.Table:
    if (out / "_delta_log").is_dir():
        return DeltaTable(str(out)).to_pyarrow_table()
    return ds.dataset(str(out), exclude_invalid_files=True).to_table()


def same(found: Any, expected: Any) -> bool:
    """Equal values of equal types; NaN is NaN, and 0.0 is not -0.0."""
    if isinstance(expected, float):
        both_nan = isinstance(found, float) and math.isnan(found) and math.isnan(expected)
        return both_nan or (found == expected and math.copysign(1, found) == math.copysign(1, expected))
    if isinstance(expected, dict):
        return found is not None and found.keys() == expected.keys() and all(same(found[k], expected[k]) for k in found)
    if isinstance(expected, list | tuple):
        return found is not None and len(found) == len(expected) and all(map(same, found, expected))
    return type(found) is type(expected) and bool(found == expected)


def refused(desk: Desk) -> DollyBatchError | None:
    """Run the job; the error if it was refused."""
    try:
        desk.run()
    except DollyBatchError as error:
        return error
    return None


def check(desk: Desk, example: Example, write: Write, output: dict[str, Any]) -> None:
    """Run the job over the table: what it kept is what was there, or nothing was done."""
    for name in ("in", "out", "work"):
        assert not (desk.folder / name).exists()
    read = write(example, desk.folder / "in")
    desk.document["input"] = {"path": str(desk.folder / "in"), "id": "id", **read}
    desk.document["output"] |= {"keep": list(example.kept), **output}
    refusal = refused(desk)
    if refusal is not None:
        assert refusal.exit_code == 4, refusal
        assert "Exception" not in str(refusal)
        assert not desk.out.exists()
        assert not list((desk.folder / "work").glob("p*")), "there was no plan"
        return
    table = read_back(desk.out)
    expected = example.arrow
    found = {_key(row["id"]): row for row in table.to_pylist()}
    assert len(found) == len(example.ids) == table.num_rows
    for row in expected.to_pylist():
        own = found[_key(row["id"])]
        assert same(own["id"], row["id"])
        for name in example.kept:
            assert same(own[name], row[name]), (name, expected.schema.field(name), own[name], row[name])
    for name in ("id", *example.kept):
        assert _plain(table.schema.field(name).type) == _plain(expected.schema.field(name).type)
    again = desk.run()
    assert (again.num_answered_by_model, again.num_waves, again.exit_code) == (0, 0, 0), "it takes up its own table"


def _key(value: Any) -> str:
    return repr(value)


def _plain(kind: pa.DataType) -> object:
    """A type without the names that writers give to the items of lists and maps."""
    if pa.types.is_map(kind):
        return ("map", _plain(kind.key_type), _plain(kind.item_type))
    if pa.types.is_list(kind):
        return ("list", _plain(kind.value_type))
    if pa.types.is_struct(kind):
        return ("struct", *((kind.field(at).name, _plain(kind.field(at).type)) for at in range(kind.num_fields)))
    return str(kind)


@pytest.fixture
def new_desk(spark: SparkSession, stage_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Desk]:
    def make() -> Desk:
        folder = tmp_path_factory.mktemp("any")
        document = echo_document(folder)
        document["model"]["stage_dir"] = str(stage_dir)
        document["generation"]["max_new_tokens"] = 8
        return Desk(spark, folder, document)

    return make


def examples(count: int) -> settings:
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    phases = [Phase.explicit, Phase.reuse, Phase.generate]  # an example is a job: shrinking one would take minutes
    return settings(max_examples=count, phases=phases, suppress_health_check=checks, deadline=None, print_blob=True)


PARQUET = {"format": "parquet", "mode": "overwrite"}
DELTA = {"format": "delta", "mode": "append"}


@pytest.mark.long
@examples(1)
@given(example=typed_tables())
def test_any_parquet_table_comes_back(new_desk: Callable[[], Desk], example: Example) -> None:
    check(new_desk(), example, write_parquet, PARQUET)


@pytest.mark.chaos
@examples(1)
@given(example=typed_tables())
def test_any_parquet_table_comes_back_from_delta(
    session: tuple[SparkSession, str | None], new_desk: Callable[[], Desk], example: Example
) -> None:
    if session[1]:
        pytest.skip(session[1])
    check(new_desk(), example, write_parquet, DELTA)


@examples(1)
@given(example=text_tables(), write=st.sampled_from([write_csv, write_json]))
def test_any_table_of_text_comes_back(new_desk: Callable[[], Desk], example: Example, write: Write) -> None:
    check(new_desk(), example, write, PARQUET)


@pytest.mark.chaos
@examples(60)
@given(example=typed_tables(), output=st.sampled_from([PARQUET, DELTA]))
def test_many_tables_of_types(new_desk: Callable[[], Desk], example: Example, output: dict[str, Any]) -> None:
    check(new_desk(), example, write_parquet, output)


@pytest.mark.chaos
@examples(60)
@given(example=text_tables(), write=st.sampled_from([write_csv, write_json]))
def test_many_tables_of_text(new_desk: Callable[[], Desk], example: Example, write: Write) -> None:
    check(new_desk(), example, write, PARQUET)
