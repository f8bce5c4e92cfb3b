"""The GPU kernels built for GPUs that are not here: what the compiler made of them. Needs triton, and no GPU.

    python benchmarks/gpu/builds.py 7.5 8.0 8.6 9.0        a line of JSON for each kernel and compute capability

Arguments are as the engine gives them: aligned pointers, strides that are multiples of 16. Registers, spills and loads
are read from the machine code itself.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # else there is nothing to build
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # as a script, without the package installed

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dolly_batch.engine.kernels.gpu import (
    SPLIT_KEYS,
    copy_pages,
    decode,
    decode_group,
    gate,
    gather,
    heads,
    int8,
    keys_values,
    norms,
    sample,
)

_HEADS = {64: 64, 80: 20, 128: 32}  # by their size, how many numbers are rotated: SmolLM2, dolly-v2-3b, 7b and 12b
_STORED = {"int8": "i8", "fp8": "fp8e4nv"}
_TOOL = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


@dataclass(frozen=True, slots=True)
class Build:
    """One kernel for one GPU. `spilled_bytes` is local memory; loads and barriers are counted over the whole code."""

    kernel: str
    capability: str
    num_registers: int
    spilled_bytes: int
    shared_bytes: int
    wide_loads: int  # of 16 bytes
    medium_loads: int  # of 8 bytes
    narrow_loads: int  # of 1 or 2 bytes
    num_barriers: int
    num_products: int  # of tensor cores
    num_doubles: int  # float64 instructions
    num_looped: int  # instructions of the longest loop
    num_looped_barriers: int


@dataclass(frozen=True, slots=True)
class Case:
    """A kernel, the types of its pointers and numbers (others are int32), its constants and launch settings."""

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int = 3
    unaligned: tuple[str, ...] = ()


def cases(capability: str) -> Iterator[Case]:
    """All kernels that run there, in bfloat16 or, before 8.0, float16, in the shapes in which they run."""
    dtype = "fp16" if capability < "8" else "bf16"
    for head_size in _HEADS:
        for stored in ("int8", "fp8") if capability >= "8.9" else ("int8",):
            name = f"decode, heads of {head_size}, {stored}, 4 parts"
            sizes = _attend_sizes(head_size, 4, 1, stored)
            yield Case(name, decode._attend, _attend_types(dtype, 4, stored), sizes, 4)
            yield from _store_cases(dtype, head_size, stored)
        yield from _store_cases(dtype, head_size, "")
        for num_splits in (1, 4):
            name = f"decode, heads of {head_size}, {num_splits} parts"
            yield Case(
                name, decode._attend, _attend_types(dtype, num_splits), _attend_sizes(head_size, num_splits, 1), 4
            )
        if head_size != 80:
            yield from _group_cases(dtype, head_size, capability)
        sizes = {"NUM_SPLITS": 4, "KEYS": SPLIT_KEYS, "HEAD_SIZE": head_size}
        sizes["BLOCK_SIZE"] = triton.next_power_of_2(head_size)
        types = _types("parts, sums: fp32", output=dtype, positions="i64")
        yield Case(f"join, heads of {head_size}", decode._join, types, sizes, 1)
    yield from _layer_cases(dtype)
    types = _types("temperatures, top_ps, numbers: fp64", logits=dtype, tokens="i64", limits="fp32")
    sizes = {"MAX_ATTEMPTS": 16, "BLOCK": sample._BLOCK, "BLOCKS": sample.num_blocks(50_280), "MULTIPLE": 8}
    # Rows of 50,280 logits in units of 8: no multiple of 16.
    yield Case("choose", sample._choose, types, sizes, sample._NUM_WARPS, 3, ("row_units", "vocab_units"))
    sizes = {"PAGE_ITEMS": 40 * 16 * 128, "BLOCK": copy_pages._BLOCK}
    types = _types("sources, targets: i64", pages=dtype)
    yield Case("copy pages", copy_pages._copy_pages, types, sizes, copy_pages._NUM_WARPS, 3, ("num_pages",))
    if dtype == "bf16":  # before 8.0 int8 is torch's own operations
        yield from _int8_cases(dtype, capability)


def _types(alike: str, **others: str) -> dict[str, str]:
    """Types of pointers: of names that have one in common, and of others."""
    names, _, dtype = alike.partition(": ")
    return {**dict.fromkeys(names.split(", "), f"*{dtype}"), **{name: f"*{own}" for name, own in others.items()}}


def _attend_types(dtype: str, num_splits: int, stored: str = "") -> dict[str, str]:
    out = "fp32" if num_splits > 1 else dtype
    types = _types(f"query: {dtype}", tables="i32", slots="i64", positions="i64")
    types |= _types(f"key_pages, value_pages: {_STORED.get(stored, dtype)}")
    return {**types, **_types("key_scales, value_scales: fp32"), **_types(f"output, sums: {out}"), "scale": "fp32"}


def _attend_sizes(head_size: int, num_splits: int, group: int, stored: str = "") -> dict[str, Any]:
    sizes = {"NUM_SPLITS": num_splits, "PARTS": 3, "KEYS": SPLIT_KEYS, "PAGE": 16, "BLOCK_KEYS": decode._BLOCK_KEYS}
    sizes |= {"HEAD_SIZE": head_size, "PIECE": decode.piece_size(head_size), "GROUP": group}
    return {**sizes, "HAS_SCALES": stored != ""}


def _group_cases(dtype: str, head_size: int, capability: str) -> Iterator[Case]:
    """Groups of 4, each in one program, or before 8.0 in one for each head."""
    kernel: Any = decode._attend if capability < "8" else decode_group._attend_group
    for stored in ("", "int8", "fp8") if capability >= "8.9" else ("", "int8"):
        sizes, settings = _attend_sizes(head_size, 4, 4, stored), {"num_stages": 3}
        if capability >= "8":
            settings = decode_group.group_settings(4, stored != "")
            sizes |= {"BLOCK_KEYS": decode_group.GROUP_BLOCK_KEYS, "MEMBERS": settings["MEMBERS"]}
            sizes |= {"BLOCK_SIZE": triton.next_power_of_2(head_size)}
            del sizes["PIECE"], sizes["PARTS"]
        name = f"decode {'in' if capability < '8' else 'of'} groups, heads of {head_size}, {stored or dtype}"
        yield Case(name, kernel, _attend_types(dtype, 4, stored), sizes, 4, settings["num_stages"])


def _store_cases(dtype: str, head_size: int, stored: str) -> Iterator[Case]:
    """Of 32 heads, or of 32 and 8 of keys where all of a head is rotated."""
    num_kv_heads = 8 if head_size == 64 else 32
    types = _types(f"query, key, value, query_weight, key_weight, queries, keys, values: {dtype}")
    types |= _types(f"key_pages, value_pages: {_STORED.get(stored, dtype)}", places="i64", packed_at="i64")
    types |= {**_types("cosines, sines, key_scales, value_scales: fp32"), "epsilon": "fp32"}
    common = {"KV_HEADS": num_kv_heads, "PAGE": 16, "HEAD_SIZE": head_size, "HAS_SCALES": stored != ""}
    sizes = common | {"HEADS": 32, "HALF": _HEADS[head_size] // 2, "IS_INT8": stored == "int8", "IS_PACKED": True}
    sizes |= {**heads.block_sizes(num_kv_heads, head_size, _HEADS[head_size] // 2), "HAS_NORMS": False}
    name = f"heads of {head_size}, {stored or dtype}"
    yield Case(f"store {name}", keys_values._store, types, sizes, heads.NUM_WARPS)
    blocks = heads.block_sizes(num_kv_heads, head_size, 0)
    sizes = common | {key: blocks[key] for key in ("BLOCK_SIZE", "BLOCK_HEADS")}
    yield Case(f"gather {name}", gather._gather, types, sizes, heads.NUM_WARPS)


def _layer_cases(dtype: str) -> Iterator[Case]:
    """The norms of dolly-v2-3b and 12b and of a Llama of 8B, and the gate."""
    names = "stream, first_added, second_added, summed, first_weight, first_bias, first_output"
    types = {**_types(f"{names}, second_weight, second_bias, second_output: {dtype}"), "epsilon": "fp32"}
    for size, num_added, num_norms in ((2560, 2, 2), (4096, 1, 1), (5120, 2, 2)):
        block = triton.next_power_of_2(size)
        sizes = {"SIZE": size, "BLOCK": block, "NUM_ADDED": num_added, "NUM_NORMS": num_norms}
        sizes |= {"CENTERS": num_norms == 2, "HAS_BIAS": num_norms == 2}
        yield Case(f"norms of {size}", norms._add_norms, types, sizes, norms.num_warps(block))
    types = _types(f"gates, values, outputs: {dtype}")
    yield Case("gate", gate._gate, types, {"BLOCK": gate._BLOCK}, gate._NUM_WARPS)


def _int8_cases(dtype: str, capability: str) -> Iterator[Case]:
    for stored in ("int8", "fp8") if capability >= "8.9" else ("int8",):
        types = _types("scales: fp32", rows=dtype, quantized=_STORED[stored])
        sizes: dict[str, Any] = {"BLOCK": 4096, "IS_INT8": stored == "int8"}
        yield Case(f"quantize rows to {stored}", int8._quantize_rows, types, sizes, 8)
    types = _types("row_scales, weight_scales, bias: fp32", rows="i8", weight="i8", outputs=dtype)
    for num_rows in (16, 128, 512):
        tile = int8.choose_tile(num_rows, 15_360, 132)
        sizes = {"BLOCK_ROWS": tile.num_rows, "BLOCK_OUTPUTS": tile.num_outputs, "BLOCK_INPUTS": tile.num_inputs}
        sizes |= {"HAS_BIAS": True, "EVEN": True}
        name = f"int8 product, {num_rows} rows"
        yield Case(name, int8._multiply, types, sizes, tile.num_warps, tile.num_stages, ("num_rows",))
    types = _types("row_scales, weight_scales, bias: fp32", sums="i32", outputs=dtype)
    yield Case("scale sums", int8._scale_sums, types, {"HAS_BIAS": True, "BLOCK": 4096}, 8)


def build(case: Case, capability: str) -> Build:
    """Build a kernel for a compute capability such as `9.0`."""
    kernel = case.kernel
    names = kernel.arg_names
    signature = {name: "constexpr" if name in case.constants else case.types.get(name, "i32") for name in names}
    aligned = [
        name for name in names
        if name not in case.constants and name not in case.unaligned and signature[name] not in ("fp32", "fp64")
    ]  # fmt: skip
    source = ASTSource(
        kernel,
        signature,
        {(names.index(name),): value for name, value in case.constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    major, _, minor = capability.partition(".")
    target = GPUTarget("cuda", 10 * int(major) + int(minor), 32)
    compiled: Any = triton.compile(
        source, target=target, options={"num_warps": case.num_warps, "num_stages": case.num_stages}
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        usage, code = (_read(option, file.name) for option in ("--dump-resource-usage", "-sass"))
    loop = _longest_loop(code)
    found = {key: int(value) for key, value in re.findall(r"(REG|LOCAL|STACK):(\d+)", usage)}
    return Build(
        case.name,
        capability,
        found["REG"],
        found["LOCAL"] + found["STACK"],
        compiled.metadata.shared,
        len(re.findall(r"(?:LDG|LDGSTS)\.E[.\w]*\.128", code)),
        len(re.findall(r"LDG\.E[.\w]*\.64\b", code)),
        len(re.findall(r"LDG\.E[.\w]*\.[US](?:8|16)\b", code)),
        code.count("BAR.SYNC"),
        len(re.findall(r"\b(?:[IHQ]?MMA|IGMMA|HGMMA|QGMMA)\.", code)),
        len(re.findall(r"\b(?:DADD|DMUL|DFMA|DSETP)\b", code)),
        len(loop),
        sum("BAR.SYNC" in instruction for instruction in loop),
    )


def _longest_loop(code: str) -> list[str]:
    """Instructions between a jump back and its target, of loops that have none in them."""
    lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", code)
    number = {int(address, 16): at for at, (address, _) in enumerate(lines)}
    jumps = [(at, re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)) for at, (_, text) in enumerate(lines)]
    ends = [(number.get(int(jump[1], 16), at), at) for at, jump in jumps if jump]
    loops = [(first, last) for first, last in ends if first < last]
    innermost = [
        (a, b)
        for a, b in loops
        if not any(a <= first and last <= b for first, last in loops if (first, last) != (a, b))
    ]
    first, last = max(innermost, key=lambda loop: loop[1] - loop[0], default=(0, -1))
    return [text for _, text in lines[first : last + 1]]


def _read(option: str, path: str) -> str:
    return subprocess.run([str(_TOOL), option, path], capture_output=True, text=True, check=True).stdout


def main() -> None:
    """Build for the capabilities that are given; those after `--only` are words of the kernels' names."""
    words = sys.argv[1:]
    only = words[words.index("--only") + 1 :] if "--only" in words else []
    for capability in words[: words.index("--only")] if "--only" in words else words:
        for case in cases(capability):
            if not only or any(word in case.name for word in only):
                print(json.dumps(asdict(build(case, capability))), flush=True)


if __name__ == "__main__":
    main()
