"""`tiny`'s own byte-level BPE, with Dolly's special tokens."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tools.tiny.records import Row

INTRO = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
ENDOFTEXT, END, INSTRUCTION, RESPONSE = "<|endoftext|>", "### End", "### Instruction:", "### Response:"
SPECIAL_TOKENS = [ENDOFTEXT, END, INSTRUCTION, RESPONSE]
# The trainer gives special tokens the first ids, in their order.
ENDOFTEXT_ID, END_ID, INSTRUCTION_ID, RESPONSE_ID = range(4)


def prompt_text(row: Row) -> str:
    """The row's text between the instruction and the response markers, in Dolly's format."""
    asked = f"{row.instruction}\n\nInput:\n{row.context}" if row.context else row.instruction
    return f"\n{asked}\n\n"


def train_tokenizer(rows: Iterable[Row], vocab_size: int) -> Tokenizer:
    """Train the BPE on prompts and responses. `<|endoftext|>` is id 0; the three markers of Dolly follow.

    The space before a capital or a digit is a token of its own, so that a name is the same tokens at the start of an
    answer, in quotes and inside a sentence: copying it is then much easier to learn for a small model.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" (?=[\p{Lu}\p{N}])"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (text for row in rows for text in (INTRO + "\n\n", prompt_text(row), f"\n{row.response}\n\n"))
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode_row(tokenizer: Tokenizer, row: Row) -> tuple[list[int], list[int]]:
    """Prompt ids and response ids; the response ends with `\\n\\n### End`. Markers inside the row stay plain text."""
    tokenizer.encode_special_tokens = True
    parts = [tokenizer.encode(text).ids for text in (INTRO + "\n\n", prompt_text(row), "\n", f"{row.response}\n\n")]
    prompt = [*parts[0], INSTRUCTION_ID, *parts[1], RESPONSE_ID, *parts[2]]
    return prompt, [*parts[3], END_ID]


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json`, as transformers reads them."""
    tokenizer.encode_special_tokens = False
    tokenizer.save(str(folder / "tokenizer.json"))
    common = {f"{kind}_token": ENDOFTEXT for kind in ("bos", "eos", "pad", "unk")}
    markers = [END, INSTRUCTION, RESPONSE]
    config = {
        **common,
        "additional_special_tokens": markers,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    for name, content in (
        ("tokenizer_config.json", config),
        ("special_tokens_map.json", {**common, "additional_special_tokens": markers}),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
