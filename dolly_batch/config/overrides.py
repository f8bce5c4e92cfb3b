"""`--set a.b=value`: what the command line puts over a file of settings."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dolly_batch.config.strict_yaml import parsed
from dolly_batch.errors import ConfigError

_EMPTY = (None, "", "~", "null", "Null", "NULL")  # as one loader has it, and as another has the text that is there


@dataclass(frozen=True)
class Override:
    """One `a.b=value` that is put over a file: the keys on the way, and the value as YAML has it."""

    path: str
    keys: list[str]
    text: str

    @classmethod
    def of(cls, override: str, kind: type[BaseModel]) -> "Override":
        """Raises ConfigError for one without a path or a value."""
        path, separator, text = override.partition("=")
        if not separator or not path:
            raise ConfigError(f"--set takes key.path=value, not {override!r}")
        return cls(path, _keys_of(path, kind), text)

    def put(self, document: dict[str, Any], loader: Any) -> None:
        """Put the value into the document; it is read as YAML, so `42`, `true`, `null` and `[a, b]` work."""
        value = parsed(self.text, f"--set {self.path}: the value is not readable YAML", loader)
        *parents, last = self.keys
        place = document
        for parent in parents:
            if place.get(parent) in _EMPTY:  # `rejected: null`, or a section without a key
                place[parent] = {}
            place = place[parent]
            if not isinstance(place, dict):
                raise ConfigError(f"--set {self.path}: `{parent}` is not a section")
        place[last] = value


def _keys_of(path: str, kind: type[BaseModel]) -> list[str]:
    """The keys of a path. What stands in a mapping (`spark.conf`) is one key, dots and all."""
    keys, sections = path.split("."), [kind]
    for at, key in enumerate(keys):
        fields = [field for section in sections if (field := field_of(section, key)) is not None]
        if any(get_origin(field.annotation) is dict for field in fields):
            return [*keys[: at + 1], *filter(None, [".".join(keys[at + 1 :])])]
        sections = [inner for field in fields for inner in sections_in(field.annotation)]
    return keys


def field_of(section: type[BaseModel], key: str) -> FieldInfo | None:
    """The field that a key of a file is, None where a section has no such key."""
    return next((field for name, field in section.model_fields.items() if (field.alias or name) == key), None)


def sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that an annotation allows: itself, an optional one, a list of them, one of several."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from sections_in(inner)
