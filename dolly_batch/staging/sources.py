"""Resolves a model's name to its files: a folder, a hub, ModelScope, or the packaged `tiny`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Protocol

from dolly_batch.errors import ModelError
from dolly_batch.models.folder import (
    CONFIG,
    MANIFEST,
    ModelFolder,
    hash_file,
    hash_of_hashes,
    inspect_folder,
    read_config,
    read_weights,
    verify_hashes,
)
from dolly_batch.models.foreign import explain_format
from dolly_batch.staging.hub import HubSnapshot
from dolly_batch.staging.isolated import Log, run_isolated
from dolly_batch.staging.layout import (
    CHAT_TEMPLATE,
    GENERATION_CONFIG,
    SMALL_FILES,
    TOKENIZER_CONFIG,
    check_index,
    require_weights,
    staged_config,
)
from dolly_batch.staging.modelscope_hub import ModelScopeSnapshot
from dolly_batch.staging.smollm2 import SMOLLM2, SmolLM2Snapshot

BY_CONTENT = "sha256:"
"""Begins the revision of what has no commit or tag."""

MODELSCOPE_PREFIX = "modelscope:"
TINY = "tiny"
GGUF = ".gguf"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class Snapshot(Protocol):
    """One revision of one model's files. Both fetches return the folder the files then lie in.

    That folder is `into`, whose files the caller may move and delete, or another one, which must be left as it is.
    """

    @property
    def source(self) -> str:
        """The model's name, as the manifest keeps it."""
        ...

    @property
    def revision(self) -> str:
        """What pins the files: a commit, a tag, or a hash of the files themselves."""
        ...

    @property
    def hashes(self) -> Mapping[str, str]:
        """The sha256 of files that a staged folder holds as they are, as far as they are known before fetching."""
        ...

    def fetch_small(self, into: Path) -> Path:
        """Make the config and the tokenizer's files available."""
        ...

    def fetch_weights(self, into: Path, log: Log) -> Path:
        """Make the weights and their index available, in the same folder."""
        ...


@dataclass(frozen=True)
class FolderSnapshot:
    """Files of a folder on disk or inside this package, be it unpacked or a zipped wheel."""

    source: str
    revision: str
    root: Traversable
    names: tuple[str, ...]
    hashes: Mapping[str, str]

    @classmethod
    def plain(cls, root: Traversable, source: str) -> FolderSnapshot:
        """Take a folder that says nothing of its origin: it is pinned by a hash of its files."""
        hashes = {name: _hash_file(root.joinpath(name)) for name in _names_to_take(root)}
        revision = BY_CONTENT + hash_of_hashes(hashes)
        config = staged_config(root.joinpath(CONFIG).read_bytes())
        return cls(source, revision, root, tuple(hashes), {**hashes, CONFIG: hashlib.sha256(config).hexdigest()})

    @classmethod
    def staged(cls, folder: ModelFolder, source: str) -> FolderSnapshot:
        """Take a folder that was staged before, whole and unchanged: its copy keeps source and revision."""
        verify_hashes(folder)
        revision = folder.revision or BY_CONTENT + folder.sha256
        return cls(
            folder.source or source, revision, folder.path, _names_to_take(folder.path), folder.manifest_hashes or {}
        )

    def fetch_small(self, into: Path) -> Path:
        """Nothing to fetch for a folder on disk; a zipped one is unpacked."""
        if isinstance(self.root, Path):
            return self.root
        for name in self.names:
            (into / name).write_bytes(self.root.joinpath(name).read_bytes())
        return into

    def fetch_weights(self, into: Path, log: Log) -> Path:
        """The folder, as before: `fetch_small` has seen to all files."""
        return self.root if isinstance(self.root, Path) else into


