"""Small models with random weights, in real folders: GPT-NeoX or GPT-J, with a BPE trained here or a given one."""

import shutil
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GPTJConfig, GPTJForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM

from dolly_batch.models.folder import write_manifest
from dolly_batch.prompt import END, INSTRUCTION, INTRO, RESPONSE

TEXTS = [
    INTRO,
    "Which of these are fruits? Input: apple, chair, pear, table. Name the colour of the sky on a clear day.",
    "Summarise the passage in one sentence. List three rivers of Europe, one on each line, longest first.",
    "Write a short letter to a neighbour about the broken fence, and thank her for the tomatoes of last week.",
]


@lru_cache
def train_tokenizer(vocab_size: int = 400, response: str = RESPONSE) -> Tokenizer:
    """A byte-level BPE as GPT-NeoX has it, with Dolly's markers; `response` may hold the newline or not."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [
        AddedToken(token, special=True, normalized=False) for token in ("<|endoftext|>", END, INSTRUCTION, response)
    ]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def write_random_model(
    folder: Path,
    architecture: Literal["gpt_neox", "gptj"] = "gpt_neox",
    *,
    tokenizer: Path | None = None,
    num_layers: int = 2,
    hidden_size: int = 64,
    max_positions: int = 2048,
    seed: int = 0,
    manifest: bool = False,
    max_shard_size: str = "1GB",
) -> Path:
    """Write a model's folder and return it: config, tokenizer, safetensors in float32, and a manifest if asked for.

    `tokenizer` is a tokenizer.json to use. The weights are wide enough that answers differ from row to row.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer is None:
        train_tokenizer().save(str(folder / "tokenizer.json"))
    else:
        shutil.copyfile(tokenizer, folder / "tokenizer.json")
    vocab_size = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    sizes = {"vocab_size": vocab_size, "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 0}
    torch.manual_seed(seed)
    if architecture == "gpt_neox":
        model = GPTNeoXForCausalLM(
            GPTNeoXConfig(
                **sizes,
                hidden_size=hidden_size,
                num_hidden_layers=num_layers,
                num_attention_heads=4,
                intermediate_size=4 * hidden_size,
                max_position_embeddings=max_positions,
            )
        )
    else:
        model = GPTJForCausalLM(
            GPTJConfig(
                **sizes, n_embd=hidden_size, n_layer=num_layers, n_head=4, n_positions=max_positions, rotary_dim=8
            )
        )
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    if manifest:
        write_manifest(folder, source="random", revision=str(seed))
    return folder
