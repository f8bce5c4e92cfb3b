"""Staging: a model's name becomes a checked folder of safetensors, made at most once.

Safe to run from any number of processes at once and to kill at any point: a staged folder appears whole or not at all.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from dolly_batch.errors import ModelError
from dolly_batch.models.folder import MANIFEST, ModelFolder, inspect_folder, verify_hashes, write_manifest
from dolly_batch.staging.assemble import assemble
from dolly_batch.staging.atomic_folder import is_filled, partial_folder, publish, turn_to_build
from dolly_batch.staging.hub import HubUnreachableError
from dolly_batch.staging.isolated import Log
from dolly_batch.staging.smollm2 import SmolLM2Snapshot
from dolly_batch.staging.sources import BY_CONTENT, FolderSnapshot, Snapshot, find_folder, open_snapshot
from dolly_batch.system.user_cache import user_cache

MAX_SHARD_BYTES = 5_000_000_000

_COMMIT = re.compile(r"[0-9a-f]{7,40}")
_FULL_COMMIT_LENGTH = 40
_HASH = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_ADVICE = (
    "Run `dolly-batch stage-model SOURCE DEST` on a machine that reaches it and give the folder DEST as the model's "
    "path, or name a folder that holds the model"
)


@dataclass(frozen=True)
class StagedModel:
    """A staged folder. `identity` is the hash of the files that decide the answers; `revision` a commit, a tag or
    `sha256:` and the hash of a plain folder's files.

    `already_there` says that nothing was written; `warning` is set when the hub could not be asked whether the folder
    is still the newest.
    """

    folder: Path
    source: str
    revision: str | None
    identity: str
    already_there: bool = False
    warning: str | None = None


def stage_to(
    source: str,
    dest: str | Path,
    revision: str | None = None,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    log: Log = lambda line: None,
) -> StagedModel:
    """Make `dest` the staged folder of `source`; when it is that already, check its hashes and change nothing.

    `source` is a folder, a hub id, `modelscope:ORG/NAME` or `tiny`; `revision` a branch, tag or commit of a hub.
    Raises ModelError for a source that cannot be had or run, for a `dest` that holds something else, and for a disk
    that cannot be written.
    """
    dest = Path(dest).expanduser().absolute()
    with _disk_faults_named(source, dest):
        try:
            snapshot = open_snapshot(source, revision, log)
        except HubUnreachableError as error:
            raise ModelError(f"{error}. {_ADVICE}") from error
        staged = _stage(_cached(snapshot, max_shard_bytes, log), dest, max_shard_bytes, log)
        if staged.already_there:
            log(f"{dest} holds this model already; checking its hashes")
            verify_hashes(inspect_folder(dest))
        return staged


def stage_under(
    source: str,
    stage_dir: str | Path,
    revision: str | None = None,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    log: Log = lambda line: None,
) -> StagedModel:
    """Find or make the staged folder of `source` below `stage_dir`, named by source and revision.

    A folder that was staged by hand (it has a manifest) is used where it is. When the hub cannot be reached, the only
    staged folder of that source, and of that revision if one was asked for, is used with a `warning`. Raises as
    `stage_to` does, but leaves checking the hashes to the engine that loads it.
    """
    stage_dir = Path(stage_dir).expanduser().absolute()
    with _disk_faults_named(source, stage_dir):
        folder = find_folder(source)
        if folder is not None and (folder / MANIFEST).is_file():
            return _use_in_place(folder.absolute(), source, revision)
        if revision is not None and _COMMIT.fullmatch(revision) and len(revision) == _FULL_COMMIT_LENGTH:
            for there in _staged_folders(stage_dir, source, revision):
                return _describe(there, already_there=True)
        try:
            snapshot = open_snapshot(source, revision, log)
        except HubUnreachableError as error:
            return _use_without_hub(source, revision, stage_dir, error)
        name = source if folder is None else folder.absolute().name
        dest = stage_dir / _folder_name(name, snapshot.revision)
        return _find_same(dest, snapshot) or _stage(_cached(snapshot, max_shard_bytes, log), dest, max_shard_bytes, log)


def _cached(snapshot: Snapshot, max_shard_bytes: int, log: Log) -> Snapshot:
    """`smollm2` from the user's cache, where it is put the first time: nothing is fetched twice. Others as they are."""
    if not isinstance(snapshot, SmolLM2Snapshot):
        return snapshot
    name = _folder_name(snapshot.source, snapshot.revision)
    cached = _stage(snapshot, user_cache() / "models" / name, max_shard_bytes, log)
    return FolderSnapshot.staged(inspect_folder(cached.folder), snapshot.source)


