"""Small models with random weights, in real folders, with a BPE trained here or a given one."""

import shutil
from functools import lru_cache
from pathlib import Path

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from dolly_batch.models.architectures import ARCHITECTURES
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
    architecture: str = "gpt_neox",
    *,
    tokenizer: Path | None = None,
    num_layers: int = 2,
    hidden_size: int = 64,
    max_positions: int = 2048,
    seed: int = 0,
    manifest: bool = False,
    max_shard_size: str = "1GB",
    **settings: object,
) -> Path:
    """Write a model's folder and return it: config, tokenizer, safetensors in float32, and a manifest if asked for.

    `tokenizer` is a tokenizer.json to use, `settings` are further keys of config.json. The weights are wide enough that
    answers differ from row to row.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer is None:
        train_tokenizer().save(str(folder / "tokenizer.json"))
    else:
        shutil.copyfile(tokenizer, folder / "tokenizer.json")
    vocab_size = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    entry = ARCHITECTURES[architecture]
    keys = entry.sizes
    sizes = {
        keys.hidden_size: hidden_size,
        keys.num_layers: num_layers,
        keys.num_heads: 4,
        keys.max_positions: max_positions,
        **({keys.inner_size: 4 * hidden_size} if keys.inner_size in entry.required else {}),
        **({"rotary_dim": 8} if "rotary_dim" in entry.required else {}),
        **({keys.num_kv_heads: 2} if keys.num_kv_heads else {}),
        **entry.fixed,
        **settings,
    }
    config = getattr(transformers, entry.config_class)(
        **sizes, vocab_size=vocab_size, initializer_range=0.2, bos_token_id=0, eos_token_id=0
    )
    torch.manual_seed(seed)
    model = getattr(transformers, entry.model_class)(config)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    if manifest:
        write_manifest(folder, source="random", revision=str(seed))
    return folder
