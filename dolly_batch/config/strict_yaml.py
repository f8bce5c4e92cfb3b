"""YAML, read strictly; faults are told without the lines around them, which may hold a password."""

import json
from typing import Any

import yaml

from dolly_batch.errors import ConfigError


class StrictLoader(yaml.SafeLoader):
    """YAML's safe loader, which silently keeps the last of two equal keys, made to refuse them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping; keys that are no text, or that stand there twice, are faults."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                hint = f"; quote it: {quoted(key_node.value)}" if isinstance(key_node, yaml.ScalarNode) else ""
                message = f"key {key!r} is not a string{hint}"
                raise yaml.constructor.ConstructorError(None, None, message, key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key `{key}` is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def parsed(text: str, message: str, loader: Any) -> Any:
    """What a text holds. Raises ConfigError, which begins with `message`, for one that is not YAML."""
    try:
        return yaml.load(text, Loader=loader)  # noqa: S506 - a SafeLoader, or one that knows only text
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{message}: {_without_snippet(error)}") from error
    except ValueError as error:
        raise ConfigError(f"{message}: {error} (is it a date? put what is no date into quotes)") from error


def _without_snippet(error: Exception) -> str:
    """What is wrong with a YAML text, and where; not the lines around it, which may hold a password."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return str(error) or "it is nested too deeply"
    parts = ((error.context, error.context_mark), (error.problem, error.problem_mark))
    return ", ".join(said + _where(mark) for said, mark in parts if said)


def _where(mark: yaml.Mark | None) -> str:
    return f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""


def quoted(text: str) -> str:
    """A text as YAML has it in quotes."""
    return json.dumps(text, ensure_ascii=False)
