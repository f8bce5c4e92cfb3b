"""Loading a model: weights and modules are Hugging Face's, class and config those of `models/architectures.py`.

Nothing from the folder is executed: safetensors only, no remote code, and the config object is built from the checked
settings alone (`config.py`), not from the file.
"""

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from transformers.utils.logging import disable_progress_bar

from dolly_batch.engine.weights.calibration import calibration_ids
from dolly_batch.engine.weights.device_map import device_map, first_gpus
from dolly_batch.engine.weights.int8_cpu import quantize
from dolly_batch.engine.weights.smoothing import Smoothing
from dolly_batch.errors import ConfigError, ModelError
from dolly_batch.models.folder import ModelFolder, inspect_folder, verify_hashes
from dolly_batch.prompt import PromptEncoder
from dolly_batch.records import EngineSpec
from dolly_batch.tokenizer import TextEncoder

_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device, in evaluation mode, with the encoder of the same folder."""

    model: Any  # a causal language model of transformers, which is untyped
    encoder: TextEncoder
    device: torch.device
    dtype: torch.dtype
    folder: ModelFolder
    devices: tuple[torch.device, ...] = ()
    """All devices of a model that lies on several, `device` first; empty for one."""


def load_model(
    folder: str | Path,
    *,
    dtype: str = "auto",
    device: str | None = None,
    expected_sha256: str | None = None,
    prompt_format: Literal["model", "none"] = "model",
    num_gpus: int = 1,
    quantization: str = "none",
    max_positions: int | None = None,
) -> LoadedModel:
    """Check a model's folder, hashes included, and load it.

    `dtype` auto: on CUDA bfloat16 from compute capability 8.0, else float16; on a CPU bfloat16 where it has
    instructions for it, else float32. `prompt_format` "none" loads base models, which have none, for scoring.
    With `num_gpus` over 1 the layers are spread over the first so many GPUs. `quantization` int8 or fp8 puts the linear
    layers into 8 bits on their way to the device, layer by layer, so that the device never holds the model without.
    `max_positions` is the window that is used, None for the model's own.
    Raises ModelError when the folder cannot be run, changed since it was staged, or is not `expected_sha256`;
    ConfigError for a dtype or a quantization that the device does not have, or a GPU that is not there.
    """
    checked = inspect_folder(folder, max_positions)
    if expected_sha256 is not None and checked.sha256 != expected_sha256:
        raise ModelError(f"{checked.path}: holds model {checked.sha256}, the plan was made with {expected_sha256}")
    encoder = (PromptEncoder if prompt_format == "model" else TextEncoder).from_folder(folder)
    verify_hashes(checked)
    devices = first_gpus(num_gpus) if num_gpus > 1 else ()
    on = devices[0] if devices else torch.device(device or ("cuda:0" if torch.cuda.is_available() else "cpu"))
    resolved = resolve_dtype(dtype, on)
    # NVIDIA's images set it by their environment, and the angles of rotary embeddings are a product in float32.
    torch.backends.cuda.matmul.allow_tf32 = False
    if quantization == "none":
        model = _load_weights(checked, resolved, on, devices)
    elif quantization in ("int8", "fp8"):
        # In the files' own dtype, where weights stay mapped files: the host's memory needs no copy of them either.
        model = _load_weights(checked, "auto" if on.type == "cuda" else resolved, torch.device("cpu"))
        smoothing = smoothing_of(checked, encoder) if quantization == "int8" else None
        quantize(model, on, resolved, smoothing=smoothing, quantization=quantization)
    else:
        raise ConfigError(f"model.quantization is {quantization!r}, expected none, int8 or fp8")
    return LoadedModel(model, encoder, on, resolved, checked, devices)


def smoothing_of(folder: ModelFolder, encoder: TextEncoder) -> Smoothing | None:
    """How int8 smooths a folder's model, the same at each load; None for an architecture that it leaves as it is."""
    channels = folder.architecture.smoothed
    return Smoothing(channels, calibration_ids(encoder)) if channels else None


