"""Whether a model can run on a GPU at all, by arithmetic. Standard library only.

Checked against the executors' GPUs before a job starts, so that a load that must fail is refused early.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dolly_batch.models.config import ModelConfig

BFLOAT16_FROM = (8, 0)  # compute capability: Ampere and newer multiply in bfloat16
INT8_FROM = (7, 5)  # Turing and newer have tensor cores for int8
FP8_FROM = (8, 9)  # Ada and newer convert fp8, and have tensor cores for it
_ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}
_SCALES_PER_LAYER = 9  # outputs of a layer's products, in hidden sizes
_SHORT_WINDOW = 8192  # what most tables need at most, of windows that may be 16 times as long
_RUNTIME_BYTES = 1 << 30  # CUDA's own context and kernels, and the activations of one row
QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as its driver describes it. `capability` is the compute capability, such as (8, 6)."""

    name: str
    memory_bytes: int
    capability: tuple[int, int]


def parse_gpus(text: str) -> list[Gpu]:
    """The GPUs in the output of `QUERY`, one a line: `NVIDIA A10, 23028, 8.6`. Other lines are skipped."""
    gpus = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.rsplit(",", 2)]
        major, _, minor = parts[-1].partition(".")
        if len(parts) == 3 and parts[1].isdecimal() and major.isdecimal() and minor.isdecimal():
            gpus.append(Gpu(parts[0], int(parts[1]) << 20, (int(major), int(minor))))
    return gpus


def num_parameters(config: ModelConfig) -> int:
    """Parameters of a model of this shape, biases and norms included to within a few thousandths."""
    return config.num_layers * layer_parameters(config) + _num_ends(config) * config.vocab_size * config.hidden_size


def _num_ends(config: ModelConfig) -> int:
    """The matrices of vocabulary x hidden size: the embedding and the output layer, or one that is both."""
    return 1 if config.is_tied else 2


def layer_parameters(config: ModelConfig) -> int:
    """Parameters of one of the model's layers."""
    hidden, inner = config.hidden_size, config.inner_size
    attention = 2 * hidden * config.head_size * (config.num_heads + config.num_kv_heads)
    return attention + config.architecture.num_mlp_matrices * hidden * inner + 9 * hidden + inner


def layers_per_gpu(config: ModelConfig, num_gpus: int) -> list[int]:
    """How many layers each of the GPUs that share a model holds, in their order.

    The first one also holds the embeddings and the output layer, and so fewer layers.
    """
    if num_gpus == 1:
        return [config.num_layers]
    ends = _num_ends(config) * config.vocab_size * config.hidden_size / layer_parameters(config)
    first = max(0, round((config.num_layers + ends) / num_gpus - ends))
    rest, more = divmod(config.num_layers - first, num_gpus - 1)
    return [first, *(rest + (gpu < more) for gpu in range(num_gpus - 1))]


def num_weight_bytes(config: ModelConfig, item_bytes: int, quantization: str) -> int:
    """Bytes of a model's weights. In 8 bits the embedding stays as it is, and each output has a scale."""
    if quantization == "none":
        return num_parameters(config) * item_bytes
    embedding = config.vocab_size * config.hidden_size
    num_scales = _SCALES_PER_LAYER * config.num_layers * config.hidden_size + config.vocab_size
    # In int8 a tied output layer is quantized too, next to the embedding; in fp8 none is.
    ends = embedding * (1 + item_bytes) if quantization == "int8" else _num_ends(config) * embedding * item_bytes
    return config.num_layers * layer_parameters(config) + ends + 4 * num_scales


def lacks_int8(name: str, capability: tuple[int, int]) -> str:
    """The message for a GPU that has no integer products."""
    have, needed = (".".join(map(str, version)) for version in (capability, INT8_FROM))
    return (
        f"model.quantization int8 cannot run on {name} (compute capability {have}; int8 needs {needed}); "
        "set model.quantization: none and model.dtype: float16"
    )


def lacks_fp8(key: str, name: str, capability: tuple[int, int]) -> str:
    """The message for a GPU that has no fp8, which this key of the job asks for."""
    have, needed = (".".join(map(str, version)) for version in (capability, FP8_FROM))
    return f"{key} fp8 cannot run on {name} (compute capability {have}; fp8 needs {needed}); use {key}: int8"


