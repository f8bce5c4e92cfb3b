"""Spark DDL as a JSON Schema, in Python alone: executors have the text of a schema and no JVM to ask."""

import re
from typing import Any

from dolly_batch.errors import ConfigError
from dolly_batch.tasks.schema.json_schema import INT_RANGE, SPARK_TYPE

_STRING = r"""'(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.|"")*\""""
_TOKEN = re.compile(rf"\s*(?:`(?:[^`]|``)+`|{_STRING}|\w+|[<>,:()])", re.DOTALL)
_INTEGERS = {
    **{"tinyint": (8, "byte"), "byte": (8, "byte"), "smallint": (16, "short"), "short": (16, "short")},
    **{"int": (32, "integer"), "integer": (32, "integer"), "bigint": (64, "long"), "long": (64, "long")},
}
_OTHERS: dict[str, dict[str, Any]] = {
    "string": {"type": "string"},
    "boolean": {"type": "boolean"},
    "float": {"type": "number", SPARK_TYPE: "float"},
    "real": {"type": "number", SPARK_TYPE: "float"},
    "double": {"type": "number"},
    "date": {"type": "string", "format": "date"},
    "timestamp": {"type": "string", "format": "date-time"},
    "timestamp_ltz": {"type": "string", "format": "date-time"},
    "timestamp_ntz": {"type": "string", "format": "date-time", SPARK_TYPE: "timestamp_ntz"},
}


def parse_ddl(ddl: str, where: str = "task.schema") -> dict[str, Any]:
    """Return the JSON Schema of `name STRING, tags ARRAY<STRING>, ...`, or of `STRUCT<...>`.

    Comments and NOT NULL are read and have no effect. Raises ConfigError, which names the fault and where it stands.
    """
    return _Parser(ddl, where).schema()


class _Parser:
    """Recursive descent over the tokens of a DDL text."""

    def __init__(self, ddl: str, where: str) -> None:
        self._ddl = ddl
        self._where = where
        self._tokens: list[str] = []
        at = 0
        while at < len(ddl.rstrip()):
            token = _TOKEN.match(ddl, at)
            if token is None:
                raise self._fault(ddl[at:].strip()[:1])
            self._tokens.append(token[0].strip())
            at = token.end()

    def schema(self) -> dict[str, Any]:
        """The schema of the whole text."""
        if [token.lower() for token in self._tokens[:2]] == ["struct", "<"]:
            schema = self._type()
            if self._tokens:
                raise self._fault(self._next())
        else:
            schema = self._fields("")
        if not schema["properties"]:
            raise ConfigError(f"{self._where}: names no field; write it as `name STRING, age INT`")
        return schema

    def _fields(self, end: str) -> dict[str, Any]:
        """Fields up to `end`, which is taken too; "" is the end of the text."""
        properties: dict[str, Any] = {}
        while self._next() != end:
            name = self._name()
            if self._next() == ":":
                self._take()
            if name in properties:
                raise self._fault(name)
            properties[name] = self._type()
            self._skip_attributes()
            if self._next() == ",":
                self._take()
            elif self._next() != end:
                raise self._fault(self._next())
        self._take()
        return {"type": "object", "properties": properties}

    def _name(self) -> str:
        token = self._take()
        if token.startswith("`"):
            return token[1:-1].replace("``", "`")
        if not re.fullmatch(r"\w+", token):
            raise self._fault(token)
        return token

    def _skip_attributes(self) -> None:
        """NOT NULL and COMMENT '...' behind a field's type."""
        if self._next().lower() == "not":
            self._take()
            self._expect("null")
        if self._next().lower() == "comment":
            self._take()
            if not self._next().startswith(("'", '"')):
                raise self._fault(self._next())
            self._take()

    def _type(self) -> dict[str, Any]:
        word = self._take()
        kind = word.lower()
        if kind == "struct":
            self._expect("<")
            return self._fields(">")
        if kind == "array":
            self._expect("<")
            items = self._type()
            self._expect(">")
            return {"type": "array", "items": items}
        if kind in ("varchar", "char", "character"):
            self._expect("(")
            length = self._take()
            self._expect(")")
            if not length.isdigit():
                raise self._fault(length)
            return {"type": "string", "maxLength": int(length)}
        if kind in _INTEGERS:
            bits, spark_type = _INTEGERS[kind]
            half = 2 ** (bits - 1)
            low, high = max(-half, INT_RANGE["minimum"]), min(half - 1, INT_RANGE["maximum"])
            return {"type": "integer", "minimum": low, "maximum": high, SPARK_TYPE: spark_type}
        if kind not in _OTHERS:
            raise self._fault(word)
        return dict(_OTHERS[kind])

    def _next(self) -> str:
        return self._tokens[0] if self._tokens else ""

    def _take(self) -> str:
        return self._tokens.pop(0) if self._tokens else ""

    def _expect(self, token: str) -> None:
        if (taken := self._take()).lower() != token:
            raise self._fault(taken)

    def _fault(self, token: str) -> ConfigError:
        shown = f"found `{token}`" if token else "it ends too early"
        return ConfigError(
            f"{self._where}: {self._ddl!r} is neither a JSON Schema nor Spark DDL that can be extracted: {shown}; "
            "types are string, integers, double, boolean, date, timestamp, array<...> and struct<...>"
        )
