"""What a model's config.json may say. Standard library only.

Transformers sets any key of config.json as an attribute, and some keys name code (`auto_map`) or choose kernels that
are fetched (`_attn_implementation_internal`). So the keys are allow-listed: those that shape the model are kept, those
that are known to be harmless here are dropped, and any other is refused.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dolly_batch.errors import ConfigError, ModelError
from dolly_batch.models.architectures import ARCHITECTURES, Architecture

_ACTIVATIONS = {"gelu", "gelu_fast", "gelu_new", "gelu_python", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu"}
# Training settings, token ids (resolved through the tokenizer instead), classifier settings, output switches, and
# what tools write down for people. None of them reaches the model.
_IGNORED = {
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "bos_token_id",
    "chunk_size_feed_forward",
    "classifier_dropout",
    "custom_pipelines",
    "dtype",
    "embd_pdrop",
    "eos_token_id",
    "gradient_checkpointing",
    "hidden_dropout",
    "hidden_dropout_prob",
    "id2label",
    "initializer_range",
    "is_decoder",
    "is_encoder_decoder",
    "label2id",
    "model_type",
    "n_ctx",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "problem_type",
    "resid_pdrop",
    "return_dict",
    "rotary",
    "scale_attn_weights",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_logits",
    "summary_type",
    "summary_use_proj",
    "task_specific_params",
    "tokenizer_class",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
_QUANTIZATIONS = ("quantization_config", "compression_config", "quantization")


# The keys of each type of rotary embedding that is the same at every position, however long the row becomes.
_SCALED_ROTARY: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The checked part of config.json: `settings` holds only keys that shape the model, under their own names."""

    architecture: Architecture
    settings: Mapping[str, object]
    vocab_size: int
    max_positions: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    inner_size: int
    """Width of a layer's MLP."""
    is_tied: bool = False
    """Whether the output layer is the embedding."""

    @property
    def kv_size(self) -> int:
        """Numbers in one token's keys of one layer, and in its values."""
        return self.num_kv_heads * self.head_size


def with_window(config: ModelConfig, max_positions: int | None) -> ModelConfig:
    """The model with fewer positions than it has, None for all. Raises ConfigError for more."""
    if max_positions is None:
        return config
    if max_positions > config.max_positions:
        raise ConfigError(
            f"model.max_positions is {max_positions}, and the model has {config.max_positions} positions; "
            "set it to that or less, or leave it out"
        )
    return replace(config, max_positions=max_positions)


