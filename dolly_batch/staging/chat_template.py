"""A chat model's template to `prompt.json`, in its own process: `python -m dolly_batch.staging.chat_template SRC DST`.

A template is a program, in Jinja. It is rendered here only, in transformers' sandbox, with placeholders for what a row
brings; what comes out is data. The data is then compared with the template: it must give the same token ids.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from dolly_batch.errors import ModelError
from dolly_batch.models.folder import CONFIG, TOKENIZER, read_json
from dolly_batch.prompt import PromptEncoder
from dolly_batch.prompt_format import PROMPT, SYSTEM, USER, Part, PromptFormat, dolly_format
from dolly_batch.staging.isolated import report, serve
from dolly_batch.staging.layout import GENERATION_CONFIG, TOKENIZER_CONFIG, find_chat_template

_MARKS = {SYSTEM: "system-placeholder-7f3a", USER: "user-placeholder-7f3a", "assistant": "answer-placeholder-7f3a"}
# Llama's templates write the day, which would make each day's model another one; Qwen3's would have it think aloud.
_SETTINGS = {"date_string": "26 Jul 2024", "enable_thinking": False}
_CLEAN = (
    ("Name a river.", None),
    (" Two\n\nlines, 3 numbers: 1,234.5 \t", "A context\u00a0with 'quotes' and \u00e9\u4e16 "),
)


@dataclass(frozen=True)
class _Template:
    """A chat template, and the tokenizer that renders it."""

    tokenizer: Any  # of transformers, which is untyped
    text: str

    def render(self, *turns: tuple[str, str], answers: bool = True) -> str:
        """The text of (role, content) turns. Raises what the template raises."""
        messages = [{"role": role, "content": content} for role, content in turns]
        rendered: str = self.tokenizer.apply_chat_template(
            messages, chat_template=self.text, tokenize=False, add_generation_prompt=answers, **_SETTINGS
        )
        return rendered


def write_format(src: Path, dst: Path) -> None:
    """Write `prompt.json` to `dst`, where the model at `src` needs one and has a chat template.

    A model with Dolly's markers needs none. Raises ModelError for a template that cannot be put together in parts.
    """
    layout = read_json(src / TOKENIZER)
    special = {
        str(token["content"]): int(token["id"]) for token in layout.get("added_tokens") or () if token["special"]
    }
    settings = read_json(src / TOKENIZER_CONFIG) if (src / TOKENIZER_CONFIG).is_file() else {}
    text = find_chat_template(src)
    if dolly_format(tuple(special)) is not None or text is None:
        return
    template = _Template(_transformers_tokenizer(src, settings), text)
    try:
        prompt_format = _read_template(template, tuple(special), _end_tokens(src, settings, special))
    except ModelError as error:
        raise ModelError(f"{src}: its chat template cannot be used: {error}") from error
    _compare(src, prompt_format, template)
    (dst / PROMPT).write_text(prompt_format.to_json(), encoding="utf-8")
    report(f"writing {PROMPT} from the chat template")


def _transformers_tokenizer(src: Path, settings: Mapping[str, Any]) -> Any:
    import transformers

    names = {name: _token_text(settings.get(name)) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    known = {name: token for name, token in names.items() if token is not None}
    kind: Any = transformers.PreTrainedTokenizerFast
    return kind(tokenizer_file=str(src / TOKENIZER), **known)


def _token_text(value: object) -> str | None:
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def _end_tokens(src: Path, settings: Mapping[str, Any], special: Mapping[str, int]) -> list[str]:
    """The tokens that end an answer by the model's own settings."""
    ids: set[int] = set()
    for name in (GENERATION_CONFIG, CONFIG):
        value = read_json(src / name).get("eos_token_id") if (src / name).is_file() else None
        ids |= {int(number) for number in (value if isinstance(value, list) else [value]) if number is not None}
    named = _token_text(settings.get("eos_token"))
    return [token for token, number in special.items() if number in ids or token == named]


