"""Text <-> token ids of the Dolly format. Needs `tokenizers` alone.

    {INTRO}\\n\\n### Instruction:\\n{instruction}\\n\\n### Response:\\n
    {INTRO}\\n\\n### Instruction:\\n{instruction}\\n\\nInput:\\n{context}\\n\\n### Response:\\n

The second form is used exactly when the context is not empty.

The markers are special tokens. A row's own text may hold their letters, and must not be able to close its place in the
prompt; so the ids are put together as

    prefix + [INSTRUCTION] + encode("\\n" + text + "\\n\\n", markers taken as plain text) + [RESPONSE] (+ encode("\\n"))

which for text without markers gives exactly the ids of the whole prompt encoded at once.
Source of the format: databrickslabs/dolly, training/consts.py.
"""

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from dolly_batch.errors import ModelError

INTRO = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
END = "### End"
INSTRUCTION = "### Instruction:"
RESPONSE = "### Response:"  # with or without a newline inside, by model

_TOKENIZER = "tokenizer.json"
_UTF8_MAX_BYTES = 4
# A byte's letter in a byte-level vocabulary; GPT-NeoX's own lacks those of the 13 bytes that UTF-8 never uses.
_UTF8_BYTES = set(ByteLevel.alphabet()) - {chr(byte) for byte in (0xC0, 0xC1, *range(0xF5, 0x100))}


@dataclass(frozen=True, slots=True)
class TokenCount:
    """The tokens of a prompt: counted, or, when not `is_exact`, a lower bound that is already over the limit."""

    num_tokens: int
    is_exact: bool


class TextEncoder:
    """A byte-level BPE as GPT-NeoX and GPT-J have it: plain text <-> ids, no template. Same text, same ids, always."""

    def __init__(self, tokenizer: Tokenizer, path: Path) -> None:
        """`tokenizer` is taken over and changed; `path` only names it in errors."""
        tokenizer.encode_special_tokens = True  # markers inside a text are plain text
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.path = path
        self._tokenizer = tokenizer
        self._layout: dict[str, Any] = json.loads(tokenizer.to_str())
        _check_byte_level(path, self._layout)
        self._max_token_bytes = _max_token_bytes(self._layout)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Self:
        """Read `tokenizer.json` of a model's folder. Raises ModelError naming the file and what is wrong with it."""
        path = Path(folder) / _TOKENIZER
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"{path}: cannot be read ({error}); stage the model again") from error
        try:
            tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the tokenizers library raises bare Exception for a file that it can't read
            raise ModelError(f"{path}: not a tokenizer that can be loaded ({error})") from error
        return cls(tokenizer, path)

    def encode_text(self, text: str) -> list[int]:
        """Encode text as it is, special tokens in it as plain text, nothing added.

        Raises UnicodeEncodeError when the text holds a lone surrogate.
        """
        return self.encode_texts([text])[0]

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode many texts, in order. Raises UnicodeEncodeError when one holds a lone surrogate."""
        try:
            encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        except TypeError:
            for text in texts:
                text.encode()  # raises the error that names the place; the library's own does not
            raise
        return [encoding.ids for encoding in encodings]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Return, per token of the text encoded as it is, where in the text its characters begin and end."""
        return self._tokenizer.encode(text, add_special_tokens=False).offsets

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids as they are, special tokens included; bytes that are not UTF-8 become U+FFFD.

        Ids that have no token (spare rows of the embedding) decode to nothing.
        """
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def min_num_tokens(self, text: str) -> int:
        """Return a number of tokens that `text` surely has, without encoding it: 10 MB take milliseconds.

        Every byte of the normalized text ends up in exactly one token, so there are at least as many tokens as its
        bytes divided by those of the longest token. 0 where the tokenizer changes text in a way not known here.
        Raises UnicodeEncodeError for a lone surrogate.
        """
        if self._max_token_bytes is None:
            return 0
        if self._layout["normalizer"] is not None:
            text = unicodedata.normalize("NFC", text)
        return -(-len(text.encode()) // self._max_token_bytes)

    def bound_over(self, text: str, limit: int) -> int:
        """Return `min_num_tokens` where that is over the limit, else 0; at once for texts of usual length."""
        if self._max_token_bytes is None or len(text) * _UTF8_MAX_BYTES <= limit * self._max_token_bytes:
            return 0
        num_tokens = self.min_num_tokens(text)
        return num_tokens if num_tokens > limit else 0


class PromptEncoder(TextEncoder):
    """The Dolly format on top of a model's tokenizer.

    `end_id`, `instruction_id` and `response_id` are the ids of the three markers. Raises ModelError when the tokenizer
    lacks one, naming it.
    """

    def __init__(self, tokenizer: Tokenizer, path: Path) -> None:
        super().__init__(tokenizer, path)
        self.end_id, _ = self._special_token(END)
        self.instruction_id, _ = self._special_token(INSTRUCTION)
        self.response_id, response = self._special_token(RESPONSE, RESPONSE + "\n")
        self._prefix = [*self.encode_text(INTRO + "\n\n"), self.instruction_id]
        self._lead = "" if response.endswith("\n") else "\n"
        self._suffix = [self.response_id, *self.encode_text(self._lead)]

    def encode(self, instruction: str, context: str | None) -> list[int]:
        """Encode one row as a prompt. Raises UnicodeEncodeError for a lone surrogate."""
        return self.encode_batch([(instruction, context)])[0]

    def encode_batch(self, rows: Sequence[tuple[str, str | None]]) -> list[list[int]]:
        """Encode (instruction, context) rows as prompts, in order. Raises UnicodeEncodeError for a lone surrogate."""
        bodies = self.encode_texts([_body(instruction, context) for instruction, context in rows])
        return [[*self._prefix, *body, *self._suffix] for body in bodies]

    def encode_responses(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode responses as the training text has them after a prompt: text, blank line, end marker.

        Raises UnicodeEncodeError for a lone surrogate.
        """
        lead = self._suffix[1:]
        whole = self.encode_texts([f"{self._lead}{text}\n\n" for text in texts])
        alone = self.encode_texts([f"{text}\n\n" for text in texts])
        # The newline before a response is the prompt's own; a text that would melt into it is encoded on its own.
        return [
            [*(ids[len(lead) :] if ids[: len(lead)] == lead else own), self.end_id]
            for ids, own in zip(whole, alone, strict=True)
        ]

    def count(self, instruction: str, context: str | None, limit: int) -> TokenCount:
        """Count a prompt's tokens, exactly unless it is so long that it surely exceeds `limit`."""
        body = _body(instruction, context)
        num_fixed = len(self._prefix) + len(self._suffix)
        if bound := self.bound_over(body, limit - num_fixed):
            return TokenCount(num_fixed + bound, is_exact=False)
        return TokenCount(num_fixed + len(self.encode_text(body)), is_exact=True)

    def instruction_ids(self, prompt_ids: Sequence[int]) -> Sequence[int]:
        """Return what stands between the markers of a prompt; the whole prompt where it has none."""
        if self.instruction_id not in prompt_ids or self.response_id not in prompt_ids:
            return prompt_ids
        return prompt_ids[prompt_ids.index(self.instruction_id) + 1 : prompt_ids.index(self.response_id)]

    def _special_token(self, *spellings: str) -> tuple[int, str]:
        """Return the id and the spelling of the one special token with one of these spellings."""
        special = [(token["id"], token["content"]) for token in self._layout["added_tokens"] if token["special"]]
        found = [(token_id, content) for token_id, content in special if content in spellings]
        if len(found) != 1:
            raise ModelError(
                f"{self.path}: found {len(found)} special tokens {spellings[0]!r}, expected 1; "
                f"the special tokens are {[content for _, content in special]}: this is not a Dolly model's tokenizer"
            )
        return found[0]


