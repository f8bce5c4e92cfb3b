"""The layout of a safetensors file, checked without reading its weights. Standard library only.

A safetensors file is eight bytes (the length of the header, little-endian), a JSON header (tensor name -> dtype, shape,
data_offsets) and the tensors' bytes, one after another without holes. A copy that was cut short or that got something
appended breaks that arithmetic; a flipped bit does not, so hashes are checked as well (`folder.verify_hashes`).
Source: the format's description in huggingface/safetensors, README.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dolly_batch.errors import ModelError

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself
ITEM_BYTES = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E5M2": 1, "F8_E4M3": 1, "C64": 8},
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1},
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as its file's header describes it; `dtype` is safetensors' name, such as BF16."""

    shape: tuple[int, ...]
    dtype: str


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return what every tensor in the file is, in the order of their bytes.

    Raises ModelError, naming the file, when header and length do not agree to the byte.
    """
    header, num_data_bytes = _read_header(path)
    spans = sorted((_span(path, name, entry), name) for name, entry in header.items())
    end = 0
    for (begin, stop), name in spans:
        if begin != end:
            raise ModelError(f"{path}: tensor {name} starts at byte {begin} of the data, expected {end}; copy it again")
        end = stop
    if end != num_data_bytes:
        raise ModelError(
            f"{path}: its header describes {end} bytes of tensors, the file holds {num_data_bytes}; copy it again"
        )
    return {name: Tensor(tuple(header[name]["shape"]), header[name]["dtype"]) for _, name in spans}


def _read_header(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Return the header without its metadata, and the number of bytes that follow it."""
    num_file_bytes = path.stat().st_size
    with path.open("rb") as file:
        num_header_bytes = int.from_bytes(file.read(8), "little")
        if num_file_bytes < 8 or num_header_bytes > min(MAX_HEADER_BYTES, num_file_bytes - 8):
            raise ModelError(
                f"{path}: not a whole safetensors file: {num_file_bytes} bytes, "
                f"of which the header claims {num_header_bytes}; copy it again"
            )
        raw = file.read(num_header_bytes)
    try:
        header = json.loads(raw)
    except ValueError as error:
        raise ModelError(f"{path}: the safetensors header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise ModelError(f"{path}: the safetensors header is not a JSON object")
    header.pop("__metadata__", None)
    return header, num_file_bytes - 8 - num_header_bytes


def _span(path: Path, name: str, entry: object) -> tuple[int, int]:
    """Return (begin, end) of one tensor's bytes, checked against its dtype and shape."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]  # type: ignore[index]
        num_bytes = ITEM_BYTES[dtype] * math.prod(shape)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: the safetensors header's entry for {name} cannot be read: {error!r}") from error
    numbers = (*shape, begin, end)
    if not all(type(number) is int and number >= 0 for number in numbers) or end - begin != num_bytes:
        raise ModelError(f"{path}: tensor {name} of shape {shape} and dtype {dtype} cannot fill bytes {begin} to {end}")
    return begin, end