def check_config(path: Path, config: Mapping[str, object]) -> ModelConfig:
    """Return what config.json says about the model's shape; `path` only names the file in errors.

    Raises ModelError for another architecture, a key that is not known to be harmless, a missing or impossible size.
    """
    architecture = _check_architecture(path, config)
    _check_quantization(path, config)
    _check_keys(path, config, architecture)
    for key in architecture.required:
        _positive(path, config, key)
    keys = architecture.sizes
    hidden_size, num_heads = (_positive(path, config, key) for key in (keys.hidden_size, keys.num_heads))
    head_size = _positive(path, config, keys.head_size, default=hidden_size // num_heads)
    if hidden_size % num_heads and head_size == hidden_size // num_heads:
        raise ModelError(f"{path}: hidden size {hidden_size} is not divisible by {num_heads} attention heads")
    num_kv_heads = _positive(path, config, keys.num_kv_heads, default=num_heads)
    if num_heads % num_kv_heads:
        raise ModelError(f"{path}: {num_heads} attention heads are not a multiple of {num_kv_heads} key-value heads")
    _check_fixed(path, config, architecture)
    _check_activation(path, config)
    kept = (*architecture.required, *architecture.optional)
    settings = {key: config[key] for key in kept if config.get(key) is not None} | dict(architecture.fixed)
    if architecture.rotary is not None:
        settings["rope_parameters"] = _rope_parameters(path, config, architecture.rotary)
    return ModelConfig(
        architecture,
        settings,
        vocab_size=_positive(path, config, "vocab_size"),
        max_positions=_positive(path, config, keys.max_positions),
        hidden_size=hidden_size,
        num_layers=_positive(path, config, keys.num_layers),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_size=head_size,
        inner_size=_positive(path, config, keys.inner_size, default=4 * hidden_size),
        is_tied=config.get("tie_word_embeddings") is True,
    )


def _check_architecture(path: Path, config: Mapping[str, object]) -> Architecture:
    model_type = config.get("model_type")
    architecture = ARCHITECTURES.get(model_type) if isinstance(model_type, str) else None
    if architecture is None:
        known = [f"{entry.model_type} ({entry.models})" for entry in ARCHITECTURES.values()]
        raise ModelError(
            f"{path}: model_type is {model_type!r}; this package runs {', '.join(known[:-1])} and {known[-1]}"
        )
    return architecture


def _check_quantization(path: Path, config: Mapping[str, object]) -> None:
    """Weights that are quantized on disk are named as that: GPTQ, AWQ, bitsandbytes, MLX and others note it here."""
    for key in _QUANTIZATIONS:
        if config.get(key) is None:
            continue
        found = config[key]
        method = found.get("quant_method") if isinstance(found, Mapping) else None
        by = f" by {method}" if isinstance(method, str) else ""
        raise ModelError(
            f"{path}: {key} says that the weights are quantized{by}, and such weights are not run; take the model's "
            "original weights (model.quantization: int8 quantizes those)"
        )


def _check_keys(path: Path, config: Mapping[str, object], architecture: Architecture) -> None:
    if "auto_map" in config:
        raise ModelError(f"{path}: auto_map names code to run from the model's folder, which is never done; remove it")
    known = {*architecture.required, *architecture.optional, *architecture.rotary_keys, *_IGNORED, *_QUANTIZATIONS}
    known |= {"layer_types", *architecture.fixed, *architecture.ignored}
    unknown = sorted(key for key in config if key not in known and not key.startswith("_derived"))
    if unknown:
        raise ModelError(
            f"{path}: unknown keys for {architecture.model_type}: {', '.join(unknown)}; "
            "remove them if they don't matter"
        )


def _check_fixed(path: Path, config: Mapping[str, object], architecture: Architecture) -> None:
    """Refuse what would need another attention: windows that slide, over all layers or some."""
    for key, value in architecture.fixed.items():
        if config.get(key, value) != value:
            raise ModelError(
                f"{path}: {key} is {config[key]!r}; {architecture.title} models are run with {json.dumps(value)} alone"
            )
    layer_types = config.get("layer_types")
    if layer_types is not None and (not isinstance(layer_types, list) or set(layer_types) != {"full_attention"}):
        raise ModelError(f"{path}: layer_types holds others than 'full_attention', which are not run: {layer_types!r}")


def _positive(path: Path, config: Mapping[str, object], key: str | None, default: int | None = None) -> int:
    value = None if key is None else config.get(key)
    if value is None and default is not None:
        return default
    if type(value) is not int or value < 1:
        raise ModelError(f"{path}: {key} is {value!r}, expected an integer above 0")
    return value


def _rope_parameters(
    path: Path, config: Mapping[str, object], keys: Mapping[str, tuple[str, float]]
) -> dict[str, object]:
    """Return the rotary settings under their present names.

    Scaled ones are run where the scaling does not change with the length of a row.
    """
    found = [config.get(name) or {} for name in ("rope_parameters", "rope_scaling")]
    rope: dict[str, Any] = {key: value for part in found if isinstance(part, dict) for key, value in part.items()}
    kinds = {str(rope[name]) for name in ("rope_type", "type") if name in rope} or {"default"}
    kind = kinds.pop()
    numbers = None if kinds else _SCALED_ROTARY.get(kind)
    if numbers is None or set(rope) - {"rope_type", "type", *keys} != set(numbers):
        raise ModelError(
            f"{path}: these rotary embeddings are not run, only those of the types "
            f"{', '.join(_SCALED_ROTARY)} with their own keys: found {found!r}"
        )
    result: dict[str, object] = {"rope_type": kind, **{name: rope[name] for name in numbers}}
    for name in numbers:
        if isinstance(rope[name], bool) or not isinstance(rope[name], int | float) or not rope[name] > 0:
            raise ModelError(f"{path}: {name} of the rotary embeddings is {rope[name]!r}, expected a number above 0")
    for key, (old_key, default) in keys.items():
        values = [source[name] for source in (rope, config) for name in (key, old_key) if name in source]
        if any(value != values[0] for value in values):
            raise ModelError(f"{path}: {key} and {old_key} differ: {values}")
        result[key] = values[0] if values else default
    return result


def _check_activation(path: Path, config: Mapping[str, object]) -> None:
    for key in ("hidden_act", "activation_function"):
        if config.get(key, "gelu") not in _ACTIVATIONS:
            raise ModelError(f"{path}: {key} is {config[key]!r}, expected one of {', '.join(sorted(_ACTIVATIONS))}")
