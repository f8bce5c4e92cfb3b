"""The schema of an extracted object: Spark DDL or a JSON Schema in, one reduced JSON Schema out."""

import json
from typing import Any

from dolly_batch.errors import ConfigError
from dolly_batch.tasks.schema.bounds import bound_schema, shortest_answer
from dolly_batch.tasks.schema.ddl import parse_ddl
from dolly_batch.tasks.schema.json_schema import check_schema, plain_schema

__all__ = ["bound_schema", "check_schema", "parse_ddl", "plain_schema", "read_schema", "shortest_answer"]


def read_schema(schema: str | dict[str, Any], where: str = "task.schema") -> dict[str, Any]:
    """Read Spark DDL, or a JSON Schema as a mapping or as text, for the job and the SQL function alike.

    Raises ConfigError, with the path of the part below `where`, for what a typed column or a grammar cannot hold.
    """
    if isinstance(schema, str):
        if not schema.lstrip().startswith("{"):
            return parse_ddl(schema, where)
        try:
            schema = json.loads(schema, object_pairs_hook=_each_key_once)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{where}: not readable JSON: {error}") from error
    return check_schema(schema, where)


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError for a key that stands in it twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} is given twice")
    return found
