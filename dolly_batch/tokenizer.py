"""A model's tokenizer: plain text <-> ids, with bounds on lengths. Needs `tokenizers` alone."""

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from dolly_batch.errors import ModelError

_TOKENIZER = "tokenizer.json"
_UTF8_MAX_BYTES = 4
# A byte's letter in a byte-level vocabulary; GPT-NeoX's own lacks those of the 13 bytes that UTF-8 never uses.
_UTF8_BYTES = set(ByteLevel.alphabet()) - {chr(byte) for byte in (0xC0, 0xC1, *range(0xF5, 0x100))}
# Bytes that no text needs, by their letters, with the characters that have them: SmolLM2's vocabulary lacks some. They
# are control characters, and the first bytes of planes that hold no character or private ones alone.
_RARE_BYTES = {
    **{chr(0x100 + code): f"\\x{code:02x}" for code in range(0x20) if code not in (0x09, 0x0A, 0x0D)},
    chr(0xF1): "\U00040000-\U0007ffff",
    chr(0xF2): "\U00080000-\U000bffff",
    chr(0xF4): "\U00100000-\U0010ffff",
}
_REPLACEMENT = "\ufffd"


@dataclass(frozen=True, slots=True)
class TokenCount:
    """The tokens of a prompt: counted, or, when not `is_exact`, a lower bound that is already over the limit."""

    num_tokens: int
    is_exact: bool


class TextEncoder:
    """A byte-level BPE: plain text <-> ids, no template. Same text, same ids, always."""

    def __init__(self, tokenizer: Tokenizer, path: Path) -> None:
        """`tokenizer` is taken over and changed; `path` only names it in errors."""
        tokenizer.encode_special_tokens = True  # markers inside a text are plain text
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.path = path
        self._tokenizer = tokenizer
        self._layout: dict[str, Any] = json.loads(tokenizer.to_str())
        _check_byte_level(path, self._layout)
        self._lost = _lost_characters(self._layout)
        self._max_token_bytes = _max_token_bytes(self._layout)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Self:
        """Read `tokenizer.json` of a model's folder. Raises ModelError naming the file and what is wrong with it."""
        return cls(*read_tokenizer(Path(folder)))

    def encode_text(self, text: str) -> list[int]:
        """Encode text as it is, special tokens in it as plain text, nothing added.

        Raises UnicodeEncodeError when the text holds a lone surrogate.
        """
        return self.encode_texts([text])[0]

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode many texts, in order. Raises UnicodeEncodeError when one holds a lone surrogate.

        A rare character for which the vocabulary has no bytes becomes U+FFFD, where the library would drop it.
        """
        if self._lost is not None:
            texts = [self._lost.sub(_REPLACEMENT, text) for text in texts]
        try:
            encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        except TypeError:
            for text in texts:
                text.encode()  # raises the error that names the place; the library's own does not
            raise
        return [encoding.ids for encoding in encodings]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Return, per token of the text encoded as it is, where in the text its characters begin and end."""
        if self._lost is not None:
            text = self._lost.sub(_REPLACEMENT, text)
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


def read_tokenizer(folder: Path) -> tuple[Tokenizer, Path]:
    """Read `tokenizer.json`; with its path. Raises ModelError naming it and what is wrong with it."""
    path = folder / _TOKENIZER
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); stage the model again") from error
    try:
        return Tokenizer.from_str(text), path
    except Exception as error:  # the tokenizers library raises bare Exception for a file that it can't read
        raise ModelError(f"{path}: not a tokenizer that can be loaded ({error})") from error


def _check_byte_level(path: Path, layout: dict[str, Any]) -> None:
    """Another kind of tokenizer could drop text unseen; a byte-level BPE with a token for every byte can't."""
    model, pre = layout["model"], layout["pre_tokenizer"] or {}
    steps = pre.get("pretokenizers", [pre])
    byte_level = [step for step in steps if step.get("type") == "ByteLevel"]
    if model["type"] != "BPE" or not byte_level or (layout["decoder"] or {}).get("type") != "ByteLevel":
        raise ModelError(
            f"{path}: not a byte-level BPE; models with another tokenizer, such as SentencePiece, are not run"
        )
    if any(step.get("add_prefix_space") for step in byte_level):
        raise ModelError(f"{path}: add_prefix_space is true; a prompt is encoded in parts, and would get extra spaces")
    if model.get("dropout"):
        raise ModelError(
            f"{path}: BPE dropout is {model['dropout']}, so that a text has no one encoding; set it to null"
        )
    if len(_missing_bytes(layout) - _RARE_BYTES.keys()):
        num_missing = len(_missing_bytes(layout))
        raise ModelError(f"{path}: has no token for {num_missing} of the bytes of UTF-8; text with them would be lost")


def _missing_bytes(layout: dict[str, Any]) -> set[str]:
    return _UTF8_BYTES - set(layout["model"]["vocab"])


def _lost_characters(layout: dict[str, Any]) -> re.Pattern[str] | None:
    """The characters that the vocabulary has no bytes for, None where there are none."""
    missing = sorted(_missing_bytes(layout))
    return re.compile("[" + "".join(_RARE_BYTES[byte] for byte in missing) + "]") if missing else None


def _max_token_bytes(layout: dict[str, Any]) -> int | None:
    """The bytes of the longest token, None where that bounds nothing. A byte-level token has one letter a byte."""
    added = layout["added_tokens"]
    if any(token["lstrip"] or token["rstrip"] for token in added):
        return None  # such a token swallows any number of blanks
    if layout["normalizer"] not in (None, {"type": "NFC"}):
        return None
    steps = layout["pre_tokenizer"].get("pretokenizers", [layout["pre_tokenizer"]])
    if any(step["type"] not in ("ByteLevel", "Split", "Digits") or step.get("behavior") == "Removed" for step in steps):
        return None
    lengths = [len(token) for token in layout["model"]["vocab"]]
    return max(*lengths, *(len(token["content"].encode()) for token in added))
