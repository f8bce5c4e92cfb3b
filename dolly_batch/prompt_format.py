"""What stands around an instruction, and what ends an answer, as data. Standard library only.

A format is a sequence of parts: special tokens, text, and the slots for what a row asks. Dolly's is a constant. That of
a chat model is rendered once, when the model is staged, from its own template (`staging/chat_template.py`), and lies in
the staged folder as `prompt.json`; nothing that reads it runs a template.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

PROMPT = "prompt.json"

INTRO = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
END = "### End"
INSTRUCTION = "### Instruction:"
RESPONSE = "### Response:"  # with or without a newline inside, by model

USER, SYSTEM = "user", "system"


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a prompt: a special token by its `value`, a text, or the slot `user` or `system`."""

    kind: Literal["token", "text", "slot"]
    value: str


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """The prompt of one turn, and how answers end.

    `parts` have exactly one slot, `user`; `parts_with_system`, where the format has room for a system prompt, also
    `system`, before it. An instruction and its context are one text, with `before_context` between them; it is stripped
    of white space at its ends where the format `strips`. A training text has a response between
    `before_answer` and `after_answer`, and then the first of the `stop` tokens; each of them ends an answer.
    """

    name: str
    parts: tuple[Part, ...]
    stop: tuple[str, ...]
    before_context: str = "\n\n"
    before_answer: str = ""
    after_answer: str = ""
    strips: bool = False
    parts_with_system: tuple[Part, ...] | None = None

    def to_json(self) -> str:
        """The text of `prompt.json`."""
        return json.dumps({"format": 1, **asdict(self)}, ensure_ascii=False, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "PromptFormat":
        """Read what `to_json` wrote. Raises ValueError, KeyError or TypeError for anything else."""
        values: dict[str, Any] = json.loads(text)
        if values.pop("format") != 1:
            raise ValueError("not a prompt format of version 1")
        parts, with_system = (_parts(values.pop(name)) for name in ("parts", "parts_with_system"))
        if parts is None or [part.value for part in parts if part.kind == "slot"] != [USER]:
            raise ValueError("parts do not hold the slot 'user' once, and no other")
        if with_system is not None and [part.value for part in with_system if part.kind == "slot"] != [SYSTEM, USER]:
            raise ValueError("parts_with_system do not hold the slots 'system' and 'user', in this order")
        stop = tuple(values.pop("stop"))
        if not stop or not all(isinstance(token, str) for token in stop):
            raise ValueError("stop holds no tokens")
        return cls(parts=parts, parts_with_system=with_system, stop=stop, **values)


def dolly_format(special_tokens: Sequence[str]) -> PromptFormat | None:
    """Dolly's format for a tokenizer with these special tokens, None for one without Dolly's markers.

        {INTRO}\\n\\n### Instruction:\\n{instruction}\\n\\n### Response:\\n
        {INTRO}\\n\\n### Instruction:\\n{instruction}\\n\\nInput:\\n{context}\\n\\n### Response:\\n

    The second form is used exactly when the context is not empty.
    Source of the format: databrickslabs/dolly, training/consts.py.
    """
    response = [token for token in special_tokens if token in (RESPONSE, f"{RESPONSE}\n")]
    if len(response) != 1 or END not in special_tokens or INSTRUCTION not in special_tokens:
        return None
    lead = () if response[0].endswith("\n") else (Part("text", "\n"),)
    return PromptFormat(
        "dolly",
        (
            Part("text", f"{INTRO}\n\n"),
            Part("token", INSTRUCTION),
            Part("text", "\n"),
            Part("slot", USER),
            Part("text", "\n\n"),
            Part("token", response[0]),
            *lead,
        ),
        (END,),
        before_context="\n\nInput:\n",
        after_answer="\n\n",
    )


def _parts(values: Sequence[dict[str, Any]] | None) -> tuple[Part, ...] | None:
    return None if values is None else tuple(Part(**value) for value in values)
