"""Compiled kernels are kept between processes: the same numbers, nothing compiled twice, nothing of others run."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.conftest import PROJECT

pytest.importorskip("numba")
from dolly_batch.engine.kernels.cpu.kept import _folder
from dolly_batch.system.user_cache import private_cache

# Loads kernels, and says how many were compiled here, and what they compute.
PROGRAM = """
    import json, sys
    import numpy as np, torch
    from numba.core import event
    from dolly_batch.engine.kernels.cpu.compiled import find_row_kernels
    with event.install_recorder("numba:compile") as recorder:
        rows = find_row_kernels(torch.float32, torch.float32, 1e-20, 128)
    assert rows
    numbers = np.random.default_rng(1).standard_normal((3, 40)).astype(np.float32)
    quantized, scales = np.empty(numbers.shape, np.uint8), np.empty(3, np.float32)
    rows.quantize(numbers, quantized, scales)
    print(json.dumps([len(recorder.buffer), quantized.tolist(), scales.tolist()]))
"""

# Loads attention for the shapes that its arguments name, and prints those that were not found.
POOLS = """
    import sys
    import torch
    from dolly_batch.engine.kernels.cpu.compiled import find_pool_kernels
    torch.set_num_threads(1)
    for shape in sys.argv[1:]:
        if find_pool_kernels(*map(int, shape.split("x")), torch.float32) is None:
            print(shape)
"""

# Prints hashes of what all kernels compute that add up floats.
SUMS = """
    import hashlib
    import numpy as np, torch
    from dolly_batch.engine.kernels.cpu.compiled import as_words, find_layer_kernels, find_pool_kernels, find_rms_norm
    torch.set_num_threads(1)
    numbers = torch.Generator().manual_seed(1)
    def random(*sizes):
        return torch.randn(sizes, generator=numbers)
    def show(*tensors):
        print([hashlib.sha256(tensor.numpy().tobytes()).hexdigest()[:8] for tensor in tensors])
    for dtype in (torch.float32, torch.bfloat16):
        for heads, kv_heads, size in ((6, 3, 18), (6, 2, 64)):
            kernels = find_pool_kernels(heads, kv_heads, size, dtype)
            pool, query = random(2, 4, 320, kv_heads, size).to(dtype), random(60, heads, size)
            given, found, others = random(60, 2, kv_heads, size).to(dtype), torch.empty_like(query), query[:4].clone()
            kernels.prefill(as_words(pool), 1, 120, query.numpy(), as_words(given), found.numpy())
            rows = np.arange(4), np.array([200, 77, 311, 5])
            kernels.decode(as_words(pool), *rows, query[:4].numpy(), as_words(given[:4]), others.numpy())
            show(found, others)
        layer = find_layer_kernels(dtype, 1e-20, 128)
        outputs, scales, integers = random(9, 406), random(9).abs(), torch.empty(9, 203, dtype=torch.uint8)
        layer.gate(outputs.numpy(), scales.numpy(), random(406).numpy(), integers.numpy())
        show(integers, scales)
        stream = random(9, 203)
        layer.add_norm(*(t.numpy() for t in (stream, random(9, 203), scales, random(203), random(203))),
                       np.float32(1e-5), integers.numpy())
        show(stream, integers, scales)
    inputs, weight = random(9, 203).bfloat16(), random(203).bfloat16()
    bits = [tensor.view(torch.int16).numpy().view(np.uint16) for tensor in (inputs, weight)]
    normed = np.empty_like(bits[0])
    find_rms_norm()(*bits, np.float32(1e-5), normed)
    print(hashlib.sha256(normed.tobytes()).hexdigest()[:8])
"""


def run(program: str, cache: Path, *arguments: str, **environment: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        cwd=PROJECT,
        env={"PATH": "", "HOME": str(cache), "XDG_CACHE_HOME": str(cache), **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def load(cache: Path, **environment: str) -> tuple[int, list[object]]:
    num_compiled, *computed = json.loads(run(PROGRAM, cache, **environment))
    return num_compiled, computed


def files(cache: Path) -> list[Path]:
    return [path for path in (cache / "dolly-batch" / "kernels").rglob("*") if path.is_file()]


@pytest.mark.long
def test_a_later_process_compiles_nothing_and_computes_the_same(tmp_path: Path) -> None:
    num_compiled, computed = load(tmp_path)
    assert num_compiled > 0
    kept = {path: path.read_bytes() for path in files(tmp_path)}
    assert kept
    assert load(tmp_path) == (0, computed)
    assert {path: path.read_bytes() for path in files(tmp_path)} == kept
    # A file that was cut off, and one of other bytes, are compiled again and put right.
    for path, text in zip(sorted(kept), (b"", b"x" * 500), strict=False):
        path.write_bytes(text)
    assert load(tmp_path) == (num_compiled, computed)
    assert {path for path in files(tmp_path) if path.stat().st_size < 1_000} == set()
    # Other settings of numba have a folder of their own.
    assert load(tmp_path, NUMBA_OPT="2") == (num_compiled, computed)
    assert len({path.parent for path in files(tmp_path)}) == 2


@pytest.mark.long
def test_kernels_of_two_shapes_that_two_processes_compiled_live_side_by_side(tmp_path: Path) -> None:
    # Spark gives its workers one hash seed. With it, both processes name what they compile alike, but for the shape.
    for shape in ("4x4x16", "6x3x18"):
        assert run(POOLS, tmp_path, shape, PYTHONHASHSEED="0") == ""
    for shapes in (("4x4x16", "6x3x18"), ("6x3x18", "4x4x16", "8x2x32")):
        assert run(POOLS, tmp_path, *shapes, PYTHONHASHSEED="0") == ""


@pytest.mark.long
def test_no_bit_depends_on_whether_kernels_were_compiled_here_or_loaded(tmp_path: Path) -> None:
    compiled = run(SUMS, tmp_path)
    assert len(compiled.splitlines()) == 9
    assert run(SUMS, tmp_path) == compiled


def test_nothing_is_taken_from_a_folder_that_others_may_write_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "dolly-batch" / "kernels"
    assert private_cache("kernels") == folder
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    assert private_cache("kernels") is None
    (tmp_path / "dolly-batch" / "link").symlink_to(tmp_path)
    assert private_cache("link") is None
    (tmp_path / "dolly-batch" / "file").write_text("")
    assert private_cache("file") is None


def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _folder.__wrapped__() is not None
    monkeypatch.setenv("DOLLY_BATCH_KERNEL_CACHE", "off")
    assert _folder.__wrapped__() is None
