"""A row's text <-> a prompt's token ids, in the prompt format of a model's folder. Needs `tokenizers` alone.

A format's special tokens are put in by their ids. A row's own text may hold their letters, and must not be able to
close its place in the prompt; so a prompt's ids are put together as

    opening + encode(the format's text + the row's + the format's, special tokens taken as plain text) + closing

which for text without special tokens gives exactly the ids of the whole prompt encoded at once.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Self

from tokenizers import Tokenizer

from dolly_batch.errors import ConfigError, ModelError
from dolly_batch.prompt_format import END, INSTRUCTION, PROMPT, RESPONSE, SYSTEM, USER, Part, PromptFormat, dolly_format
from dolly_batch.tokenizer import TextEncoder, TokenCount, read_tokenizer


@dataclass(frozen=True, slots=True)
class _Frame:
    """The ids before and behind a row's text, and the texts around it that are encoded with it."""

    opening: tuple[int, ...]
    before: str
    behind: str
    closing: tuple[int, ...]
    lead: str
    """The text at the end of the closing, which an answer follows."""


class PromptEncoder(TextEncoder):
    """A model's prompt format on top of its tokenizer.

    `end_id` is the token that ends a training text, `stop_ids` are all that end an answer. Raises ModelError when there
    is no format, or the tokenizer lacks one of its special tokens, naming it.
    """

    def __init__(self, tokenizer: Tokenizer, path: Path, prompt_format: PromptFormat | None = None) -> None:
        """Without a `prompt_format`, Dolly's, by the markers of the tokenizer."""
        super().__init__(tokenizer, path)
        self._special = {token["content"]: token["id"] for token in self._layout["added_tokens"] if token["special"]}
        found = prompt_format or dolly_format(tuple(self._special))
        if found is None:
            raise ModelError(
                f"{path}: the model has no prompt format: its special tokens lack some of Dolly's markers {END!r}, "
                f"{INSTRUCTION!r} and {RESPONSE!r}, and there is no {PROMPT} made of its chat template; they are "
                f"{sorted(self._special)[:8]}. Name a model that follows instructions"
            )
        self.format = found
        self.stop_ids = tuple(self._id(token) for token in found.stop)
        self.end_id = self.stop_ids[0]
        self._frame = self._framed(found.parts, "")
        self._with_system: dict[str, Self] = {}

    @classmethod
    def from_folder(cls, folder: str | Path) -> Self:
        """Read `tokenizer.json` of a model's folder, and `prompt.json` where there is one. Raises ModelError."""
        tokenizer, path = read_tokenizer(Path(folder))
        return cls(tokenizer, path, _read_format(Path(folder)))

    def encode(self, instruction: str, context: str | None) -> list[int]:
        """Encode one row as a prompt. Raises UnicodeEncodeError for a lone surrogate."""
        return self.encode_batch([(instruction, context)])[0]

    def encode_batch(self, rows: Sequence[tuple[str, str | None]]) -> list[list[int]]:
        """Encode (instruction, context) rows as prompts, in order. Raises UnicodeEncodeError for a lone surrogate."""
        frame = self._frame
        bodies = self.encode_texts([self._body(*row) for row in rows])
        return [[*frame.opening, *body, *frame.closing] for body in bodies]

    def encode_responses(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode responses as a training text has them after a prompt, with what ends them.

        Raises UnicodeEncodeError for a lone surrogate.
        """
        frame, around = self._frame, self.format
        lead = self.encode_text(frame.lead)
        responses = [f"{around.before_answer}{text}{around.after_answer}" for text in texts]
        whole = self.encode_texts([frame.lead + response for response in responses])
        alone = self.encode_texts(responses)
        # The text before a response is the prompt's own; a response that would melt into it is encoded on its own.
        return [
            [*(ids[len(lead) :] if ids[: len(lead)] == lead else own), self.end_id]
            for ids, own in zip(whole, alone, strict=True)
        ]

    def count(self, instruction: str, context: str | None, limit: int) -> TokenCount:
        """Count a prompt's tokens, exactly unless it is so long that it surely exceeds `limit`."""
        body = self._body(instruction, context)
        num_fixed = len(self._frame.opening) + len(self._frame.closing)
        if bound := self.bound_over(body, limit - num_fixed):
            return TokenCount(num_fixed + bound, is_exact=False)
        return TokenCount(num_fixed + len(self.encode_text(body)), is_exact=True)

    def instruction_ids(self, prompt_ids: Sequence[int]) -> Sequence[int]:
        """Return what stands between the opening and the closing of a prompt; all of one that was encoded otherwise."""
        frame = self._frame
        num_before = len(frame.opening)
        behind = frame.closing[0] if frame.closing else None
        if tuple(prompt_ids[:num_before]) != frame.opening or behind not in prompt_ids[num_before:]:
            return prompt_ids
        return prompt_ids[num_before : prompt_ids.index(behind, num_before)]

    @property
    def marks(self) -> tuple[int, int]:
        """The ids at the end of the opening and at the beginning of the closing: Dolly's two markers."""
        return self._frame.opening[-1], self._frame.closing[0]

    def with_system(self, system: str | None) -> Self:
        """The encoder with a system prompt in every prompt; None leaves what the format has without one.

        Raises ConfigError for a system prompt that the format has no place for.
        """
        if system is None:
            return self
        if system not in self._with_system:
            parts = self.format.parts_with_system
            if parts is None:
                raise ConfigError(
                    "task.system: this model's prompt has no place for a system prompt; say it in the instruction, or "
                    "by task.template"
                )
            encoder = copy(self)
            encoder._frame = self._framed(parts, system)
            self._with_system[system] = encoder
        return self._with_system[system]

    def _framed(self, parts: Sequence[Part], system: str) -> _Frame:
        at = next(number for number, part in enumerate(parts) if part == Part("slot", USER))
        opening, before = self._encode_parts(parts[:at], system)
        first = next((number for number, part in enumerate(parts[at:], at) if part.kind == "token"), len(parts))
        behind = "".join(part.value for part in parts[at + 1 : first])
        closing, lead = self._encode_parts(parts[first:], system)
        return _Frame(tuple(opening), before, behind, (*closing, *self.encode_text(lead)), lead)

    def _encode_parts(self, parts: Sequence[Part], system: str) -> tuple[list[int], str]:
        """The ids of parts up to their last special token, and the text that follows it."""
        ids: list[int] = []
        text = ""
        for part in parts:
            if part.kind == "token":
                ids += [*self.encode_text(text), self._id(part.value)]
                text = ""
            else:
                text += self._own(system) if part == Part("slot", SYSTEM) else part.value
        return ids, text

    def _body(self, instruction: str, context: str | None) -> str:
        """The text between the opening and the closing."""
        text = f"{instruction}{self.format.before_context}{context}" if context else instruction
        return f"{self._frame.before}{self._own(text)}{self._frame.behind}"

    def _own(self, text: str) -> str:
        return text.strip() if self.format.strips else text

    def _id(self, token: str) -> int:
        if token not in self._special:
            raise ModelError(
                f"{self.path}: the special token {token!r} of its prompt format is missing; the special tokens are "
                f"{sorted(self._special)[:8]}"
            )
        return int(self._special[token])


@lru_cache(maxsize=4)
def encoder_of(folder: str) -> PromptEncoder:
    """The prompt encoder of a model's folder, read once a process. Raises ModelError as `from_folder` does."""
    return PromptEncoder.from_folder(folder)


def _read_format(folder: Path) -> PromptFormat | None:
    path = folder / PROMPT
    try:
        return PromptFormat.from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: not a prompt format that can be read ({error!r}); stage the model again") from error
