"""Reading a YAML file of settings: strict, with every fault reported by its path and the nearest valid key."""

import difflib
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from dolly_batch.config.credentials import has_password, is_credential, masked
from dolly_batch.config.overrides import Override, field_of, sections_in
from dolly_batch.config.strict_yaml import StrictLoader, parsed, quoted
from dolly_batch.errors import ConfigError


class Section(BaseModel):
    """A part of a file of settings: frozen, strict, and closed to unknown keys and to numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=(), allow_inf_nan=False)


def _in_home(path: str) -> str:
    """A path with the home folder in the place of `~`, which Spark and Python take for a name. Raises ValueError."""
    if not path.startswith("~"):
        return path
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ValueError("`~` is there no home folder; write the folder's own path, or ./~ for a name that begins so")
    return expanded


def _undivided(name: str) -> str:
    if not re.fullmatch(r"[\w. -]*", name):
        raise ValueError("may have letters, digits, `_`, `-`, dots and blanks; other marks divide names and paths")
    return name


def _without_password(path: str) -> str:
    if has_password(path):
        raise ValueError("holds a user's password or key, which would be stored and shown; give it to Spark's settings")
    return path


NamePart = Annotated[str, AfterValidator(_undivided)]
"""What a column's name may begin with, wherever such names are written without quotes."""
PathText = Annotated[str, Field(min_length=1), AfterValidator(_without_password), AfterValidator(_in_home)]
"""A file or folder, a plain path or a URI. `~` is the home folder of who runs the command."""


File = TypeVar("File", bound=Section)
MAX_SHOWN = 20
_TYPE_TAG = re.compile(r"str|(list|dict|literal)\[.*\]")  # as pydantic puts them into the path of a fault


