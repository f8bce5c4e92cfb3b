"""Spark DDL as a JSON Schema, in Python alone: executors have the text of a schema and no JVM to ask."""

import re
from typing import Any

from dolly_batch.errors import ConfigError
from dolly_batch.tasks.schema.json_schema import INT_RANGE, MAX_DEPTH, SPARK_TYPE
from dolly_batch.tasks.schema.values import MAX_COUNT, check_text, shown

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

    A COMMENT is the field's description, NOT NULL makes it `required`. Raises ConfigError, which names the fault and
    where it stands.
    """
    return _Parser(check_text(ddl, where), where).schema()


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
            schema = self._type(self._where, 0)
            if self._tokens:
                raise self._fault(self._next())
            return schema
        return self._fields("", self._where, 0)

    def _fields(self, end: str, where: str, depth: int) -> dict[str, Any]:
        """Fields up to `end`, which is taken too; "" is the end of the text."""
        properties: dict[str, Any] = {}
        required = []
        while self._next() != end:
            name = self._name()
            if self._next() == ":":
                self._take()
            if name in properties:
                raise self._fault(name)
            properties[name] = self._type(f"{where}.{name}", depth + 1)
            if self._is_not_null():
                required.append(name)
            properties[name] |= self._comment()
            if self._next() == ",":
                self._take()
            elif self._next() != end:
                raise self._fault(self._next())
        self._take()
        if not properties:
            raise ConfigError(f"{where}: names no field; write it as `name STRING, age INT`")
        return {"type": "object", "properties": properties, **({"required": required} if required else {})}

    def _name(self) -> str:
        token = self._take()
        if token.startswith("`"):
            return token[1:-1].replace("``", "`")
        if not re.fullmatch(r"\w+", token):
            raise self._fault(token)
        return token

    def _is_not_null(self) -> bool:
        """Whether NOT NULL comes next, which is taken."""
        if self._next().lower() != "not":
            return False
        self._take()
        self._expect("null")
        return True

    def _comment(self) -> dict[str, str]:
        """COMMENT '...', as a description."""
        if self._next().lower() != "comment":
            return {}
        self._take()
        quoted = self._take()
        if not quoted.startswith(("'", '"')):
            raise self._fault(quoted)
        text = re.sub(rf"\\(.)|({quoted[0]}){quoted[0]}", r"\1\2", quoted[1:-1], flags=re.DOTALL).strip()
        return {"description": text} if text else {}

    def _type(self, where: str, depth: int) -> dict[str, Any]:
        if depth > MAX_DEPTH:
            raise ConfigError(f"{where}: nested deeper than {MAX_DEPTH} levels")
        word = self._take()
        kind = word.lower()
        if kind == "struct":
            self._expect("<")
            return self._fields(">", where, depth)
        if kind == "array":
            self._expect("<")
            items = self._type(f"{where}.items", depth + 1)
            self._expect(">")
            return {"type": "array", "items": items}
        if kind in ("varchar", "char", "character"):
            self._expect("(")
            length = self._take()
            self._expect(")")
            if not (length.isascii() and length.isdigit() and 0 < int(length) <= MAX_COUNT):
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
        found = f"found `{token}`" if token else "it ends too early"
        return ConfigError(
            f"{self._where}: {shown(self._ddl)} is neither a JSON Schema nor Spark DDL that can be extracted: {found}; "
            "types are string, integers, double, boolean, date, timestamp, array<...> and struct<...>"
        )