def why_not_fits(
    gpus: Sequence[Gpu], config: ModelConfig, dtype: str, quantization: str, kv_dtype: str = "auto"
) -> str | None:
    """Why the model cannot run on these GPUs, which share it; None when it can, as far as arithmetic tells.

    Counts the weights, one row's keys and values at full length, and what CUDA needs for itself.
    """
    for gpu in gpus:
        if dtype == "bfloat16" and gpu.capability < BFLOAT16_FROM:
            version = ".".join(map(str, gpu.capability))
            return (
                f"model.dtype bfloat16 cannot run on {gpu.name} (compute capability {version}; bfloat16 needs "
                f"{'.'.join(map(str, BFLOAT16_FROM))}); set model.dtype: float16"
            )
        if quantization == "int8" and gpu.capability < INT8_FROM:
            return lacks_int8(gpu.name, gpu.capability)
        if quantization == "fp8" and gpu.capability < FP8_FROM:
            return lacks_fp8("model.quantization", gpu.name, gpu.capability)
        if kv_dtype == "fp8" and gpu.capability < FP8_FROM:
            return lacks_fp8("engine.kv_dtype", gpu.name, gpu.capability)
    item_bytes = _ITEM_BYTES.get(dtype, 2)
    weight_bytes = num_weight_bytes(config, item_bytes, quantization)
    needed = _needed_bytes(config, len(gpus), item_bytes, quantization)
    if all(share <= gpu.memory_bytes for share, gpu in zip(needed, gpus, strict=True)):
        return None
    gib, names = 1 << 30, " + ".join(gpu.name for gpu in gpus)
    more = _enough_gpus(gpus, config, item_bytes) if quantization == "none" else None
    short_fits = quantization == "none" and config.architecture.int8 and len(gpus) == 1
    short_fits = short_fits and why_not_fits(gpus, config, dtype, "int8") is None
    remedies = [
        *(["model.dtype: auto"] if item_bytes > 2 else []),
        *([f"model.max_positions: {_SHORT_WINDOW}"] if _fits_short(gpus, config, dtype, quantization) else []),
        *(["model.quantization: int8"] if short_fits else []),
        "a GPU with more memory",
        *([f"model.gpus: {more}"] if more else []),
        "a smaller model",
    ]
    fullest = "" if len(gpus) == 1 else f", {max(needed) / gib:.1f} of them on one GPU"
    return (
        f"the model in {dtype if quantization == 'none' else quantization} needs {sum(needed) / gib:.1f} GiB "
        f"({weight_bytes / gib:.1f} of weights{fullest}), and {names} has "
        f"{sum(gpu.memory_bytes for gpu in gpus) / gib:.1f} GiB; use {', '.join(remedies[:-1])} or {remedies[-1]}"
    )


def _fits_short(gpus: Sequence[Gpu], config: ModelConfig, dtype: str, quantization: str) -> bool:
    """Whether it is the window that is too large: one row's keys and values at full length."""
    if config.max_positions <= _SHORT_WINDOW:
        return False
    return why_not_fits(gpus, replace(config, max_positions=_SHORT_WINDOW), dtype, quantization) is None


def _needed_bytes(config: ModelConfig, num_gpus: int, item_bytes: int, quantization: str = "none") -> list[int]:
    """Bytes that each of the GPUs that share the model needs: weights, one row's keys and values, CUDA itself."""
    layer_bytes = layer_parameters(config) * item_bytes
    if quantization != "none":
        layer_bytes = layer_parameters(config) + _SCALES_PER_LAYER * config.hidden_size * 4
    ends_bytes = num_weight_bytes(config, item_bytes, quantization) - config.num_layers * layer_bytes
    cache_bytes = 2 * config.kv_size * config.max_positions * item_bytes
    return [
        _RUNTIME_BYTES + num_layers * (layer_bytes + cache_bytes) + (ends_bytes if gpu == 0 else 0)
        for gpu, num_layers in enumerate(layers_per_gpu(config, num_gpus))
    ]


def _enough_gpus(gpus: Sequence[Gpu], config: ModelConfig, item_bytes: int) -> int | None:
    """The smallest number of such GPUs that a machine may have and that together hold the model."""
    least = min(gpu.memory_bytes for gpu in gpus)
    counts = (count for count in (2, 4, 8) if count > len(gpus))
    return next((count for count in counts if max(_needed_bytes(config, count, item_bytes)) <= least), None)
