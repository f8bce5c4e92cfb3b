"""A model's folder: its required files, its identity, and whether it is unchanged since it was staged.

Standard library only, so that planning can refuse a bad folder in seconds where torch is not installed. Nothing in the
folder is executed and no weights are loaded: files are read as JSON, as safetensors headers, or as bytes to hash.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from dolly_batch.errors import ModelError
from dolly_batch.models.architectures import Architecture
from dolly_batch.models.checkpoint import Tensor, read_tensors
from dolly_batch.models.config import ModelConfig, check_config, with_window
from dolly_batch.models.foreign import explain_format, refuse_adapter
from dolly_batch.models.weights import check_weights
from dolly_batch.prompt_format import PROMPT

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MANIFEST = "manifest.json"

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class ModelFolder:
    """A folder that passed every check but the hashes of its contents (see `verify_hashes`).

    `weight_files` are names of safetensors files in the folder, sorted. `source` and `revision` are the manifest's, and
    None where there is no manifest.
    """

    path: Path
    config: ModelConfig
    weight_files: tuple[str, ...]
    source: str | None = None
    revision: str | None = None
    manifest_hashes: Mapping[str, str] | None = field(default=None, repr=False)

    @property
    def architecture(self) -> Architecture:
        """The model's architecture."""
        return self.config.architecture

    @property
    def max_positions(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self.config.max_positions

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding, which may be more than the tokenizer's tokens."""
        return self.config.vocab_size

    @cached_property
    def sha256(self) -> str:
        """The model's identity: sha256 of the sorted `name sha256` lines of the files that decide the answers.

        Taken from the manifest, or else from hashing the files, which takes about a second per GiB.
        """
        named = _identity_files(self.path, self.weight_files)
        present = [name for name in named if (self.path / name).is_file()]
        names = sorted((*present, *self.weight_files))
        hashes = self.manifest_hashes or {name: hash_file(self.path / name) for name in names}
        return hash_of_hashes({name: hashes[name] for name in names})


def _identity_files(path: Path, weight_files: tuple[str, ...]) -> tuple[str, ...]:
    """The files beside the weights that decide the answers; one file needs no index, Dolly no prompt format."""
    index = () if weight_files == (WEIGHTS,) else (INDEX,)
    return (CONFIG, TOKENIZER, *index, *((PROMPT,) if (path / PROMPT).is_file() else ()))


def inspect_folder(folder: str | Path, max_positions: int | None = None) -> ModelFolder:
    """Check a model's folder without loading it, in well under five seconds. `max_positions` is as in `read_config`.

    Raises ModelError, naming the file, for: a file missing, pickled weights only, a config of another architecture
    or with an unknown key, an adapter, a safetensors file of the wrong length, an index that does not match its shards,
    tensors that are not those of the config, more tokens than embedding rows, sizes that differ from the manifest's.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ModelError(f"{path}: there is no such folder; stage the model with `dolly-batch stage-model SOURCE DEST`")
    refuse_adapter(path, [file.name for file in path.iterdir()])
    config = read_config(path, max_positions)
    weight_files = read_weights(path, config)
    _check_token_ids(path / TOKENIZER, config)
    manifest = _read_manifest(path, (*_identity_files(path, weight_files), *weight_files))
    if manifest is None:
        return ModelFolder(path, config, weight_files)
    hashes = {name: entry["sha256"] for name, entry in manifest["files"].items()}
    return ModelFolder(path, config, weight_files, manifest.get("source"), manifest.get("revision"), hashes)


def read_config(folder: Path, max_positions: int | None = None) -> ModelConfig:
    """Read and check config.json alone.

    `max_positions` is how many of the model's positions are to be used, None for all. Raises ModelError; ConfigError
    for more positions than there are.
    """
    path = folder / CONFIG
    return with_window(check_config(path, read_json(path)), max_positions)


def hash_of_hashes(hashes: Mapping[str, str]) -> str:
    """The sha256 of the sorted `name sha256` lines."""
    return hashlib.sha256("".join(f"{name} {hashes[name]}\n" for name in sorted(hashes)).encode()).hexdigest()


def verify_hashes(folder: ModelFolder, *, but_weights: bool = False) -> None:
    """Read every file that the manifest lists and compare its sha256; without a manifest there is nothing to compare.

    `but_weights` leaves out the large files: what is left is what prompts are made and counted by, in milliseconds.
    Raises ModelError naming the first file that changed.
    """
    for name, expected in (folder.manifest_hashes or {}).items():
        if but_weights and name in folder.weight_files:
            continue
        actual = hash_file(folder.path / name)
        if actual != expected:
            raise ModelError(
                f"{folder.path / name}: sha256 is {actual}, expected {expected} from {MANIFEST}; stage the model again"
            )


def write_manifest(folder: str | Path, source: str, revision: str | None) -> None:
    """Write manifest.json over all files now in the folder: their sha256 and their sizes in bytes."""
    path = Path(folder)
    names = sorted(file.name for file in path.iterdir() if file.is_file() and file.name != MANIFEST)
    files = {name: {"sha256": hash_file(path / name), "size": (path / name).stat().st_size} for name in names}
    manifest = {"format": 1, "source": source, "revision": revision, "files": files}
    (path / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def hash_file(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hex. Raises ModelError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises ModelError when the file is missing, not JSON, or names a key twice."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ModelError(f"{path}: the file is missing; stage the model again") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: cannot be read ({error})") from error
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"the key {twice[0]!r} is there twice")
    return result


def read_weights(path: Path, config: ModelConfig) -> tuple[str, ...]:
    """Return the names of the weight files, whose headers hold the tensors of this config, all and no others.

    Of one file and shards the one file is taken, as transformers does. Raises ModelError.
    """
    if (path / WEIGHTS).is_file():
        tensors = {WEIGHTS: read_tensors(path / WEIGHTS)}
    elif (path / INDEX).is_file():
        tensors = _read_shards(path)
    else:
        raise _no_weights(path)
    check_weights(path, config, {name: tensor for file in tensors.values() for name, tensor in file.items()})
    return tuple(tensors)


def _no_weights(path: Path) -> ModelError:
    pickles = sorted(file.name for pattern in _PICKLES for file in path.glob(pattern))
    if pickles:
        return ModelError(
            f"{path / pickles[0]}: pickled weights are never loaded; convert them once with "
            f"`dolly-batch stage-model {path} DEST`"
        )
    found = explain_format(file.name for file in path.iterdir())
    return ModelError(f"{path / WEIGHTS}: the file is missing (and so is {INDEX}); {found or 'stage the model again'}")


def _read_shards(path: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of each shard, by its file name, in the names' order."""
    weight_map = read_json(path / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{path / INDEX}: weight_map is missing or empty")
    shards = {}
    for shard in sorted({str(name) for name in weight_map.values()}):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise ModelError(f"{path / INDEX}: {shard!r} is not the name of a safetensors file in the folder")
        if not (path / shard).is_file():
            raise ModelError(f"{path / shard}: the file is missing, {INDEX} names it; stage the model again")
        found = read_tensors(path / shard)
        absent = sorted(name for name, where in weight_map.items() if where == shard and name not in found)
        if absent:
            raise ModelError(f"{path / shard}: tensor {absent[0]} is missing, {INDEX} says that it is there")
        shards[shard] = found
    return shards


def _check_token_ids(path: Path, config: ModelConfig) -> None:
    """The embedding must have a row for every token."""
    top = max(_token_ids(path), default=-1)
    if top >= config.vocab_size:
        raise ModelError(
            f"{path}: token id {top}, but {config.architecture.embedding} has only {config.vocab_size} rows"
        )


def _token_ids(path: Path) -> Iterable[int]:
    tokenizer = read_json(path)
    try:
        ids = [*tokenizer["model"]["vocab"].values(), *(token["id"] for token in tokenizer.get("added_tokens") or [])]
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: not a tokenizer with a vocabulary ({error!r})") from error
    if not all(type(token_id) is int for token_id in ids):
        raise ModelError(f"{path}: the vocabulary holds ids that are not integers")
    return ids


def _read_manifest(path: Path, needed: tuple[str, ...]) -> dict[str, Any] | None:
    """Return the manifest, its list complete and its sizes those of the files; None where there is none."""
    if not (path / MANIFEST).exists():
        return None
    manifest = read_json(path / MANIFEST)
    files = manifest.get("files")
    if manifest.get("format") != 1 or not isinstance(files, dict):
        raise ModelError(f"{path / MANIFEST}: not a manifest of format 1; stage the model again")
    for name in needed:
        if name not in files:
            raise ModelError(f"{path / MANIFEST}: {name} is not listed; stage the model again")
    for name, entry in files.items():
        _check_entry(path, name, entry)
    return manifest


def _check_entry(path: Path, name: str, entry: object) -> None:
    valid = isinstance(entry, dict) and isinstance(entry.get("sha256"), str) and isinstance(entry.get("size"), int)
    if not valid or Path(name).name != name:
        raise ModelError(f"{path / MANIFEST}: the entry for {name!r} is not a file name with sha256 and size")
    if not (path / name).is_file():
        raise ModelError(f"{path / name}: the file is missing, {MANIFEST} lists it; stage the model again")
    size = (path / name).stat().st_size
    if size != entry["size"]:  # type: ignore[index]
        raise ModelError(f"{path / name}: {size} bytes, expected {entry['size']} from {MANIFEST}")  # type: ignore[index]
