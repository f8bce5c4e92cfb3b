"""The GPU kernels built for GPUs that are not here: what the interpreter lets pass and the compiler does not."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from benchmarks.gpu.calculator import LOOP_INSTRUCTIONS
from tests.conftest import PROJECT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="triton's assembler comes for Linux")
# Of one multiprocessor, that a program may have.
SHARED_BYTES = {"7.5": 64 << 10, "8.0": 163 << 10, "8.6": 99 << 10, "8.9": 99 << 10, "9.0": 227 << 10}


def built(folder: Path, *words: str) -> list[dict[str, Any]]:
    """What `benchmarks/gpu/builds.py` says of these capabilities and kernels."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(PROJECT / "benchmarks/gpu/builds.py"), *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=PROJECT,
        env={**environment, "TRITON_CACHE_DIR": str(folder)},
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_good(found: dict[str, Any]) -> None:
    """No spills, room for several programs on a multiprocessor, keys and values read 16 bytes at a time."""
    name = found["kernel"]
    assert found["shared_bytes"] <= SHARED_BYTES[found["capability"]], found
    is_decode, is_joint = name.startswith("decode"), name.startswith("decode of groups")
    has_8_bits = is_decode and ("int8" in name or "fp8" in name)
    # Triton 3.6 takes some more registers than 3.7, and spills two of them.
    assert found["spilled_bytes"] <= (8 if is_joint and has_8_bits else 0), found
    is_old = found["capability"] == "7.5"
    most = 176 if is_joint else 168 if name.startswith("int8") else 128 if has_8_bits or (is_decode and is_old) else 96
    assert found["num_registers"] <= most, found
    if is_decode:
        # What the calculator counts with, for 32 keys; versions of Triton and GPUs differ by some hundredths.
        head_size = next(size for size in (64, 80, 128) if f"heads of {size}" in name)
        counted = LOOP_INSTRUCTIONS[head_size, "int8" if has_8_bits else "auto", is_joint]
        assert 0 < 4 * found["num_looped"] * (0.5 if is_joint else 1) <= 1.08 * counted, found
    if is_joint:
        assert found["num_products"] > 0, found
        assert found["shared_bytes"] <= 48 << 10, found  # two programs on any multiprocessor
    elif is_decode:
        # Of keys and of values 16 bytes at once, or half of it in pieces of 16 numbers and in 8 bits.
        wide = {64: 4, 80: 0, 128: 8}[head_size]
        assert found["wide_loads"] >= (wide // 2 if has_8_bits else wide), found
        assert found["medium_loads"] >= (10 if head_size == 80 and not has_8_bits else 0), found
        assert found["num_looped_barriers"] == 0, found
        assert found["shared_bytes"] <= 1024, found  # nothing but the lanes' last exchange
    if name.startswith(("store", "gather", "norms", "gate")):
        assert found["num_registers"] <= 64, found
        assert found["narrow_loads"] == 0, found
    if name.startswith(("norms", "gate")):
        assert found["wide_loads"] >= 2, found
    if name in ("copy pages", "choose"):
        assert found["wide_loads"] > 0, found
        assert found["narrow_loads"] <= 2, found  # of a drawn token's own logit
        assert found["num_doubles"] < 300, found  # sums, and nothing else
    if name.startswith("int8 product"):
        assert found["num_products"] > 0, found  # tensor cores'
        assert found["narrow_loads"] == 0, found


def test_the_kernels_of_a_decode_step_are_built_as_they_should_for_hopper(tmp_path: Path) -> None:
    wanted = ["decode, heads of 80, 4 parts", "decode of groups, heads of 128, bf16", "store heads of 80, int8"]
    found = built(tmp_path, "9.0", "--only", *wanted, "norms of 5120")
    assert {each["kernel"] for each in found} == {*wanted, "norms of 5120"}
    for each in found:
        assert_good(each)


@pytest.mark.chaos  # two minutes of compiling
@pytest.mark.parametrize("capability", sorted(SHARED_BYTES))
def test_all_kernels_are_built_as_they_should(tmp_path: Path, capability: str) -> None:
    found = built(tmp_path, capability)
    assert len(found) >= 12
    for each in found:
        assert_good(each)