@dataclass(frozen=True)
class GgufSnapshot:
    """One GGUF file: config, tokenizer and weights together."""

    source: str
    revision: str
    file: Path
    hashes: Mapping[str, str] = field(default_factory=dict)

    def fetch_small(self, into: Path) -> Path:
        """Convert the whole file."""
        run_isolated("dolly_batch.staging.gguf", [str(self.file), str(into)], lambda line: None)
        return into

    def fetch_weights(self, into: Path, log: Log) -> Path:
        """The folder, as before."""
        return into


def find_folder(source: str) -> Path | None:
    """The local folder a source names, or None when it names something else.

    Raises ModelError for what looks like a path, or like nothing known, and is not a folder.
    """
    if source in (TINY, SMOLLM2) or source.startswith(MODELSCOPE_PREFIX):
        return None
    folder = Path(source).expanduser()
    if folder.suffix == GGUF and folder.is_file():
        return None
    if folder.is_dir():
        return folder
    if folder.is_file():
        what = explain_format([folder.name]) or "a file"
        raise ModelError(f"model {source!r}: {what}; expected a folder with {CONFIG}, tokenizer and weights")
    if _HUB_ID.fullmatch(source):
        return None
    raise ModelError(
        f"model {source!r}: there is no such folder, and it is not a hub id; expected a folder, a file in GGUF, a hub "
        "id such as databricks/dolly-v2-3b, modelscope:ORG/NAME with a revision, smollm2 or tiny"
    )


def open_snapshot(source: str, revision: str | None, log: Log) -> Snapshot:
    """Resolve a source that names files to stage.

    Raises ModelError for a source that does not exist or a revision where there is none to choose, and
    HubUnreachableError when a hub could not be asked.
    """
    folder = find_folder(source)
    if source.startswith(MODELSCOPE_PREFIX):
        return ModelScopeSnapshot.resolve(source, source.removeprefix(MODELSCOPE_PREFIX), revision)
    is_file = source.endswith(GGUF) and Path(source).expanduser().is_file()
    if folder is None and not is_file and source not in (TINY, SMOLLM2):
        return HubSnapshot.resolve(source, revision)
    if revision is not None:
        raise ModelError(f"model {source!r}: found revision {revision!r}, but only models of a hub have revisions")
    if is_file:
        file = Path(source).expanduser().absolute()
        log(f"hashing {file}")
        return GgufSnapshot(source, BY_CONTENT + hash_file(file), file)
    if source == SMOLLM2:
        return SmolLM2Snapshot()
    if folder is None:
        return FolderSnapshot.plain(files("dolly_batch.tiny").joinpath("model"), TINY)
    if (folder / MANIFEST).is_file():
        return FolderSnapshot.staged(inspect_folder(folder), source)
    _check_headers(folder)
    log(f"hashing the files of {folder}")
    return FolderSnapshot.plain(folder, source)


def _check_headers(folder: Path) -> None:
    """Refuse weights that cannot be run before they are hashed and copied; pickles tell only once they are read."""
    weights = require_weights(folder, [path.name for path in folder.iterdir() if path.is_file()])
    config = read_config(folder)
    if not weights.pickled:
        check_index(folder, weights)
        read_weights(folder, config)


def _names_to_take(root: Traversable) -> tuple[str, ...]:
    present = [entry.name for entry in root.iterdir() if entry.is_file()] if root.is_dir() else []
    weights = require_weights(root, present)
    taken = {*SMALL_FILES, *weights.files, weights.index}
    if not _has_chat_template(root, present):
        taken.discard(GENERATION_CONFIG)  # says what ends an answer, which is known of Dolly's models
    return tuple(sorted(name for name in present if name in taken))


def _has_chat_template(root: Traversable, present: Iterable[str]) -> bool:
    if CHAT_TEMPLATE in present:
        return True
    return TOKENIZER_CONFIG in present and b'"chat_template"' in root.joinpath(TOKENIZER_CONFIG).read_bytes()


def _hash_file(file: Traversable) -> str:
    return hash_file(file) if isinstance(file, Path) else hashlib.sha256(file.read_bytes()).hexdigest()
