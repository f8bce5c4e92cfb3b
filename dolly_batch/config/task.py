"""The section `task` of a job file: a closed, strict section for each kind, made of the kind's own settings."""

from dataclasses import MISSING, Field, fields, is_dataclass
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import pydantic
from pydantic import AfterValidator

from dolly_batch.config.yaml_file import Section, check
from dolly_batch.tasks import KINDS
from dolly_batch.tasks.base import TaskSettings


def _section(settings: type[Any]) -> type[Section]:
    """The section that is read into a dataclass of settings. Dataclasses keep pydantic off the executors."""
    hints = get_type_hints(settings)
    made: dict[str, Any] = {f"{field.name}_": _field(field, hints[field.name]) for field in fields(settings)}
    section: type[Section] = pydantic.create_model(settings.__name__, __base__=Section, **made)
    return section


def _field(field: "Field[Any]", hint: Any) -> tuple[Any, Any]:
    """Named `key_`, so that no key hides an attribute of pydantic's; files and messages have the key."""
    if field.default_factory is not MISSING:
        default = pydantic.Field(default_factory=field.default_factory, alias=field.name)
    elif field.default is not MISSING:
        default = pydantic.Field(default=field.default, alias=field.name)
    else:
        default = pydantic.Field(alias=field.name)
    return _annotation(hint), default


def _annotation(hint: Any) -> Any:
    """The hint with a section in the place of a dataclass, one that may be left out, or a list of them."""
    if is_dataclass(hint):
        return _into(hint)
    inner = [one for one in get_args(hint) if one is not type(None)]
    if len(inner) == 1 and is_dataclass(inner[0]):
        return list[_into(inner[0])] if get_origin(hint) is list else _into(inner[0]) | None  # type: ignore[misc]
    return hint


def _into(settings: Any) -> Any:
    section = _section(settings)

    def read(values: Section) -> Any:
        return settings(**{field.name: getattr(values, f"{field.name}_") for field in fields(settings)})

    return Annotated[section, AfterValidator(read)]


_ANY_KIND: Any = reduce(or_, (_into(kind.settings) for kind in KINDS.values()))

if TYPE_CHECKING:
    TaskConfig = TaskSettings
else:
    TaskConfig = Annotated[_ANY_KIND, pydantic.Field(discriminator="kind_")]


class _TaskFile(Section):
    task: TaskConfig


def check_task(document: dict[str, Any], where: str) -> TaskSettings:
    """Return a document as the settings of its kind of task. Raises ConfigError, with every fault; `where` names it."""
    return check(_TaskFile, "task", {"task": document}, where).task
