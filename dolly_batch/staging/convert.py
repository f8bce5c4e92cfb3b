"""Pickled weights to safetensors, as a process of its own: `python -m dolly_batch.staging.convert SRC DST MAX KEEP`.

A pickle is a program, so it is read here only, never on executors, with torch's `weights_only` reader, which admits
tensors and plain containers and runs nothing else. Files are memory-mapped: about one output shard is in memory at a
time. All files are read once before the first is written, so that a bad one is refused with nothing done.
"""

import json
import pickle
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from dolly_batch.errors import ModelError
from dolly_batch.models.folder import INDEX, WEIGHTS
from dolly_batch.staging.isolated import report, serve
from dolly_batch.staging.layout import check_index, find_weights

# What torch's reader is seen to raise for files that are cut short, altered, or hold more than tensors; OSError is its
# "Invalid argument" for a zip without its end.
_UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, OSError)


@dataclass(frozen=True)
class Shard:
    """Tensors of one pickle that go into one output file."""

    pickle_name: str
    tensor_names: tuple[str, ...]
    num_bytes: int


def convert(src: Path, dst: Path, max_shard_bytes: int, keep: bool = True) -> None:
    """Write the pickled weights of `src` to `dst` as safetensors, names, dtypes and values unchanged.

    One file, or shards of at most `max_shard_bytes` (one tensor may exceed it) and their index. Without `keep` each
    pickle is deleted once its tensors are written. Raises ModelError for anything but plain tensors.
    """
    weights = find_weights(path.name for path in src.iterdir())
    if weights is None or not weights.pickled:
        raise ModelError(f"{src}: found no pytorch_model.bin to convert")
    pickles = check_index(src, weights).files
    shards = plan_shards(src, pickles, max_shard_bytes)
    names = _shard_names(len(shards))
    tensors: dict[str, torch.Tensor] = {}
    for number, (shard, name) in enumerate(zip(shards, names, strict=True)):
        if number == 0 or shards[number - 1].pickle_name != shard.pickle_name:
            tensors = {}  # lets go of the last file's mapping before the next one is opened
            tensors = load_tensors(src / shard.pickle_name)
        report(f"converting shard {number + 1} of {len(shards)}")
        _save(dict(_separate(tensors, shard.tensor_names)), dst / name)
        last_of_pickle = number + 1 == len(shards) or shards[number + 1].pickle_name != shard.pickle_name
        if last_of_pickle and not keep:
            (src / shard.pickle_name).unlink()
    if len(shards) > 1:
        _write_index(dst, shards, names)


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read one pickled state dict; its tensors are mapped from the file where its format allows."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except _UNREADABLE as e:
        reason = str(e).strip().splitlines()
        raise ModelError(
            f"{path.name} cannot be read as plain tensors and was refused; nothing in it was run. It is damaged, or "
            f"holds more than tensors. Fetch it again, or use a copy in safetensors. ({reason[0] if reason else e!r})"
        ) from e
    if not isinstance(state, dict) or not state:
        raise ModelError(f"{path.name}: found {type(state).__name__}, expected a dictionary of named tensors")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
            raise ModelError(f"{path.name}: entry {name!r} is {type(value).__name__}, expected a dense tensor")
    return state


def plan_shards(src: Path, pickles: tuple[str, ...], max_shard_bytes: int) -> list[Shard]:
    """Divide every pickle's tensors, in their order, into output files of at most `max_shard_bytes`."""
    shards: list[Shard] = []
    owner: dict[str, str] = {}
    for pickle_name in pickles:
        group: list[str] = []
        num_bytes = 0
        for name, tensor in load_tensors(src / pickle_name).items():
            if name in owner:
                raise ModelError(f"tensor {name} is both in {owner[name]} and in {pickle_name}; expected it once")
            owner[name] = pickle_name
            if group and num_bytes + tensor.nbytes > max_shard_bytes:
                shards.append(Shard(pickle_name, tuple(group), num_bytes))
                group, num_bytes = [], 0
            group.append(name)
            num_bytes += tensor.nbytes
        shards.append(Shard(pickle_name, tuple(group), num_bytes))
    return shards


def _separate(tensors: dict[str, torch.Tensor], names: tuple[str, ...]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the named tensors contiguous and each with memory of its own: safetensors knows no shared tensors."""
    seen: set[int] = set()
    for name in names:
        tensor = tensors[name].detach()
        storage = tensor.untyped_storage()
        alone = storage.nbytes() == tensor.nbytes and storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        yield name, tensor if alone and tensor.is_contiguous() else tensor.clone(memory_format=torch.contiguous_format)


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:  # its own class for a full disk as well as for a dtype it does not know
        raise ModelError(f"{path} could not be written: {error}") from error


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return [WEIGHTS]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _write_index(dst: Path, shards: list[Shard], names: list[str]) -> None:
    weight_map = {tensor: name for shard, name in zip(shards, names, strict=True) for tensor in shard.tensor_names}
    index = {
        "metadata": {"total_size": sum(shard.num_bytes for shard in shards)},
        "weight_map": dict(sorted(weight_map.items())),
    }
    (dst / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str]) -> None:
    """Convert as the four arguments say: source, destination, largest shard in bytes, `keep` or `delete`."""
    src, dst, max_shard_bytes, keep = arguments
    convert(Path(src), Path(dst), int(max_shard_bytes), keep=keep == "keep")


if __name__ == "__main__":
    sys.exit(serve(main, sys.argv[1:]))
