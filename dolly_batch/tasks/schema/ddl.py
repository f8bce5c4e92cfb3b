"""Spark DDL as a JSON Schema, in Python alone: where an executor has the text of a schema and no JVM to ask."""

import re
from typing import Any

from dolly_batch.errors import ConfigError
from dolly_batch.tasks.schema.json_schema import INT_RANGE

_TOKEN = re.compile(r"\s*(?:(`(?:[^`]|``)+`)|(\w+)|([<>,:()]))")
_INTEGERS = {"tinyint": 8, "byte": 8, "smallint": 16, "short": 16, "int": 32, "integer": 32, "bigint": 64, "long": 64}
_OTHERS: dict[str, dict[str, Any]] = {
    "string": {"type": "string"},
    "boolean": {"type": "boolean"},
    "float": {"type": "number"},
    "real": {"type": "number"},
    "double": {"type": "number"},
    "date": {"type": "string", "format": "date"},
    "timestamp": {"type": "string", "format": "date-time"},
    "timestamp_ntz": {"type": "string", "format": "date-time"},
}


def parse_ddl(ddl: str) -> dict[str, Any]:
    """Return the JSON Schema of `name STRING, tags ARRAY<STRING>, ...`. Raises ConfigError, which shows the fault."""
    parser = _Parser(ddl)
    schema = parser.fields("")
    if not schema["properties"]:
        raise ConfigError("the schema names no field; write it as `name STRING, age INT`")
    return schema


class _Parser:
    """Recursive descent over the tokens of a DDL text."""

    def __init__(self, ddl: str) -> None:
        self._ddl = ddl
        self._tokens: list[str] = []
        at = 0
        while at < len(ddl.rstrip()):
            found = _TOKEN.match(ddl, at)
            if found is None:
                raise self._fault(ddl[at:].strip()[:1])
            self._tokens.append(found[0].strip())
            at = found.end()

    def fields(self, end: str) -> dict[str, Any]:
        """Fields up to `end`, which is taken too; "" is the end of the text."""
        properties: dict[str, Any] = {}
        while self._next() != end:
            name = self._take()
            name = name[1:-1].replace("``", "`") if name.startswith("`") else name
            if self._next() == ":":
                self._take()
            if name in properties or not re.fullmatch(r"[^<>,:()]+", name):
                raise self._fault(name)
            properties[name] = self._type()
            if self._next() == ",":
                self._take()
            elif self._next() != end:
                raise self._fault(self._next())
        self._take()
        return {"type": "object", "properties": properties}

    def _type(self) -> dict[str, Any]:
        word = self._take()
        kind = word.lower()
        if kind == "struct":
            self._expect("<")
            return self.fields(">")
        if kind == "array":
            self._expect("<")
            items = self._type()
            self._expect(">")
            return {"type": "array", "items": items}
        if kind in ("varchar", "char"):
            self._expect("(")
            length = self._take()
            self._expect(")")
            if not length.isdigit():
                raise self._fault(length)
            return {"type": "string", "maxLength": int(length)}
        if kind in _INTEGERS:
            half = 2 ** (_INTEGERS[kind] - 1)
            low, high = max(-half, INT_RANGE["minimum"]), min(half - 1, INT_RANGE["maximum"])
            return {"type": "integer", "minimum": low, "maximum": high}
        if kind not in _OTHERS:
            raise self._fault(word)
        return dict(_OTHERS[kind])

    def _next(self) -> str:
        return self._tokens[0] if self._tokens else ""

    def _take(self) -> str:
        return self._tokens.pop(0) if self._tokens else ""

    def _expect(self, token: str) -> None:
        if (found := self._take()) != token:
            raise self._fault(found)

    def _fault(self, found: str) -> ConfigError:
        shown = f"found `{found}`" if found else "it ends too early"
        return ConfigError(
            f"the schema {self._ddl!r} cannot be read: {shown}; types are string, integers, double, boolean, date, "
            "timestamp, array<...> and struct<...>"
        )
