"""The model architectures that run, one entry each. Standard library only.

To add one, add an entry: its modules are Hugging Face's, found by name, and everything that differs between
architectures is read from here. `continuous` and `int8` come last, when `tests/engine` holds for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

OLD_BUFFERS = (
    *(f"{attention}.{name}" for attention in ("attention", "attn") for name in ("bias", "masked_bias")),
    *("attn.embed_positions", "rotary_emb.inv_freq"),
)
"""Masks and rotary tables that older versions of transformers saved with the weights; modules make them anew."""


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


Size = Literal["vocab", "hidden", "inner", "queries", "keys", "qkv"]
"""A size by config.json: `queries` is heads x head size, `keys` the same of key-value heads, `qkv` all three."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor of the checkpoint: its name and shape, [outputs, inputs] for a matrix.

    `switch` is a key of config.json, and its default, that must be true for the tensor to be there.
    """

    name: str
    shape: tuple[Size, ...]
    switch: tuple[str, bool] | None = None


def _linear(name: str, outputs: Size, inputs: Size, *, bias: bool | tuple[str, bool] = True) -> tuple[Weight, ...]:
    """A linear layer; `bias` may be the switch of its bias."""
    matrix = Weight(f"{name}.weight", (outputs, inputs))
    if bias is False:
        return (matrix,)
    return (matrix, Weight(f"{name}.bias", (outputs,), None if bias is True else bias))


def _norm(name: str) -> tuple[Weight, ...]:
    return (Weight(f"{name}.weight", ("hidden",)), Weight(f"{name}.bias", ("hidden",)))


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
    rotary: Mapping[str, tuple[str, float]] | None = None
    """Keys of `rope_parameters`, each with its older name and its default; None where the modules have no such key."""
    num_mlp_matrices: int = 2
    """Of hidden size x inner size, in each layer."""
    buffers: tuple[str, ...] = OLD_BUFFERS
    """Ends of the names of tensors that are never read."""
    prompt_format: str = "dolly"
    """Of its models that follow instructions."""
    continuous: bool = False
    """Whether the continuous engine runs it."""
    int8: bool = False
    """Whether its linear layers may be quantized."""

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
    weights=_norm("gpt_neox.final_layer_norm"),
    layer="gpt_neox.layers.{}.",
    layer_weights=(
        *_norm("input_layernorm"),
        *_norm("post_attention_layernorm"),
        *_linear("attention.query_key_value", "qkv", "hidden", bias=("attention_bias", True)),
        *_linear("attention.dense", "hidden", "queries", bias=("attention_bias", True)),
        *_linear("mlp.dense_h_to_4h", "inner", "hidden"),
        *_linear("mlp.dense_4h_to_h", "hidden", "inner"),
    ),
    sizes=SizeKeys(
        hidden_size="hidden_size",
        num_layers="num_hidden_layers",
        num_heads="num_attention_heads",
        max_positions="max_position_embeddings",
        inner_size="intermediate_size",
    ),
    required=(
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
    ),
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
    weights=(*_norm("transformer.ln_f"), Weight("lm_head.bias", ("vocab",))),
    layer="transformer.h.{}.",
    layer_weights=(
        *_norm("ln_1"),
        *_linear("attn.q_proj", "queries", "hidden", bias=False),
        *_linear("attn.k_proj", "keys", "hidden", bias=False),
        *_linear("attn.v_proj", "keys", "hidden", bias=False),
        *_linear("attn.out_proj", "hidden", "queries", bias=False),
        *_linear("mlp.fc_in", "inner", "hidden"),
        *_linear("mlp.fc_out", "hidden", "inner"),
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

ARCHITECTURES: Mapping[str, Architecture] = {entry.model_type: entry for entry in (_GPT_NEOX, _GPTJ)}
