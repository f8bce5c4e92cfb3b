"""The engines that are compared, and the ways of setting each up among which the best is chosen."""

import importlib.util
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Options = dict[str, Any]


@dataclass(frozen=True)
class Models:
    """One model's folder, in words what it is, and the same as peers want it, where it could be made.

    `ctranslate2` are its folders by compute type, `llama_cpp` its server and the GGUF file by kind of numbers. A
    `stop_ids` ends an answer, in every engine.
    """

    folder: Path
    said: str
    vllm_int8: Path
    ctranslate2: dict[str, str] = field(default_factory=dict)
    llama_cpp: dict[str, str] = field(default_factory=dict)
    stop_ids: tuple[int, ...] = ()


LAYOUTS: tuple[Options, ...] = ({"processes": 2, "threads": 1}, {"processes": 1, "threads": 2})


@dataclass(frozen=True)
class Engine:
    """One engine. `choices` are tried one after the other, each with the best of those before it.

    `splits`: it is one process by itself, so that two processes are two of it with half of the rows each.
    `min_rows`: fewer would be all ramp-up and tail. `trial_rows`: rows for choosing. `is_steady`: it answers row by row
    or in batches of its own size, so that few rows are no disadvantage.
    """

    name: str
    runner: str
    options: Options
    choices: tuple[tuple[Options, ...], ...]
    trial_rows: int
    min_rows: int
    splits: bool = False
    in_peers_environment: bool = False
    is_steady: bool = False
    without: str | None = None
    """Why it cannot be run here."""
    defaults: Options = field(default_factory=lambda: dict(LAYOUTS[0]))


def ours(name: str, models: Models, *, dtype: str = "bfloat16", quantization: str = "none", kv_bytes: int) -> Engine:
    """This project's engine in one precision."""
    options = {**_common(models), "dtype": dtype, "quantization": quantization, "kv_bytes": kv_bytes}
    return Engine(name, "ours", options, (LAYOUTS,), trial_rows=256, min_rows=256)


def peers(models: Models, dtype: str, kv_bytes: int, python: Path) -> list[Engine]:
    """All others, those that cannot be run too."""
    options = {**_common(models), "dtype": dtype}
    # Row by row a CPU's bfloat16 is not always the faster one.
    dtypes = tuple({"dtype": name} for name in dict.fromkeys((dtype, "float32")))
    batch_sizes = tuple({"batch_size": size} for size in (8, 16))
    return [
        Engine("naive", "naive", options, (LAYOUTS, dtypes), trial_rows=10, min_rows=24, is_steady=True),
        Engine(
            "predict_batch_udf",
            "predict_batch_udf",
            options,
            (LAYOUTS, dtypes, batch_sizes),
            trial_rows=32,
            min_rows=48,
            is_steady=True,
            defaults={**LAYOUTS[0], **dtypes[0], **batch_sizes[0]},
        ),
        _generate_batch(options, dtypes),
        _ctranslate2(models),
        _vllm(models, dtype, kv_bytes, python),
        _llama_cpp(models),
    ]


def _common(models: Models) -> Options:
    return {"model": str(models.folder), "stop_ids": list(models.stop_ids)}


def _generate_batch(options: Options, dtypes: tuple[Options, ...]) -> Engine:
    # It is told nothing about the rows that are not in a forward, and masks the whole of what lies in one: few rows at
    # once make small masks, many make larger products.
    requests = tuple({"max_requests": count, "max_batch_tokens": 256} for count in (16, 8, 32))
    pages = tuple({"page_size": size, "num_tokens": 65_536} for size in (32, 256))
    attention = tuple({"attention": name} for name in ("sdpa", "eager"))
    return Engine(
        "generate_batch",
        "generate_batch",
        options,
        (LAYOUTS, dtypes, requests, pages, attention),
        trial_rows=64,
        min_rows=96,
        splits=True,
        defaults={**LAYOUTS[0], **dtypes[0], **requests[0], **pages[0], **attention[0]},
    )


def _ctranslate2(models: Models) -> Engine:
    compute_types = tuple({"compute_type": name} for name in ("int8", "float32"))
    batches: tuple[Options, ...] = (
        {"batch_type": "examples", "batch_size": 32},
        {"batch_type": "examples", "batch_size": 16},
        {"batch_type": "examples", "batch_size": 64},
        {"batch_type": "tokens", "batch_size": 2_048},
    )
    spreads: tuple[Options, ...] = ({"spread": None}, {"spread": 8})
    return Engine(
        "ctranslate2",
        "ctranslate2",
        {**_common(models), "converted": models.ctranslate2},
        (LAYOUTS, compute_types, spreads, batches),
        trial_rows=192,
        min_rows=1_000,
        in_peers_environment=True,
        without=None if models.ctranslate2 else "it could not be installed or could not convert the model",
        defaults={**LAYOUTS[0], **compute_types[0], **spreads[0], **batches[0]},
    )


def _vllm(models: Models, dtype: str, kv_bytes: int, python: Path) -> Engine:
    # To load and compile takes it over a minute each time, so all is not tried with all.
    quantizations = tuple({"quantization": name} for name in ("int8", "none"))
    return Engine(
        "vllm",
        "vllm",
        {
            **_common(models),
            "models": {"none": str(models.folder), "int8": str(models.vllm_int8)},
            "dtype": dtype,
            "kv_bytes": kv_bytes,
        },
        (LAYOUTS, quantizations),
        trial_rows=256,
        min_rows=1_000,
        splits=True,
        in_peers_environment=True,
        without=_vllm_lacks(python),
        defaults={**LAYOUTS[0], **quantizations[0]},
    )


def _llama_cpp(models: Models) -> Engine:
    parallel = tuple({"parallel": count} for count in (32, 16, 64))
    attention = tuple({"flash_attention": name} for name in ("on", "off"))
    return Engine(
        "llama_cpp",
        "llama_cpp",
        {**_common(models), **models.llama_cpp},
        (LAYOUTS, parallel, attention),
        trial_rows=128,
        min_rows=1_000,
        splits=True,
        without=None if models.llama_cpp else "its server could not be built, or it has no converter for the model",
        defaults={**LAYOUTS[0], **parallel[0], **attention[0]},
    )


def _vllm_lacks(python: Path) -> str | None:
    """Why vLLM cannot be run, or None."""
    code = "import vllm, torch; from vllm.platforms import current_platform as p; print(p.device_type or 'no device')"
    tried = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    if tried.returncode == 0:
        device = tried.stdout.split()[-1]
        return None if device in ("cpu", "cuda") else f"the vLLM that is installed runs on {device}"
    if "No module named 'vllm'" in tried.stderr:
        return (
            "it could not be put into benchmarks/.venv-peers: install a build for this machine into an environment and "
            "name that with --peers-python"
        )
    return tried.stderr.strip().splitlines()[-1]


def has_module(name: str) -> bool:
    """Whether this interpreter has a module."""
    return importlib.util.find_spec(name) is not None
