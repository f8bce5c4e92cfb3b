"""Makes a model folder of one snapshot: config, tokenizer and tensors, no code."""

import shutil
import stat
from contextlib import suppress
from pathlib import Path

from dolly_batch.errors import ModelError
from dolly_batch.models.folder import CONFIG, TOKENIZER, read_config
from dolly_batch.prompt_format import PROMPT
from dolly_batch.staging.isolated import Log, run_isolated
from dolly_batch.staging.layout import check_index, find_chat_template, find_weights, staged_config
from dolly_batch.staging.sources import Snapshot


def assemble(snapshot: Snapshot, dest: Path, max_shard_bytes: int, log: Log) -> None:
    """Fill the empty folder `dest`; all but the manifest.

    Config and tokenizer come first, so that a model we cannot run is refused before its weights are fetched.
    Raises ModelError, naming the file, and OSError for faults of the disk.
    """
    fetched = dest / ".fetched"
    fetched.mkdir()
    small = snapshot.fetch_small(fetched)
    _write_config(small, dest)
    _write_tokenizer(small, dest, snapshot.source, log)
    _write_prompt_format(small, dest, log)
    folder = snapshot.fetch_weights(fetched, log)
    _write_weights(folder, dest, folder == fetched, max_shard_bytes, log)
    shutil.rmtree(fetched)
    _share_alike(dest)


def _write_config(folder: Path, dest: Path) -> None:
    read_config(folder)
    (dest / CONFIG).write_bytes(staged_config((folder / CONFIG).read_bytes()))


def _write_tokenizer(folder: Path, dest: Path, source: str, log: Log) -> None:
    if (folder / TOKENIZER).is_file():
        shutil.copyfile(folder / TOKENIZER, dest / TOKENIZER)
        return
    if not (folder / "vocab.json").is_file() or not (folder / "merges.txt").is_file():
        raise ModelError(f"model {source}: {TOKENIZER} is missing, and there is no vocab.json with merges.txt either")
    log(f"writing {TOKENIZER} from vocab.json and merges.txt")
    run_isolated("dolly_batch.staging.tokenizer_files", [str(folder), str(dest)], log)


def _write_prompt_format(folder: Path, dest: Path, log: Log) -> None:
    """Of a folder that was staged before, its own; else made of the chat template, where there is one."""
    if (folder / PROMPT).is_file():
        shutil.copyfile(folder / PROMPT, dest / PROMPT)
    elif (folder / TOKENIZER).is_file() and find_chat_template(folder) is not None:
        run_isolated("dolly_batch.staging.chat_template", [str(folder), str(dest)], log)


def _write_weights(folder: Path, dest: Path, owned: bool, max_shard_bytes: int, log: Log) -> None:
    weights = find_weights(path.name for path in folder.iterdir())
    if weights is None:
        raise ModelError(f"{folder}: found no weights, expected *.safetensors or pytorch_model*.bin")
    weights = check_index(folder, weights)
    if weights.pickled:
        keep = "delete" if owned else "keep"
        run_isolated("dolly_batch.staging.convert", [str(folder), str(dest), str(max_shard_bytes), keep], log)
        return
    for name in [*weights.files, *filter(None, [weights.index])]:
        if owned:
            (folder / name).rename(dest / name)
        else:
            log(f"copying {name}")
            shutil.copyfile(folder / name, dest / name)


def _share_alike(dest: Path) -> None:
    """Give every file the access new files get: safetensors lets its owner alone read, and executors may be others."""
    mode = stat.S_IMODE((dest / CONFIG).stat().st_mode)
    for path in dest.iterdir():
        if stat.S_IMODE(path.stat().st_mode) != mode:
            with suppress(PermissionError):  # mounted object stores have one mode for everything
                path.chmod(mode)
