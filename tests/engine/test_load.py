"""Loading: what is refused, what is tolerated, and what an engine needs to be importable."""

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dolly_batch.engine.load import load_engine
from dolly_batch.engine.plain.engine import PlainEngine
from dolly_batch.engine.processes.pool import WorkerPool
from dolly_batch.engine.protocol import generate
from dolly_batch.engine.weights.loading import load_model, resolve_dtype
from dolly_batch.errors import ConfigError, ModelError
from dolly_batch.models.folder import MANIFEST, inspect_folder
from dolly_batch.prompt import PromptEncoder
from dolly_batch.records import EngineSpec, GenerationParams, Request

CPU = torch.device("cpu")


@pytest.fixture(params=["neox_folder", "gptj_folder"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(request.getfixturevalue(request.param), tmp_path / "model"))
    (copy / MANIFEST).unlink()
    return copy


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_every_weight_arrives_in_the_dtype(folder: Path, dtype: str) -> None:
    loaded = load_model(folder, dtype=dtype, device="cpu")
    stored = load_file(folder / "model.safetensors")
    state = loaded.model.state_dict()
    assert loaded.dtype == getattr(torch, dtype)
    for name, tensor in stored.items():
        found = state[name.replace("embed_out.", "lm_head.")]
        assert torch.equal(found, tensor.to(loaded.dtype)), name
    assert not loaded.model.training


def test_rotary_tables_stay_in_float32(neox_folder: Path) -> None:
    for dtype in ("float64", "bfloat16"):
        rotary = load_model(neox_folder, dtype=dtype, device="cpu").model.gpt_neox.rotary_emb
        assert (rotary.inv_freq.dtype, rotary.attention_scaling) == (torch.float32, 1.0)


def test_missing_weights_are_refused(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.pop(sorted(tensors)[-1]))
    with pytest.raises(ModelError, match="missing"):
        load_model(folder, device="cpu")


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    def widen(tensors: dict[str, Tensor]) -> None:
        name = next(name for name in sorted(tensors) if "mlp" in name and name.endswith("weight"))
        tensors[name] = torch.zeros(3, 64)

    edit_weights(folder, widen)
    with pytest.raises(ModelError, match=r"has shape \[3, 64\], expected"):
        load_model(folder, device="cpu")


def test_unknown_weights_are_refused_and_old_buffers_are_not(folder: Path) -> None:
    layer = (
        "gpt_neox.layers.0.attention"
        if inspect_folder(folder).architecture.title == "GPT-NeoX"
        else "transformer.h.0.attn"
    )
    buffers = {f"{layer}.bias": torch.ones(4, dtype=torch.bool), f"{layer}.masked_bias": torch.tensor(-1e9)}
    if "neox" in layer:
        buffers[f"{layer}.rotary_emb.inv_freq"] = torch.ones(2)
    edit_weights(folder, lambda tensors: tensors.update(buffers))
    load_model(folder, device="cpu")
    edit_weights(folder, lambda tensors: tensors.update({f"{layer}.adapter": torch.ones(4)}))
    with pytest.raises(ModelError, match=r"unknown.*adapter"):
        load_model(folder, device="cpu")


def test_another_model_than_the_planned_one_is_refused(folder: Path) -> None:
    sha256 = inspect_folder(folder).sha256
    load_model(folder, device="cpu", expected_sha256=sha256)
    edit_weights(folder, lambda tensors: tensors[sorted(tensors)[0]].add_(1))
    with pytest.raises(ModelError, match=sha256):
        load_model(folder, device="cpu", expected_sha256=sha256)


def test_a_flipped_bit_is_refused(neox_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(neox_folder, tmp_path / "model"))
    raw = bytearray((folder / "model.safetensors").read_bytes())
    raw[-7] ^= 16
    (folder / "model.safetensors").write_bytes(raw)
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        load_engine(EngineSpec("plain", str(folder)), "cpu")


def test_dtypes() -> None:
    assert resolve_dtype("float16", CPU) == torch.float16
    assert resolve_dtype("auto", CPU) in (torch.bfloat16, torch.float32)
    with pytest.raises(ConfigError, match="float8"):
        resolve_dtype("float8", CPU)


@pytest.mark.parametrize(
    ("capability", "archs", "is_refused"),
    [
        ((7, 0), ["sm_75", "sm_80", "sm_90"], True),
        ((7, 0), ["sm_50", "sm_70", "sm_80"], False),
        ((8, 9), ["sm_80", "sm_90"], False),
        ((9, 0), ["sm_80", "sm_90a"], False),
        ((8, 0), ["sm_86", "sm_90"], True),
        ((12, 0), ["sm_90", "compute_90"], False),
        ((12, 0), ["sm_75", "sm_90"], True),
    ],
)
def test_a_gpu_that_torch_has_no_code_for_is_named(
    capability: tuple[int, int], archs: list[str], is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its first kernel would end the host, after the model was staged and loaded."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: archs)
    if is_refused:
        with pytest.raises(ConfigError, match=r"Tesla V100 has compute capability .* has code for .* only; install"):
            resolve_dtype("auto", torch.device("cuda:0"))
    else:
        assert resolve_dtype("float16", torch.device("cuda:0")) == torch.float16


def test_products_in_float32_are_float32s(neox_folder: Path) -> None:
    """NVIDIA's images set TORCH_ALLOW_TF32_CUBLAS_OVERRIDE."""
    torch.backends.cuda.matmul.allow_tf32 = True
    load_model(neox_folder, dtype="float32", device="cpu")
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch has a GPU here")
def test_a_gpu_that_torch_cannot_use_is_named(neox_folder: Path) -> None:
    """As where Spark hands out GPUs on a machine whose torch was built without CUDA."""
    for kind in ("auto", "plain"):
        with pytest.raises(ConfigError, match=r"was given a GPU, and torch .* cannot use one here"):
            load_engine(EngineSpec(kind, str(neox_folder)), device="cuda:0")


def test_code_in_the_folder_is_not_run(folder: Path, tmp_path: Path) -> None:
    bomb = f"import pathlib; pathlib.Path({str(tmp_path / 'exploded')!r}).touch()"
    for name in ("modeling_gpt_neox.py", "instruct_pipeline.py", "__init__.py", "generate.py"):
        (folder / name).write_text(bomb)
    load_model(folder, device="cpu")
    assert not (tmp_path / "exploded").exists()


def test_load_engine_answers_as_the_spec_says(neox_folder: Path) -> None:
    spec = EngineSpec("plain", str(neox_folder), inspect_folder(neox_folder).sha256, dtype="float32", num_threads=1)
    beats: list[int] = []
    engine = load_engine(spec, None, lambda: beats.append(1))
    assert isinstance(engine, PlainEngine)
    assert engine.max_positions == 2048
    assert isinstance(engine.encoder, PromptEncoder)
    request = Request("a", tuple(engine.encoder.encode("Name a river.", None)), GenerationParams(5))
    assert [completion.key for completion in generate(engine, [request])] == ["a"]
    assert beats
    with pytest.raises(ConfigError, match="int8"):
        load_engine(replace(spec, quantization="int8"))
    with pytest.raises(ModelError, match="0123"):
        load_engine(replace(spec, model_sha256="0123"))


@pytest.mark.parametrize(("kind", "processes"), [("plain", 1), ("fast", 1), ("fast", 2), ("echo", 1)])
def test_a_smaller_window_bounds_prompt_and_answer_in_all_engines(neox_folder: Path, kind: Any, processes: int) -> None:
    spec = EngineSpec(
        kind, str(neox_folder), dtype="float32", num_threads=1, processes=processes, max_positions=64, kv_bytes=1 << 24
    )
    engine = load_engine(spec, "cpu")
    with contextlib.closing(engine) if isinstance(engine, WorkerPool) else contextlib.nullcontext():
        assert engine.max_positions == 64
        asked = [Request(f"{n}", (5,) * n, GenerationParams(8)) for n in (56, 57)]
        ended = {completion.key: completion.failure for completion in generate(engine, asked)}
    assert ended["56"] is None
    assert ended["57"] is not None
    assert "exceed 64 positions" in ended["57"].message


ALONE = """
import importlib, importlib.machinery, importlib.util, json, pkgutil, sys

hidden = json.loads(sys.argv[1])

class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in hidden else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Finder
assert not any(importlib.util.find_spec(name) for name in hidden)
import dolly_batch.prompt, dolly_batch.records
for package in json.loads(sys.argv[2]):
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__, package + "."):
        importlib.import_module(module.name)
from dolly_batch.engine.load import load_engine
from dolly_batch.records import EngineSpec, GenerationParams, Request
engine = load_engine(EngineSpec(sys.argv[3], sys.argv[4]), "cpu")
prompt_ids = tuple(engine.encoder.encode("Name a river.", None))
engine.submit(Request("a", prompt_ids, GenerationParams(3)))
print(engine.step()[0].key, "torch" in sys.modules)
"""


@pytest.mark.parametrize(
    ("hidden", "packages", "kind", "expected"),
    [
        (
            ["pyspark", "pandas", "pyarrow", "pydantic"],
            ["dolly_batch.engine", "dolly_batch.host"],
            "plain",
            ["a", "True"],
        ),
        (["pyspark", "pandas", "pyarrow", "pydantic", "torch", "transformers"], [], "echo", ["a", "False"]),
    ],
)
def test_engines_run_where_nothing_else_is_installed(
    neox_folder: Path, hidden: list[str], packages: list[str], kind: str, expected: list[str]
) -> None:
    arguments = [json.dumps(hidden), json.dumps(packages), kind, str(neox_folder)]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == expected