def _stage(snapshot: Snapshot, dest: Path, max_shard_bytes: int, log: Log) -> StagedModel:
    there = _find_same(dest, snapshot)
    if there is not None:
        return there
    with turn_to_build(dest, log):
        there = _find_same(dest, snapshot)
        if there is not None:
            return there
        with partial_folder(dest) as partial:
            assemble(snapshot, partial, max_shard_bytes, log)
            write_manifest(partial, snapshot.source, snapshot.revision)
            built = _inspect_built(partial, snapshot.source)
            if publish(partial, dest):
                return _describe(replace(built, path=dest))
    theirs = inspect_folder(dest)
    if theirs.sha256 != built.sha256:
        raise ModelError(
            f"{dest}: another process put a model with identity {theirs.sha256} there meanwhile, expected "
            f"{built.sha256}; remove the folder and run again"
        )
    return _describe(theirs, already_there=True)


def _inspect_built(partial: Path, source: str) -> ModelFolder:
    """Inspect the unfinished folder; errors name the source instead, since the folder is deleted by then."""
    try:
        return inspect_folder(partial)
    except ModelError as error:
        raise ModelError(str(error).replace(str(partial), source)) from error


def _find_same(dest: Path, snapshot: Snapshot) -> StagedModel | None:
    """What stands at `dest` if it is this snapshot, None if nothing does. Raises ModelError for anything else."""
    if not is_filled(dest):
        return None
    if not (dest / MANIFEST).is_file():
        raise ModelError(f"{dest} is there already and is no staged model (no {MANIFEST}); name another folder")
    found = inspect_folder(dest)
    same_source = found.source == snapshot.source or snapshot.revision.startswith(BY_CONTENT)
    if not same_source or found.revision != snapshot.revision:
        raise ModelError(
            f"{dest} holds another model: found {found.source} at {found.revision}, expected {snapshot.source} at "
            f"{snapshot.revision}; name another folder, or remove this one"
        )
    _check_content(found, snapshot)
    return _describe(found, already_there=True)


def _check_content(found: ModelFolder, snapshot: Snapshot) -> None:
    """Raise ModelError where the folder's manifest, which its files are held to, is not that of the source's files."""
    hashes = found.manifest_hashes or {}
    for name in sorted(hashes.keys() & snapshot.hashes.keys()):
        if hashes[name] != snapshot.hashes[name]:
            raise ModelError(
                f"{found.path / name}: sha256 is {hashes[name]}, expected {snapshot.hashes[name]} from "
                f"{snapshot.source}; the staged copy was changed: remove its folder and run again"
            )


def _use_in_place(folder: Path, source: str, revision: str | None) -> StagedModel:
    found = inspect_folder(folder)
    if revision is not None and not (found.revision or "").startswith(revision):
        raise ModelError(
            f"{folder}: found revision {found.revision}, expected {revision}; stage that one, or name none"
        )
    return _describe(replace(found, source=found.source or source), already_there=True)


def _use_without_hub(source: str, revision: str | None, stage_dir: Path, error: HubUnreachableError) -> StagedModel:
    found = _staged_folders(stage_dir, source, revision)
    if len(found) == 1:
        warning = f"{error}; using {found[0].path}, staged before from commit {found[0].revision}"
        return replace(_describe(found[0], already_there=True), warning=warning)
    wanted = source if revision is None else f"{source} at {revision}"
    if not found:
        raise ModelError(f"{error}, and no folder below {stage_dir} is a staged {wanted}. {_ADVICE}") from error
    commits = ", ".join(str(folder.revision) for folder in found)
    raise ModelError(
        f"{error}, and below {stage_dir} there are {len(found)} staged revisions of {source}: {commits}. "
        "Name one of them as the model's revision"
    ) from error


def _staged_folders(stage_dir: Path, source: str, revision: str | None) -> list[ModelFolder]:
    """The staged folders of a source; of one commit, if `revision` is one. A branch or a tag matches none: which
    commit it stands for is only known to the hub.
    """
    manifests = sorted(stage_dir.glob(f"[!.]*/{MANIFEST}"))
    folders = [inspect_folder(path.parent) for path in manifests if path.parent.name.startswith(_slug(source) + "-")]
    return [folder for folder in folders if folder.source == source and _matches(folder.revision, revision)]


def _matches(found: str | None, asked: str | None) -> bool:
    if asked is None:
        return True
    return found is not None and bool(_COMMIT.fullmatch(asked)) and found.startswith(asked)


def _describe(folder: ModelFolder, *, already_there: bool = False) -> StagedModel:
    return StagedModel(folder.path, folder.source or "", folder.revision, folder.sha256, already_there)


def _folder_name(name: str, revision: str) -> str:
    pin = revision.removeprefix(BY_CONTENT)
    return f"{_slug(name)}-{pin[:12] if _HASH.fullmatch(pin) else _slug(pin)}"


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"


@contextmanager
def _disk_faults_named(source: str, where: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        file = f" ({error.filename})" if error.filename else ""
        raise ModelError(
            f"staging {source} in {where} failed: {error.strerror or error}{file}; make space or name another folder"
        ) from error
