"""The schema of an extracted object: Spark DDL or a JSON Schema in, one reduced JSON Schema out."""

import json
from typing import Any

from dolly_batch.errors import ConfigError
from dolly_batch.tasks.schema.ddl import parse_ddl
from dolly_batch.tasks.schema.json_schema import check_schema


def read_schema(schema: str | dict[str, Any], where: str = "task.schema") -> dict[str, Any]:
    """Read Spark DDL, or a JSON Schema as a mapping or as text, for the job and the SQL function alike.

    Raises ConfigError, with the path of the part below `where`, for what a typed column or a grammar cannot hold.
    """
    if isinstance(schema, str):
        if not schema.lstrip().startswith("{"):
            return parse_ddl(schema, where)
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise ConfigError(f"{where}: not readable JSON: {error}") from error
    return check_schema(schema, where)