def load_from_spec(spec: EngineSpec, device: str) -> LoadedModel:
    """Load the model that a spec names onto a device, or over the first `spec.gpus` GPUs; see `load_model`."""
    return load_model(
        spec.model_folder,
        dtype=spec.dtype,
        device=device,
        expected_sha256=spec.model_sha256,
        prompt_format=spec.prompt_format,
        num_gpus=spec.gpus,
        quantization=spec.quantization,
        max_positions=spec.max_positions,
    )


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the torch dtype for a name or `auto`. Raises ConfigError when the device lacks it, or is not there."""
    if dtype != "auto" and dtype not in _DTYPES:
        raise ConfigError(f"model.dtype is {dtype!r}, expected auto or one of {', '.join(_DTYPES)}")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(
                f"this process was given a GPU, and torch {torch.__version__} cannot use one here: install a torch "
                "with CUDA, fix the driver, or ask for no GPUs"
            )
        capability = torch.cuda.get_device_capability(device)
        _check_compiled_for(torch.cuda.get_device_name(device), capability)
        if dtype == "bfloat16" and capability < (8, 0):
            raise ConfigError(
                f"model.dtype is bfloat16, but {torch.cuda.get_device_name(device)} has compute capability "
                f"{capability[0]}.{capability[1]} and bfloat16 needs 8.0; use float16"
            )
        auto = torch.bfloat16 if capability >= (8, 0) else torch.float16
    else:
        auto = torch.bfloat16 if _cpu_has_bfloat16() else torch.float32
    return _DTYPES.get(dtype, auto)


def _check_compiled_for(name: str, capability: tuple[int, int]) -> None:
    """Raise ConfigError where the installed torch has no code for a GPU: its first kernel would end the process.

    Code for 8.0 (`sm_80`) runs on 8.0 and on later minor versions of it; `compute_80` is compiled for any later GPU.
    """
    built_for = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", arch) for arch in torch.cuda.get_arch_list()]
    known = [(found[1], (int(found[2]), int(found[3]))) for found in built_for if found]
    fits = [version <= capability and (kind == "compute" or version[0] == capability[0]) for kind, version in known]
    if known and not any(fits):
        versions = ", ".join(f"{major}.{minor}" for _, (major, minor) in known)
        raise ConfigError(
            f"{name} has compute capability {capability[0]}.{capability[1]}, and torch {torch.__version__} has code "
            f"for {versions} only; install a torch that is built for this GPU (for a V100 one for CUDA 12.6, from "
            "https://download.pytorch.org/whl/cu126), or use another GPU"
        )


def _cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies in bfloat16 itself; elsewhere bfloat16 is emulated and slower than float32."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def _load_weights(
    folder: ModelFolder,
    dtype: torch.dtype | Literal["auto"],
    device: torch.device,
    devices: tuple[torch.device, ...] = (),
) -> Any:
    architecture = folder.architecture
    config_class, model_class = (
        getattr(transformers, name) for name in (architecture.config_class, architecture.model_class)
    )
    # Without token ids: the encoder and the engine know what starts and ends a text.
    config = config_class(**folder.config.settings, bos_token_id=None, eos_token_id=None)
    # Straight onto the device where accelerate is there, without a copy of all weights in the host's memory.
    direct = device.type == "cuda" and importlib.util.find_spec("accelerate") is not None
    places: Any = {"": device} if direct else None
    if devices:
        with torch.device("meta"):
            places = device_map(model_class(config), folder.config, devices)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    model, info = model_class.from_pretrained(
        folder.path,
        config=config,
        dtype=dtype,
        attn_implementation=architecture.attention,
        local_files_only=True,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # so that they are reported below, with names
        device_map=places,
    )
    _check_loaded(folder, info)
    return model.eval() if devices else model.to(device).eval()


def _check_loaded(folder: ModelFolder, info: Mapping[str, Any]) -> None:
    """Refuse a model with missing weights: transformers fills them with random numbers."""
    unexpected = sorted(name for name in info["unexpected_keys"] if not folder.architecture.is_buffer(name))
    problems = {
        "missing": sorted(info["missing_keys"]),
        "of another shape": sorted(str(key) for key in info["mismatched_keys"]),
        "unknown": unexpected,
    }
    for problem, names in problems.items():
        if names:
            model_type = folder.architecture.model_type
            raise ModelError(
                f"{folder.path}: {len(names)} weights are {problem} for {model_type}, the first is {names[0]}"
            )
