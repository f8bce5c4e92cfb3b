"""Outputs in a model of the store: a Delta-like table with versions, and folders of Parquet on the disk.

The Parquet commit is the package's own, over lists of rows in place of data frames.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from dolly_batch.errors import Stopped
from dolly_batch.spark.decisions import UPDATE, identified_by, publishing
from dolly_batch.spark.files import Files
from dolly_batch.spark.plan.manifest import BESIDE, Plan, PlanFolder
from dolly_batch.spark.tables import delta_log, parquet
from dolly_batch.spark.tables.delta_commit import TRIES
from dolly_batch.spark.tables.delta_log import Log, Version, application, own_version

OUT = "/out"


@dataclass(frozen=True)
class Row:
    """A row of the output. `text` is what was asked, by which the test knows it; the package sees the keys alone."""

    id: str | None
    text: str
    row_key: str
    request_key: str
    status: str
    attempt: int = 1
    plan_id: str = ""
    created_at: str = ""

    def key(self, names: Sequence[str] = ("row_key", "request_key")) -> tuple[str, ...]:
        return tuple(getattr(self, name) for name in names)


class Rows(list[Row]):
    """In place of a data frame."""

    def drop(self, *_: str) -> "Rows":
        return self

    def text(self) -> str:
        return json.dumps([asdict(row) for row in self])

    @classmethod
    def of(cls, text: str | None) -> "Rows":
        if text is None:
            raise FileNotFoundError("rows that should be there")
        return cls(Row(**row) for row in json.loads(text))


@dataclass
class DeltaTable:
    """Versions of a table, each with its note; commits are atomic."""

    versions: list[tuple[str, Rows]] = field(default_factory=list)
    transactions: dict[str, str] = field(default_factory=dict)
    turn: int = -1

    @property
    def rows(self) -> Rows | None:
        return self.versions[-1][1] if self.versions else None

    def create(self) -> None:
        if not self.versions:
            self.versions.append(("CREATE", Rows()))

    def overwrite(self, plan: Plan, rows: Rows) -> None:
        """What `delta_commit` has Delta do, with Delta's transactions."""
        if self.transactions.get("overwrite", "") < plan.created_at:
            self.transactions["overwrite"] = plan.created_at
            self.versions.append((application(plan), rows))

    def write(self, plan: Plan, mode: str, rows: Rows, log: Log, only_adds: bool) -> None:
        """The same for rows that are appended or merged; nothing where the turn is taken."""
        if not self.is_taken(log.turn):
            self.turn = log.turn
            found = [*(self.rows or []), *rows] if log.knows and only_adds else self._merged(plan, mode, rows)
            self.versions.append((f"{application(plan)} {log.turn}", Rows(found)))

    def is_taken(self, turn: int) -> bool:
        return self.turn >= turn

    def since(self, seen: Mapping[str, Any]) -> list[Version]:
        found = [Version(at, note, note not in ("CREATE", "DELETE")) for at, (note, _) in enumerate(self.versions)]
        return [version for version in reversed(found) if version.number > seen["version"]]

    def _merged(self, plan: Plan, mode: str, rows: Rows) -> Rows:
        rule, table = publishing(mode, plan.retries), Rows(self.rows or [])
        inserted = Rows()
        for row in rows:
            met = [i for i, old in enumerate(table) if old.key(rule.keys) == row.key(rule.keys)]
            if not met:
                inserted.append(row)
            for i in met:
                facts = {
                    "later": row.attempt > table[i].attempt,
                    "changed": row.request_key != table[i].request_key,
                    "newer_there": table[i].created_at > row.created_at,
                }
                if rule.replaces.decide(**facts) == UPDATE:
                    table[i] = row
        return Rows([*table, *inserted])


