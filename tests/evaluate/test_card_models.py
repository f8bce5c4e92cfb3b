"""The base models of the card load and score: folders as their hub repositories are, made small."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM

from dolly_batch.engine.plain.engine import PlainEngine
from dolly_batch.engine.weights.loading import load_model
from dolly_batch.errors import ModelError
from dolly_batch.staging.stage import stage_to

pytestmark = pytest.mark.usefixtures("one_thread")

# The keys of the hub's config.json of each; of the values only the sizes are others.
PYTHIA = {
    "architectures": ["GPTNeoXForCausalLM"],
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "gelu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 128,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 128,
    "model_type": "gpt_neox",
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.24.0",
    "use_cache": True,
    "use_parallel_residual": True,
    "vocab_size": 320,
}
NEOX_20B = {
    **{key: value for key, value in PYTHIA.items() if key != "use_parallel_residual"},
    "attention_probs_dropout_prob": 0,
    "hidden_dropout_prob": 0,
    "hidden_act": "gelu_fast",
    "transformers_version": "4.19.0.dev0",
}
GPT_J = {
    "activation_function": "gelu_new",
    "architectures": ["GPTJForCausalLM"],
    "attn_pdrop": 0.0,
    "bos_token_id": 299,
    "embd_pdrop": 0.0,
    "eos_token_id": 299,
    "gradient_checkpointing": False,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gptj",
    "n_embd": 32,
    "n_head": 2,
    "n_inner": None,
    "n_layer": 2,
    "n_positions": 128,
    "resid_pdrop": 0.0,
    "rotary": True,
    "rotary_dim": 8,
    "scale_attn_weights": True,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_logits": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50, "temperature": 1.0}},
    "tie_word_embeddings": False,
    "tokenizer_class": "GPT2Tokenizer",
    "transformers_version": "4.18.0.dev0",
    "use_cache": True,
    "vocab_size": 320,
}


def base_tokenizer(architecture: str) -> Tokenizer:
    """Without Dolly's markers: GPT-NeoX's has runs of spaces as added tokens, GPT-J's has tokens that no text holds."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC() if architecture == "gpt_neox" else None
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["some plain words to learn a few merges from"] * 4, trainer)
    added = [" " * 4, " " * 2] if architecture == "gpt_neox" else ["<|extratoken_1|>", "<|extratoken_2|>"]
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in added])
    return tokenizer


def write_repository(folder: Path, config: dict[str, Any], *, pickled: bool) -> Path:
    """A repository: half-precision weights, with the masks that older versions of transformers saved beside them."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    base_tokenizer(config["model_type"]).save(str(folder / "tokenizer.json"))
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(_hf_config(folder))
    # Under the name that the repositories have; transformers 5 calls it otherwise.
    state = {name.replace("lm_head.", "embed_out.") if config["model_type"] == "gpt_neox" else name: weight
             for name, weight in model.state_dict().items()}  # fmt: skip
    state = {name: (weight.float() * 4).half() for name, weight in state.items()}
    layer = "gpt_neox.layers.{}.attention" if config["model_type"] == "gpt_neox" else "transformer.h.{}.attn"
    for number in range(2):
        state[f"{layer.format(number)}.bias"] = torch.ones(1, 1, 128, 128, dtype=torch.bool).tril()
        state[f"{layer.format(number)}.masked_bias"] = torch.tensor(-1e9)
    if pickled:
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file({name: weight.contiguous() for name, weight in state.items()}, folder / "model.safetensors")
    return folder


def _hf_config(folder: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder)


@pytest.mark.parametrize(
    ("config", "pickled"), [(PYTHIA, False), (NEOX_20B, False), (GPT_J, True)], ids=["pythia", "neox-20b", "gpt-j"]
)
def test_a_base_model_is_staged_loaded_and_scored(config: dict[str, Any], pickled: bool, tmp_path: Path) -> None:
    staged = stage_to(str(write_repository(tmp_path / "repository", config, pickled=pickled)), tmp_path / "staged")
    with pytest.raises(ModelError, match="### End"):  # a job of prompts in the Dolly format is refused
        load_model(staged.folder, dtype="float32", device="cpu")
    loaded = load_model(staged.folder, dtype="float32", device="cpu", prompt_format="none")
    engine = PlainEngine(loaded)
    prompt = engine.encoder.encode_text("Question: which    words?\nAnswer:")
    continuations = engine.encoder.encode_texts([" some", " plain words.", " 42"])
    # As the harness would load it: transformers reads the config by itself.
    reference = AutoModelForCausalLM.from_pretrained(staged.folder, dtype=torch.float32)
    expected = []
    for continuation in continuations:
        with torch.inference_mode():
            logits = reference(torch.tensor([prompt + continuation])).logits[0].double().log_softmax(-1)
        places = range(len(prompt) - 1, len(prompt) + len(continuation) - 1)
        expected.append(sum(logits[place, token].item() for place, token in zip(places, continuation, strict=True)))
    assert engine.score(prompt, continuations) == pytest.approx(expected, abs=1e-4)
    assert len({round(value) for value in expected}) > 1  # the weights say something
