"""Reading a YAML file of settings: strict, with every fault reported by its path and the nearest valid key."""

import difflib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from dolly_batch.errors import ConfigError


class Section(BaseModel):
    """A part of a file of settings: frozen, strict, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


def _in_home(path: str) -> str:
    """A path with the home folder in the place of `~`, which Spark and Python take for a name. Raises ValueError."""
    if not path.startswith("~"):
        return path
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ValueError("`~` is there no home folder; write the folder's own path, or ./~ for a name that begins so")
    return expanded


def _undivided(name: str) -> str:
    if not re.fullmatch(r"[\w -]*", name):
        raise ValueError("may have letters, digits, `_`, `-` and blanks; dots and the like divide names and paths")
    return name


NamePart = Annotated[str, AfterValidator(_undivided)]
"""What a column's name may begin with, wherever such names are written without quotes."""
PathText = Annotated[str, Field(min_length=1), AfterValidator(_in_home)]
"""A file or folder, a plain path or a URI. `~` is the home folder of who runs the command."""


File = TypeVar("File", bound=Section)


def load_file(kind: type[File], noun: str, path: str | Path, overrides: list[str] | None = None) -> File:
    """Read a file of one kind (`noun` calls it in messages), with overrides; see `load_job`."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the {noun} file {path} cannot be read: {error}") from error
    document = _parse_yaml(text, str(path))
    for override in overrides or []:
        _put(document, override)
    return check(kind, noun, document, str(path))


def check(kind: type[File], noun: str, document: dict[str, Any], where: str) -> File:
    """Return a document as a file of one kind. Raises ConfigError, with every fault found; `where` names it there."""
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        faults = "\n".join(f"  {_describe(fault, kind, noun)}" for fault in error.errors())
        raise ConfigError(f"{where} is not a valid {noun}:\n{faults}") from error


class _StrictLoader(yaml.SafeLoader):
    """YAML's safe loader, which silently keeps the last of two equal keys, made to refuse them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not a string", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key `{key}` is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _parse_yaml(text: str, where: str) -> dict[str, Any]:
    try:
        document = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not readable YAML: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{where} must hold a mapping of keys (name, model, input, output, ...)")
    return document


def _put(document: dict[str, Any], override: str) -> None:
    """Put one `a.b=value` into the document; the value is read as YAML, so `42`, `true`, `null` and `[a, b]` work."""
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise ConfigError(f"--set takes key.path=value, not {override!r}")
    try:
        value = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {path}: the value is not readable YAML: {error}") from error
    *parents, last = path.split(".")
    place = document
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise ConfigError(f"--set {path}: `{parent}` is not a section")
    place[last] = value


def _describe(fault: Any, kind: type[Section], noun: str) -> str:
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
    value = fault["input"]
    shown = "" if isinstance(value, dict) or setting else f" (found {value!r})"
    message = str(fault["msg"]).removeprefix("Value error, ")
    return f"{where}: {message[:1].lower()}{message[1:]}{shown}"


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
    for part in loc:
        if len(kinds) > 1:
            section, kinds = next((one for one in kinds if one.model_fields["kind_"].default == part), None), []
            continue
        if kinds and not isinstance(part, int):
            section, kinds = kinds[0], []
        path.append(str(part))
        if section is not None and not isinstance(part, int):
            field = next((f for name, f in section.model_fields.items() if (f.alias or name) == part), None)
            kinds = list(_sections_in(field.annotation)) if field is not None else []
    return path, section


def _sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that an annotation allows: itself, an optional one, a list of them, one of several."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections_in(inner)


def _keys(section: type[BaseModel] | None) -> list[str]:
    fields = {} if section is None else section.model_fields
    return [field.alias or name for name, field in fields.items()]
