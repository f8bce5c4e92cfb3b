"""Whether a checkpoint's tensors are those of its config: names, shapes, dtypes. Standard library only.

transformers fills a missing tensor with random numbers and casts integers to floats; here the architecture's own
tensors are taken, all of them and no others.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dolly_batch.errors import ModelError
from dolly_batch.models.checkpoint import Tensor
from dolly_batch.models.config import ModelConfig
from dolly_batch.models.tensors import Size, Weight

_FLOATS = ("F64", "F32", "F16", "BF16")
# Ends of tensor names that GPTQ, AWQ, bitsandbytes and 8-bit floats add.
_QUANTIZED = (".qweight", ".qzeros", ".g_idx", ".scales", ".SCB", ".absmax", ".quant_map", ".weight_scale_inv")


def check_weights(path: Path, config: ModelConfig, found: Mapping[str, Tensor]) -> None:
    """Hold the tensors of the folder `path` against its config.

    Raises ModelError, which names the first tensor that is missing, of another shape, of a dtype that is no weight's,
    and the first that the model does not have; buffers of older versions are passed over.
    """
    tensors = _full_names(config, found)
    expected = dict(_expected(config, tensors))
    missing, reshaped, no_floats = [], [], []
    for name, shape in expected.items():
        tensor = tensors.get(name)
        if tensor is None:
            missing.append(f"{name} is missing, expected {list(shape)}")
        elif tensor.shape != shape:
            reshaped.append(f"{name} has shape {list(tensor.shape)}, expected {list(shape)}")
        elif tensor.dtype not in _FLOATS:
            no_floats.append(f"{name} has dtype {tensor.dtype}, expected one of {', '.join(_FLOATS)}")
    unknown = [
        f"{name}, of shape {list(tensors[name].shape)}, is unknown to {config.architecture.title}"
        for name in sorted(tensors.keys() - expected.keys())
    ]
    problems = [_first(kind) for kind in (missing, reshaped, no_floats, unknown) if kind]
    if problems:
        raise ModelError(f"{path}: the weights are not those of config.json: {'; '.join(problems)}. {_advice(found)}")


def _full_names(config: ModelConfig, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that are read, by their full names: as transformers does, `base` is put before names without it."""
    entry = config.architecture
    tensors = {name: tensor for name, tensor in found.items() if not entry.is_buffer(name)}
    if any(name.startswith(entry.base) for name in tensors):
        return tensors
    outside = {*entry.head, *(weight.name for weight in entry.weights if not weight.name.startswith(entry.base))}
    return {name if name in outside else entry.base + name: tensor for name, tensor in tensors.items()}


def _expected(config: ModelConfig, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes that the config asks of these tensors; of two that are tied, those that are there."""
    entry = config.architecture
    ends = [entry.embedding, *([name for name in entry.head if name in tensors] or entry.head[:1])]
    if config.is_tied:
        ends = [name for name in ends if name in tensors] or ends[:1]
    groups = [("", (*(Weight(name, ("vocab", "hidden")) for name in ends), *entry.weights))]
    # So many layers are enough to find the first that is missing, whatever the config claims.
    num_layers = min(config.num_layers, len(tensors) + 1)
    groups += [(entry.layer.format(number), entry.layer_weights) for number in range(num_layers)]
    sizes = _sizes(config)
    for prefix, weights in groups:
        for weight in weights:
            if weight.switch is None or config.settings.get(*weight.switch):
                yield prefix + weight.name, tuple(sizes[size] for size in weight.shape)


def _sizes(config: ModelConfig) -> dict[Size, int]:
    queries = config.num_heads * config.head_size
    return {
        "vocab": config.vocab_size,
        "hidden": config.hidden_size,
        "inner": config.inner_size,
        "queries": queries,
        "keys": config.kv_size,
        "head": config.head_size,
        "qkv": queries + 2 * config.kv_size,
    }


def _first(problems: Sequence[str]) -> str:
    """The first of like problems, with how many there are."""
    return f"tensor {problems[0]}" + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")


def _advice(found: Mapping[str, Tensor]) -> str:
    if any(name.endswith(_QUANTIZED) for name in found):
        return (
            "They look quantized (GPTQ, AWQ or bitsandbytes): take the model's original weights; "
            "model.quantization: int8 quantizes those"
        )
    return "Fetch the whole model again, or correct config.json"
