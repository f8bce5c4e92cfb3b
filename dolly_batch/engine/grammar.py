"""Holding an answer to a JSON schema: of each step's logits, those of tokens that cannot come next are struck out.

The masks are llguidance's. It was chosen over xgrammar because it needs nothing (xgrammar brings torch, pydantic and
triton), reads the model's own tokenizer.json, and says which tokens are forced.

A schema is the small part of JSON Schema that `tasks/schema.py` lets through: objects whose fields all stand there in
order, each a value or null; arrays; strings; numbers; booleans. It is written as a grammar of our own, not handed over
as it is, because JSON's numbers may have any number of digits, and white space any length.
"""

import json
import re
from collections import deque
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from itertools import count
from typing import Any

import torch
from torch import Tensor

from dolly_batch.errors import EngineError
from dolly_batch.prompt import PromptEncoder, TextEncoder
from dolly_batch.records import Failure, Request

# At most what a double and a decimal hold, and no exponents: tables are read by people too.
_NUMBER = r"-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,6})?"
_DATE = r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])"
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"
# A character, as it is or escaped; no control characters, and no halves of surrogate pairs.
_CHARACTER = r'([^"\\\x00-\x1f\x7f]|\\["\\bfnrt])'


class Grammars:
    """Grammars compiled for one model's tokens, each once, when the first request asks for it.

    `vocab_size` is the width of the logits.
    """

    def __init__(self, encoder: TextEncoder, vocab_size: int) -> None:
        self._encoder = encoder
        self._vocab_size = vocab_size
        self._compiled = lru_cache(maxsize=64)(self._compile)

    def refuse(self, request: Request) -> Failure | None:
        """Why a request's schema cannot be followed; None when it can, or when there is none.

        Raises EngineError where llguidance is not installed.
        """
        compiled = None if request.grammar is None else self._compiled(request.grammar)
        return compiled if isinstance(compiled, Failure) else None

    def constraint(self, request: Request) -> "Constraint | None":
        """The constraint of one answer from its beginning, None for a request that may answer anything.

        The request must have passed `refuse`.
        """
        if request.grammar is None:
            return None
        return Constraint(self._compiled(request.grammar), self._vocab_size)

    @cached_property
    def _tokenizer(self) -> Any:
        encoder = self._encoder
        if not isinstance(encoder, PromptEncoder):
            raise EngineError("a grammar needs a model with Dolly's end marker")
        return _llguidance().LLTokenizer(str(encoder.path), n_vocab=self._vocab_size, eos_token=encoder.end_id)

    def _compile(self, schema: str) -> Any:
        try:
            grammar = to_lark(json.loads(schema))
        except (ValueError, KeyError, TypeError) as error:
            return Failure("model_error", f"not a schema that can be followed: {type(error).__name__}")
        kind: Any = _llguidance().LLMatcher
        matcher = kind(self._tokenizer, kind.grammar_from_lark(grammar), log_level=0)
        if matcher.is_error():
            return Failure("model_error", f"the schema cannot be compiled: {matcher.get_error()[:300]}")
        return matcher


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise EngineError(
            "extraction needs the package llguidance where the model runs: pip install llguidance"
        ) from error
    return llguidance


class Constraint:
    """What one answer may still become. `compiled` is the grammar's matcher at its beginning, which stays as it is."""

    def __init__(self, compiled: Any, vocab_size: int) -> None:
        self._compiled = compiled
        self._bits = torch.zeros((vocab_size + 31) // 32, dtype=torch.int32)
        self.restart()

    def restart(self) -> None:
        """Go back to the answer's beginning."""
        self._matcher = self._compiled.deep_copy()
        self._forced: deque[int] = deque()

    def mask(self, logits: Tensor) -> None:
        """Strike out, in place, the logits of the tokens that cannot come next: [vocabulary], finite afterwards."""
        lowest = torch.finfo(logits.dtype).min
        if not self._forced:
            self._forced.extend(self._matcher.compute_ff_tokens())
        if self._forced:
            logits.fill_(lowest)
            logits[self._forced[0]] = 0.0
            return
        self._matcher.unsafe_compute_mask_ptr(self._bits.data_ptr(), self._bits.numel() * 4)
        allowed = (self._bits[:, None] >> _shifts()).bitwise_and_(1).flatten()[: len(logits)].bool()
        logits.masked_fill_(~allowed.to(logits.device), lowest)

    def take(self, token_id: int) -> Failure | None:
        """Go on by a chosen token. A Failure when it cannot stand there, or when the grammar's limits are reached."""
        if self._forced:
            self._forced.popleft()
        self._matcher.consume_token(token_id)
        if self._matcher.is_error():
            return Failure("model_error", f"the grammar ended: {self._matcher.get_error()[:300]}")
        return None


@lru_cache(maxsize=1)
def _shifts() -> Tensor:
    return torch.arange(32, dtype=torch.int32)


def to_lark(schema: Mapping[str, Any]) -> str:
    """Write the schema as a grammar in llguidance's dialect of Lark; separators are those of json.dumps."""
    rules: list[str] = []
    names = (f"r{number}" for number in count())
    start = _rule(schema, rules, names)
    return "\n".join([f"start: {start}", *rules]) + "\n"


def _rule(schema: Mapping[str, Any], rules: list[str], names: Iterator[str]) -> str:
    name = next(names)
    kind = schema["type"]
    if kind == "object":
        parts = []
        for number, (key, value) in enumerate(schema["properties"].items()):
            lead = ("{" if number == 0 else ", ") + json.dumps(key, ensure_ascii=False) + ": "
            parts.append(f'{json.dumps(lead, ensure_ascii=False)} ({_rule(value, rules, names)} | "null")')
        rules.append(f'{name}: {" ".join(parts)} "}}"')
    elif kind == "array":
        item = _rule(schema["items"], rules, names)
        low, high = schema.get("minItems", 0), schema["maxItems"]
        some = f'"[" {item} (", " {item}){{{max(0, low - 1)},{high - 1}}} "]"' if high else '"[]"'
        rules.append(f'{name}: "[]" | {some}' if low == 0 and high else f"{name}: {some}")
    elif kind == "boolean":
        rules.append(f'{name}: "true" | "false"')
    elif "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        literals = [json.dumps(json.dumps(value, ensure_ascii=False), ensure_ascii=False) for value in values]
        rules.append(f"{name}: {' | '.join(literals)}")
    elif kind == "integer" or (kind == "number" and {"minimum", "maximum"} & set(schema)):
        rules.append(f"{name}: %json {json.dumps(dict(schema))}")
    elif kind == "number":
        rules.append(f"{name}: {name.upper()}\n{name.upper()}: /{_NUMBER}/")
    else:
        rules.append(f"{name}: {name.upper()}\n{name.upper()}: /{_string(schema)}/")
    return name


def _string(schema: Mapping[str, Any]) -> str:
    if schema.get("format") == "date":
        body = _DATE
    elif schema.get("format") == "date-time":
        body = f"{_DATE}T{_TIME}"
    elif "pattern" in schema:
        body = f"({str(schema['pattern']).removeprefix('^').removesuffix('$')})"
    else:
        body = f"{_CHARACTER}{{{schema.get('minLength', 0)},{schema['maxLength']}}}"
    return '"' + re.sub(r"(?<!\\)/", r"\\/", body) + '"'