def load_file(kind: type[File], noun: str, path: str | Path, overrides: list[str] | None = None) -> File:
    """Read a file of one kind (`noun` calls it in messages), with overrides; see `load_job`."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the {noun} file {path} cannot be read: {error}") from error
    read = partial(_document, text, str(path), [Override.of(one, kind) for one in overrides or []])
    return check(kind, noun, read(StrictLoader), str(path), lambda: read(yaml.BaseLoader))


def check(
    kind: type[File], noun: str, document: dict[str, Any], where: str, as_written: Callable[[], Any] | None = None
) -> File:
    """Return a document as a file of one kind. Raises ConfigError, with every fault found; `where` names it there.

    `as_written` gives the document with every scalar as the text that stands in the file.
    """
    try:
        return kind.model_validate(_whole(document, ()))
    except _HalfCharacterError as error:
        lines = [str(error)]
    except RecursionError:
        lines = ["it is nested too deeply, or holds itself by an anchor"]
    except ValidationError as error:
        written = None if as_written is None else as_written()
        faults = [fault for fault in error.errors() if not _is_other_type(fault, error.errors())]
        lines = [_describe(fault, kind, noun, written) for fault in faults]
    raise ConfigError("\n  ".join([f"{where} is not a valid {noun}:", *dict.fromkeys(lines)]))


class _HalfCharacterError(Exception):
    """A text that is not all characters."""


def _whole(value: Any, path: tuple[object, ...]) -> Any:
    """The same values; two halves of a surrogate pair, which JSON's escapes make, have become one character."""
    if isinstance(value, str) and not value.isascii():
        try:
            return value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError as error:
            where = ".".join(ascii(part).strip("'") for part in path)
            message = f"{where}: holds half of a surrogate pair (of an emoji that was cut, say); write it whole"
            raise _HalfCharacterError(message) from error
    if isinstance(value, dict):
        return {_whole(key, (*path, key)): _whole(inner, (*path, key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [_whole(inner, (*path, at)) for at, inner in enumerate(value)]
    return value


def _document(text: str, where: str, overrides: list[Override], loader: Any) -> dict[str, Any]:
    """A file's mapping with the overrides put over it."""
    document = parsed(text, f"{where} is not readable YAML", loader)
    if not isinstance(document, dict):
        raise ConfigError(f"{where} must hold a mapping of keys (name, model, input, output, ...)")
    for override in overrides:
        override.put(document, loader)
    return document


def _is_other_type(fault: Any, faults: list[Any]) -> bool:
    """Whether a fault says that a value is not of one type of several, while it is of another and at fault there."""
    *place, tag = fault["loc"] or ("",)
    others = (other["loc"] for other in faults)
    return bool(_TYPE_TAG.fullmatch(str(tag))) and any(
        len(loc) > len(place) + 1 and list(loc[: len(place)]) == place for loc in others
    )


def _unquoted(path: list[str], written: Any) -> str | None:
    """How to write what YAML does not read as text: its key with quotes; None where that is not known."""
    place: Any = None
    for part in path:
        place, key = written, part
        try:
            written = place[int(part) if isinstance(place, list) else part]
        except (KeyError, IndexError, TypeError, ValueError):
            return None
    if not isinstance(written, str):
        return None
    if not isinstance(place, list):
        return f"quote it: {key}: {quoted(written)}"
    values = [quoted(item) if isinstance(item, str) else "..." for item in place[:MAX_SHOWN]]
    return f"quote them: {path[-2]}: [{', '.join(values)}{', ...' if len(place) > MAX_SHOWN else ''}]"


def _describe(fault: Any, kind: type[Section], noun: str, written: Any) -> str:
    """One line for one fault: where, what was found, what would do."""
    path, section = _walk(fault["loc"], kind)
    error = fault.get("ctx", {}).get("error")
    if setting := getattr(error, "setting", None):  # a section that was refused as a whole names the key at fault
        path.append(setting)
    where = ".".join(path) or f"the {noun}"
    if fault["type"] == "extra_forbidden":
        return f"{where}: unknown key; {_hint(path[-1], _keys(section), 'keys')}"
    if fault["type"] == "union_tag_invalid":
        kinds = [tag.strip(" '") for tag in fault["ctx"]["expected_tags"].split(",")]
        return f"{where}.kind: no such {where} `{fault['ctx']['tag']}`; {_hint(fault['ctx']['tag'], kinds, 'kinds')}"
    if fault["type"] == "missing":
        return f"{where}: required, but missing"
    if {"options", "conf"} & set(path[:-1]) and is_credential(path[-1]):
        said = "must be text; put it into quotes" if fault["type"] == "string_type" else _said(fault)
        return f"{where}: {said} (what was found is not shown)"
    value = fault["input"]
    if fault["type"] == "string_type" and (line := _unquoted(path, written)):
        listed = isinstance(fault["loc"][-1], int)
        where = ".".join(path[:-1]) if listed else where
        return f"{where}: must be text, and YAML takes it for a boolean, a number, a date or null; {line}"
    shown = "" if isinstance(value, dict) or setting else f" (found {masked(repr(value))})"
    return f"{where}: {_said(fault)}{shown}"


def _said(fault: Any) -> str:
    if fault["type"] in ("model_type", "model_attributes_type"):
        return "must be a section: give it keys, or leave it out"
    message = str(fault["msg"]).removeprefix("Value error, ")
    return f"{message[:1].lower()}{message[1:]}"


def _hint(found: str, valid: list[str], what: str) -> str:
    near = difflib.get_close_matches(found, valid, n=1, cutoff=0.5)
    return f"did you mean `{near[0]}`?" if near else f"valid {what}: {', '.join(sorted(valid))}"


def _walk(loc: tuple[Any, ...], kind: type[Section]) -> tuple[list[str], type[BaseModel] | None]:
    """The path of a fault as the file has it, and the section that its last part stands in.

    Where a section may be of several kinds, pydantic puts the kind's tag into the path, which is no key of the file.
    """
    path: list[str] = []
    section: type[BaseModel] | None = kind
    kinds: list[type[BaseModel]] = []  # sections that the next part is the tag of
    has_types = False  # the next part is the tag of one type of several
    for part in loc:
        if has_types and _TYPE_TAG.fullmatch(str(part)):
            has_types = False
            continue
        if len(kinds) > 1:
            section, kinds = next((one for one in kinds if one.model_fields["kind_"].default == part), None), []
            continue
        if kinds and not isinstance(part, int):
            section, kinds = kinds[0], []
        path.append(str(part))
        if section is not None and not isinstance(part, int):
            field = field_of(section, str(part))
            kinds = list(sections_in(field.annotation)) if field is not None else []
            has_types = field is not None and get_origin(field.annotation) in (Union, UnionType)
    return path, section


def _keys(section: type[BaseModel] | None) -> list[str]:
    fields = {} if section is None else section.model_fields
    return [field.alias or name for name, field in fields.items()]