@lru_cache(maxsize=4)
def encoder_of(folder: str) -> PromptEncoder:
    """The prompt encoder of a model's folder, read once a process. Raises ModelError as `from_folder` does."""
    return PromptEncoder.from_folder(folder)


def _body(instruction: str, context: str | None) -> str:
    """The text between the instruction and the response markers."""
    return f"\n{instruction}\n\nInput:\n{context}\n\n" if context else f"\n{instruction}\n\n"


def _check_byte_level(path: Path, layout: dict[str, Any]) -> None:
    """Another kind of tokenizer could drop text unseen; a byte-level BPE with a token for every byte can't."""
    model, pre = layout["model"], layout["pre_tokenizer"] or {}
    steps = pre.get("pretokenizers", [pre])
    byte_level = [step for step in steps if step.get("type") == "ByteLevel"]
    if model["type"] != "BPE" or not byte_level or (layout["decoder"] or {}).get("type") != "ByteLevel":
        raise ModelError(f"{path}: not a byte-level BPE, which GPT-NeoX and GPT-J models have")
    if any(step.get("add_prefix_space") for step in byte_level):
        raise ModelError(f"{path}: add_prefix_space is true; a prompt is encoded in parts, and would get extra spaces")
    if model.get("dropout"):
        raise ModelError(
            f"{path}: BPE dropout is {model['dropout']}, so that a text has no one encoding; set it to null"
        )
    missing = _UTF8_BYTES - set(model["vocab"])
    if missing:
        raise ModelError(f"{path}: has no token for {len(missing)} of the bytes of UTF-8; text with them would be lost")


def _max_token_bytes(layout: dict[str, Any]) -> int | None:
    """The bytes of the longest token, None where that bounds nothing. A byte-level token has one letter a byte."""
    added = layout["added_tokens"]
    if any(token["lstrip"] or token["rstrip"] for token in added):
        return None  # such a token swallows any number of blanks
    if layout["normalizer"] not in (None, {"type": "NFC"}):
        return None
    steps = layout["pre_tokenizer"].get("pretokenizers", [layout["pre_tokenizer"]])
    if any(step["type"] not in ("ByteLevel", "Split") or step.get("behavior") == "Removed" for step in steps):
        return None
    lengths = [len(token) for token in layout["model"]["vocab"]]
    return max(*lengths, *(len(token["content"].encode()) for token in added))
