"""Reading a YAML file of settings: strict, with every fault told by its path and, for a key, the nearest valid name."""

import difflib
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from dolly_batch.config.section import Section
from dolly_batch.config.task import KINDS
from dolly_batch.errors import ConfigError

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
    loc = fault["loc"]
    # Below `task` stands the kind that was chosen, which is no key of the file.
    shown_loc = (loc[0], *loc[2:]) if len(loc) > 1 and loc[0] == "task" and loc[1] in KINDS else loc
    where = ".".join(str(part) for part in shown_loc) or f"the {noun}"
    if fault["type"] == "extra_forbidden":
        return f"{where}: unknown key; {_hint(str(loc[-1]), _keys_beside(loc, kind), 'keys')}"
    if fault["type"] == "union_tag_invalid":
        return f"{where}.kind: no such task `{fault['ctx']['tag']}`; {_hint(fault['ctx']['tag'], [*KINDS], 'kinds')}"
    if fault["type"] == "missing":
        return f"{where}: required, but missing"
    found = fault["input"]
    shown = "" if isinstance(found, dict) else f" (found {found!r})"
    message = str(fault["msg"]).removeprefix("Value error, ")
    return f"{where}: {message[:1].lower()}{message[1:]}{shown}"


def _hint(found: str, valid: list[str], what: str) -> str:
    near = difflib.get_close_matches(found, valid, n=1, cutoff=0.5)
    return f"did you mean `{near[0]}`?" if near else f"valid {what}: {', '.join(sorted(valid))}"


def _keys_beside(loc: tuple[Any, ...], kind: type[Section]) -> list[str]:
    """The valid keys of the section of a `kind` that the last part of `loc` stands in."""
    section: type[BaseModel] = kind
    parts = loc[:-1]
    if len(parts) > 1 and parts[0] == "task":
        section, parts = KINDS[str(parts[1])], parts[2:]
    for part in parts:
        if isinstance(part, int):  # a place in a list of sections, whose class was found with the list's name
            continue
        annotation = section.model_fields[str(part)].annotation
        inner = [annotation, *get_args(annotation)]  # a section, an optional one, or a list of them
        sections = [one for one in inner if isinstance(one, type) and issubclass(one, BaseModel)]
        if not sections:
            return []
        section = sections[0]
    return [field.alias or name for name, field in section.model_fields.items()]
