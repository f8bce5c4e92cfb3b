"""Which files of a model repository are used: never code, never other frameworks' weights."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dolly_batch.errors import ModelError
from dolly_batch.models.folder import CONFIG, INDEX, TOKENIZER, WEIGHTS, read_json
from dolly_batch.models.foreign import explain_format, refuse_adapter
from dolly_batch.prompt_format import PROMPT

PICKLE_INDEX = "pytorch_model.bin.index.json"

TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
GENERATION_CONFIG = "generation_config.json"

SLOW_TOKENIZER_FILES = ("vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json", TOKENIZER_CONFIG)
"""What GPT-J's kind of tokenizer consists of when there is no `tokenizer.json`."""

SMALL_FILES = (CONFIG, TOKENIZER, *SLOW_TOKENIZER_FILES, CHAT_TEMPLATE, GENERATION_CONFIG, PROMPT)

# Names the reference pipeline's code, which is neither copied nor needed.
_PIPELINES = "custom_pipelines"

_SAFETENSORS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
_PICKLE = re.compile(r"pytorch_model(-\d{5}-of-\d{5})?\.bin")


@dataclass(frozen=True)
class Weights:
    """The weight files of one model, sorted; `index` names their index, or None for a single file."""

    files: tuple[str, ...]
    index: str | None
    pickled: bool


def find_weights(names: Iterable[str]) -> Weights | None:
    """Pick the weights among a repository's top-level file names, in transformers' order.

    That is safetensors if there are any, else pickles, and of each one file before shards.
    """
    present = set(names)
    for pattern, single, index, pickled in (
        (_SAFETENSORS, WEIGHTS, INDEX, False),
        (_PICKLE, "pytorch_model.bin", PICKLE_INDEX, True),
    ):
        if single in present:
            return Weights((single,), None, pickled)
        if index in present:
            return Weights(tuple(sorted(filter(pattern.fullmatch, present))), index, pickled)
    return None


def find_chat_template(folder: Path) -> str | None:
    """The text of a model's chat template: a file of its own, or an entry of the tokenizer's settings."""
    if (folder / CHAT_TEMPLATE).is_file():
        return (folder / CHAT_TEMPLATE).read_text(encoding="utf-8")
    found = read_json(folder / TOKENIZER_CONFIG).get("chat_template") if (folder / TOKENIZER_CONFIG).is_file() else None
    if isinstance(found, list):
        found = next((entry.get("template") for entry in found if entry.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def require_weights(where: object, names: Iterable[str]) -> Weights:
    """Pick the weights of the model `where` by its file names. Raises ModelError for an adapter, or without a model."""
    present = set(names)
    refuse_adapter(where, present)
    weights = find_weights(present)
    found = None if weights else explain_format(present)
    if found:
        raise ModelError(f"{where}: found no weights that are read, {found}")
    if CONFIG not in present:
        raise ModelError(f"{where}: {CONFIG} is missing; expected a model in Hugging Face's layout")
    if weights is None:
        raise ModelError(f"{where}: found no weights, expected *.safetensors or pytorch_model*.bin")
    return weights


def check_index(folder: Path, weights: Weights) -> Weights:
    """Check an index against the files next to it and return the weights that it names.

    Raises ModelError for an index that cannot be read, names a file that is missing, or names one outside the folder.
    """
    if weights.index is None:
        return weights
    path = folder / weights.index
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{path}: found no weight_map, expected the file name of every tensor")
    named = sorted({str(name) for name in weight_map.values()})
    pattern = _PICKLE if weights.pickled else _SAFETENSORS
    for name in named:
        if not pattern.fullmatch(name):
            raise ModelError(f"{path} names {name!r}, which is not the name of a weight file of this folder")
        if not (folder / name).is_file():
            raise ModelError(f"{folder}: {name} is missing, though {weights.index} names it; fetch the model again")
    return Weights(tuple(named), weights.index, weights.pickled)


def staged_config(text: bytes) -> bytes:
    """A config as a staged folder holds it: without what names code."""
    config = json.loads(text)
    if _PIPELINES not in config:
        return text
    kept = {key: value for key, value in config.items() if key != _PIPELINES}
    return (json.dumps(kept, indent=2) + "\n").encode()