def _read_template(template: _Template, special: Sequence[str], ends: Sequence[str]) -> PromptFormat:
    user = (USER, _MARKS[USER])
    plain = _render(template, user)
    strips = _strips(template)
    try:
        with_system = _parts(template.render((SYSTEM, _MARKS[SYSTEM]), user), special, (SYSTEM, USER))
    except Exception:  # a template says in its own words that it takes no system prompt
        with_system = None
    whole = _render(template, user, ("assistant", _MARKS["assistant"]), answers=False)
    until, _, rest = whole.partition(_MARKS["assistant"])
    before = until.removeprefix(plain) if until.startswith(plain) else ""
    behind = _split(rest, special)
    end = next((part.value for part in behind if part.kind == "token"), None)
    stop = list(dict.fromkeys([*([end] if end else []), *ends]))
    if not stop:
        raise ModelError("neither it nor the model's settings say which token ends an answer")
    after = behind[0].value if end and behind[0].kind == "text" else ""
    parts = _parts(plain, special, (USER,))
    if parts is None:
        raise ModelError("it does not write the user's text, or writes it more than once")
    return PromptFormat(
        "chat",
        parts,
        tuple(stop),
        before_answer=before,
        after_answer=after,
        strips=strips,
        parts_with_system=with_system,
    )


def _render(template: _Template, *turns: tuple[str, str], answers: bool = True) -> str:
    try:
        return template.render(*turns, answers=answers)
    except ModuleNotFoundError as error:
        raise ModelError(f"rendering it needs {error.name}: pip install {error.name}") from error
    except Exception as error:  # whatever a template raises, and Jinja for one that is wrong
        raise ModelError(f"{type(error).__name__}: {error}") from error


def _strips(template: _Template) -> bool:
    """Whether a turn's text loses the white space at its ends."""
    rendered = _render(template, (USER, f" \n{_MARKS[USER]}\n "))
    before, mark, behind = rendered.partition(_MARKS[USER])
    keeps = before.endswith(" \n") and behind.startswith("\n ")
    if not mark or (not keeps and rendered != template.render((USER, _MARKS[USER]))):
        raise ModelError("it changes the user's text otherwise than by stripping its ends")
    return not keeps


def _parts(rendered: str, special: Sequence[str], slots: Sequence[str]) -> tuple[Part, ...] | None:
    """The rendered text in parts, None where it does not hold these slots once each, in this order."""
    parts = _split(rendered, special)
    return tuple(parts) if [part.value for part in parts if part.kind == "slot"] == list(slots) else None


def _split(rendered: str, special: Sequence[str]) -> list[Part]:
    slots = {mark: Part("slot", role) for role, mark in _MARKS.items()}
    names = sorted([*special, *slots], key=len, reverse=True)
    pieces = re.split("(" + "|".join(map(re.escape, names)) + ")", rendered)
    known = {**{token: Part("token", token) for token in special}, **slots}
    return [known.get(piece, Part("text", piece)) for piece in pieces if piece]


def _compare(src: Path, prompt_format: PromptFormat, template: _Template) -> None:
    """Refuse a format whose prompts are not those of the template encoded at once."""
    encoder = PromptEncoder(Tokenizer.from_file(str(src / TOKENIZER)), src / TOKENIZER, prompt_format)
    oracle = Tokenizer.from_file(str(src / TOKENIZER))
    systems = (None,) if prompt_format.parts_with_system is None else (None, "Answer in one word.")
    for instruction, context in _CLEAN:
        asked = f"{instruction}{prompt_format.before_context}{context}" if context else instruction
        for system in systems:
            turns = [*([(SYSTEM, system)] if system else []), (USER, asked)]
            expected = oracle.encode(_render(template, *turns), add_special_tokens=False).ids
            if encoder.with_system(system).encode(instruction, context) != expected:
                raise ModelError(f"{src}: prompts put together in parts are not those that its chat template writes")


def main(arguments: list[str]) -> None:
    """Write the format as the two arguments say: source, destination."""
    src, dst = arguments
    write_format(Path(src), Path(dst))


if __name__ == "__main__":
    sys.exit(serve(main, sys.argv[1:]))