@dataclass
class Output:
    """The output of a job as one start has opened it."""

    format: str
    mode: str
    files: Files
    delta: DeltaTable
    path: str = OUT

    @property
    def job(self) -> Any:
        return SimpleNamespace(output=SimpleNamespace(mode=self.mode, name="out"))

    def output_name(self, name: str) -> str:
        return name

    def stop(self, at: str) -> None:
        """A start may be stopped here."""
        self.files.exists(f"{OUT}/_delta_log/{at}")

    def read(self, why: str = "read") -> Rows | None:
        if self.format == "delta":
            self.stop(why)
            return self.delta.rows
        names = [name for name in self.files.list_names(self.path) if not name.startswith((".", "_"))]
        return self.of_folders(names) if names else None

    def of_folders(self, names: Collection[str]) -> Rows:
        """The rows of some folders `plan_id=...`, or of the file of an overwritten table."""
        rows = Rows()
        for name in names:
            part = f"{self.path}/{name}/part" if name.startswith("plan_id=") else f"{self.path}/{name}"
            found = Rows.of(self.files.read(part) or "[]")
            rows += [replace(row, plan_id=name.partition("=")[2] or row.plan_id) for row in found]
        return rows

    def seen(self) -> dict[str, Any] | None:
        if self.format == "delta":
            return {"version": len(self.delta.versions) - 1, "turn": self.delta.turn if self.delta.versions else None}
        return parquet.FORMAT.seen(self)  # type: ignore[arg-type]

    def is_committed(self, folder: PlanFolder, plan: Plan) -> bool:
        if self.format == "delta":
            return own_version(plan, self.delta.since(_seen(folder))) is not None
        return parquet.FORMAT.finish_commit(self, folder, plan)  # type: ignore[arg-type]

    def commit(
        self,
        folder: PlanFolder,
        plan: Plan,
        rows: Rows,
        loses_reply: Callable[[], bool],
        read_answers: Callable[[], Rows],
    ) -> None:
        if self.format == "parquet":
            parquet.FORMAT.commit(self, folder, plan, rows)  # type: ignore[arg-type]
            return
        self.stop("commit")
        if self.mode == "overwrite":
            read_answers()
            self.delta.overwrite(plan, rows)
        elif not self._in_turn(plan, rows, _seen(folder), read_answers):
            raise Stopped("others were first each time")
        if loses_reply():
            raise Stopped("the reply of a commit was lost")

    def _in_turn(self, plan: Plan, rows: Rows, seen: Mapping[str, Any], read_answers: Callable[[], Rows]) -> bool:
        """As `delta_commit` does it, with a place to be stopped between the look and the commit."""
        self.delta.create()

        def look() -> Log:
            return delta_log.log_of(plan, seen, self.delta.since(seen))

        def write(log: Log) -> None:
            self.stop("turn")
            read_answers()
            self.delta.write(plan, self.mode, rows, log, seen["only_adds"])

        return delta_log.take_turns(look, write, TRIES)

    def committed(self, folder: PlanFolder, plan: Plan) -> tuple[Rows, bool]:
        """The table as the plan's commit has left it, and whether it alone has added rows since it was planned."""
        since = self.delta.since(_seen(folder)) if self.format == "delta" else []
        own = own_version(plan, since)
        if own is None:
            return self.read() or Rows(), self.format == "parquet"
        return self.delta.versions[own][1], delta_log.was_alone(plan, since)

    @property
    def keys(self) -> tuple[str, ...]:
        return identified_by(self.mode)


def _seen(folder: PlanFolder) -> dict[str, Any]:
    """What a plan has kept of the table; of a plan that has kept nothing, what `delta_log.seen_by` makes of it."""
    return {"version": -1, "turn": None, "only_adds": False, **folder.facts(BESIDE)}


@contextmanager
def parquet_of_lists(patch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Have the Parquet commit write and compare lists of rows."""

    def write(output: Output, rows: Rows, path: str) -> None:
        output.files.write(f"{path}/part", rows.text())

    def without(output: Output, rows: Rows, folders: Collection[str]) -> Rows:
        theirs = {row.key() for row in output.of_folders(folders)} if folders else set()
        return Rows(row for row in rows if row.key() not in theirs)

    def overlap(output: Output, own: str, folders: Collection[str]) -> bool:
        theirs = {row.key() for row in output.of_folders(folders)}
        return any(row.key() in theirs for row in output.of_folders([own]))

    patch.setattr(parquet, "_write", write)
    patch.setattr(parquet, "_without", without)
    patch.setattr(parquet, "_overlap", overlap)
    yield
