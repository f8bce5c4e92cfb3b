"""The model architectures that run, one entry each. Standard library only.

To add one, add an entry: its modules are Hugging Face's, found by name, and everything that differs between
architectures is read from here. `continuous` and `int8` come last, when `tests/engine` holds for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from dolly_batch.models.tensors import OLD_BUFFERS, Switch, Weight, linear, norm


@dataclass(frozen=True, slots=True)
class SizeKeys:
    """The keys of config.json that give a model's sizes. None, or a key that is not set, means the default."""

    hidden_size: str
    num_layers: str
    num_heads: str
    max_positions: str
    inner_size: str
    """Default: four times the hidden size."""
    num_kv_heads: str | None = None
    """Default: as many as heads."""
    head_size: str | None = None
    """Default: hidden size / heads."""


@dataclass(frozen=True, slots=True)
class Channels:
    """Numbers of a layer that come out of one module and go, channel by channel, into linear layers alone."""

    source: str
    """A norm or a linear layer. Behind it nothing but other factors may stand, such as a gate."""
    products: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Architecture:
    """What this package needs to know of one architecture."""

    model_type: str
    """As config.json names it."""
    title: str
    """As messages name it."""
    models: str
    """Well-known models that have it, for messages."""
    config_class: str
    """Class of `transformers`, as is `model_class`."""
    model_class: str
    attention: Literal["sdpa", "eager"]
    """Transformers' implementation to load the model with."""
    base: str
    """What the names of all tensors but the output layer's begin with; a checkpoint may leave it out as a whole."""
    embedding: str
    """Name of the token embedding's tensor, [vocabulary, hidden size]."""
    head: tuple[str, ...]
    """Names that the output layer's matrix may have; its shape is the embedding's. Tied models have one of the two."""
    weights: tuple[Weight, ...]
    """The other tensors outside of the layers."""
    layer: str
    """What the names of a layer's tensors begin with; `{}` is its number, from 0."""
    layer_weights: tuple[Weight, ...]
    sizes: SizeKeys
    required: tuple[str, ...]
    """Keys that must be integers above 0."""
    optional: tuple[str, ...]
    """Further keys that shape the model."""
    fixed: Mapping[str, object] = field(default_factory=dict)
    """Keys that must have these values where they are given: another one is a model that is not run here."""
    ignored: tuple[str, ...] = ()
    """Further keys that change nothing, given those that are fixed."""
    rotary: Mapping[str, tuple[str, float]] | None = None
    """Keys of `rope_parameters`, each with its older name and its default; None where the modules have no such key."""
    num_mlp_matrices: int = 2
    """Of hidden size x inner size, in each layer."""
    buffers: tuple[str, ...] = OLD_BUFFERS
    """Ends of the names of tensors that are never read."""
    continuous: bool = False
    """Whether the continuous engine runs it."""
    int8: bool = False
    """Whether its linear layers may be quantized."""
    llama_layers: bool = False
    """Whether its layers compute what Llama's do and have the same names; heads may have norms."""
    smoothed: tuple[Channels, ...] = ()
    """What of each layer is smoothed first (`engine/weights/smoothing.py`), in `llama_layers` alone."""

    def is_buffer(self, name: str) -> bool:
        """Whether a tensor of the checkpoint is left unread."""
        return name.endswith(tuple(f".{end}" for end in self.buffers))

    @property
    def rotary_keys(self) -> set[str]:
        """Keys that rotary settings may have in config.json."""
        if self.rotary is None:
            return set()
        old_keys = {old_key for old_key, _ in self.rotary.values()}
        return {"rope_scaling", "rope_parameters", *self.rotary, *old_keys}


_SIZES = SizeKeys(
    hidden_size="hidden_size",
    num_layers="num_hidden_layers",
    num_heads="num_attention_heads",
    max_positions="max_position_embeddings",
    inner_size="intermediate_size",
)
_SIZES_REQUIRED = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    "max_position_embeddings",
)
"""What most models call their sizes."""

_GPT_NEOX = Architecture(
    model_type="gpt_neox",
    title="GPT-NeoX",
    models="Dolly v2, Pythia",
    config_class="GPTNeoXConfig",
    model_class="GPTNeoXForCausalLM",
    # Eager attention takes its softmax in float32 whatever the dtype; sdpa keeps float64 and is the faster one.
    attention="sdpa",
    base="gpt_neox.",
    embedding="gpt_neox.embed_in.weight",
    head=("embed_out.weight", "lm_head.weight"),
    weights=norm("gpt_neox.final_layer_norm"),
    layer="gpt_neox.layers.{}.",
    layer_weights=(
        *norm("input_layernorm"),
        *norm("post_attention_layernorm"),
        *linear("attention.query_key_value", "qkv", "hidden", bias=("attention_bias", True)),
        *linear("attention.dense", "hidden", "queries", bias=("attention_bias", True)),
        *linear("mlp.dense_h_to_4h", "inner", "hidden"),
        *linear("mlp.dense_4h_to_h", "hidden", "inner"),
    ),
    sizes=_SIZES,
    required=_SIZES_REQUIRED,
    optional=("hidden_act", "layer_norm_eps", "use_parallel_residual", "attention_bias", "tie_word_embeddings"),
    rotary={"rope_theta": ("rotary_emb_base", 10000), "partial_rotary_factor": ("rotary_pct", 0.25)},
    continuous=True,
    int8=True,
)

_GPTJ = Architecture(
    model_type="gptj",
    title="GPT-J",
    models="Dolly v1, GPT-J",
    config_class="GPTJConfig",
    model_class="GPTJForCausalLM",
    attention="eager",  # its only one
    base="transformer.",
    embedding="transformer.wte.weight",
    head=("lm_head.weight",),
    weights=(*norm("transformer.ln_f"), Weight("lm_head.bias", ("vocab",))),
    layer="transformer.h.{}.",
    layer_weights=(
        *norm("ln_1"),
        *linear("attn.q_proj", "queries", "hidden", bias=False),
        *linear("attn.k_proj", "keys", "hidden", bias=False),
        *linear("attn.v_proj", "keys", "hidden", bias=False),
        *linear("attn.out_proj", "hidden", "queries", bias=False),
        *linear("mlp.fc_in", "inner", "hidden"),
        *linear("mlp.fc_out", "hidden", "inner"),
    ),
    sizes=SizeKeys(
        hidden_size="n_embd",
        num_layers="n_layer",
        num_heads="n_head",
        max_positions="n_positions",
        inner_size="n_inner",
    ),
    required=("vocab_size", "n_embd", "n_layer", "n_head", "n_positions", "rotary_dim"),
    optional=("activation_function", "layer_norm_epsilon", "tie_word_embeddings", "n_inner"),
)


def _llama_like(
    model_type: str,
    name: str,
    models: str,
    *,
    qkv_bias: bool | Switch = False,
    output_bias: bool | Switch = False,
    mlp_bias: bool | Switch = False,
    head_norms: bool = False,
    optional: tuple[str, ...] = (),
    fixed: Mapping[str, object] | None = None,
    ignored: tuple[str, ...] = (),
) -> Architecture:
    """Grouped keys and values, RMS norms, a gated MLP, rotary embeddings of whole heads: what `name`Config says.

    `head_norms`: queries and keys have a norm of each head.
    """
    head_weights = (Weight("self_attn.q_norm.weight", ("head",)), Weight("self_attn.k_norm.weight", ("head",)))
    return Architecture(
        model_type=model_type,
        title=name,
        models=models,
        config_class=f"{name}Config",
        model_class=f"{name}ForCausalLM",
        attention="sdpa",
        base="model.",
        embedding="model.embed_tokens.weight",
        head=("lm_head.weight",),
        weights=(Weight("model.norm.weight", ("hidden",)),),
        layer="model.layers.{}.",
        layer_weights=(
            Weight("input_layernorm.weight", ("hidden",)),
            Weight("post_attention_layernorm.weight", ("hidden",)),
            *(head_weights if head_norms else ()),
            *linear("self_attn.q_proj", "queries", "hidden", bias=qkv_bias),
            *linear("self_attn.k_proj", "keys", "hidden", bias=qkv_bias),
            *linear("self_attn.v_proj", "keys", "hidden", bias=qkv_bias),
            *linear("self_attn.o_proj", "hidden", "queries", bias=output_bias),
            *linear("mlp.gate_proj", "inner", "hidden", bias=mlp_bias),
            *linear("mlp.up_proj", "inner", "hidden", bias=mlp_bias),
            *linear("mlp.down_proj", "hidden", "inner", bias=mlp_bias),
        ),
        sizes=replace(_SIZES, num_kv_heads="num_key_value_heads", head_size="head_dim"),
        required=_SIZES_REQUIRED,
        optional=("hidden_act", "rms_norm_eps", "tie_word_embeddings", "num_key_value_heads", "head_dim", *optional),
        fixed=fixed or {},
        ignored=ignored,
        rotary={"rope_theta": ("rope_theta", 10000.0)},
        num_mlp_matrices=3,
        continuous=True,
        int8=True,
        llama_layers=True,
        smoothed=(
            Channels("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            Channels("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
            Channels("mlp.up_proj", ("mlp.down_proj",)),
        ),
    )


_LLAMA = _llama_like(
    "llama",
    "Llama",
    "SmolLM2, Llama 3",
    qkv_bias=("attention_bias", False),
    output_bias=("attention_bias", False),
    mlp_bias=("mlp_bias", False),
    optional=("attention_bias", "mlp_bias"),
    # Keys of converters and of training in parallel; products in parts have the same sums.
    ignored=("pretraining_tp", "rope_interleaved", "is_llama_config", "transformers.js_config"),
)
# Windows narrower than the context would need a cache that forgets.
_MISTRAL = _llama_like("mistral", "Mistral", "Mistral, with a byte-level BPE", fixed={"sliding_window": None})
_QWEN_WINDOWS = ("sliding_window", "max_window_layers")
_QWEN2 = _llama_like(
    "qwen2",
    "Qwen2",
    "Qwen2, Qwen2.5",
    qkv_bias=True,
    fixed={"use_sliding_window": False},
    ignored=(*_QWEN_WINDOWS, "use_mrope"),
)
_QWEN3 = _llama_like(
    "qwen3",
    "Qwen3",
    "Qwen3",
    qkv_bias=("attention_bias", False),
    output_bias=("attention_bias", False),
    head_norms=True,
    optional=("attention_bias",),
    fixed={"use_sliding_window": False},
    ignored=_QWEN_WINDOWS,
)

ARCHITECTURES: Mapping[str, Architecture] = {
    entry.model_type: entry for entry in (_GPT_NEOX, _GPTJ, _LLAMA, _MISTRAL, _QWEN2, _QWEN3)
}
