"""Constrained decoding by a JSON schema: the logits of tokens that cannot come next are masked.

llguidance computes the masks; `json_grammar.py` writes its grammar. It was chosen over xgrammar because it has no
dependencies (xgrammar brings torch, pydantic and triton), reads the model's tokenizer.json, and reports forced tokens.
"""

import importlib
import json
from collections import deque
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from dolly_batch.engine.json_grammar import to_lark
from dolly_batch.errors import EngineError
from dolly_batch.prompt import PromptEncoder
from dolly_batch.records import Failure, Request
from dolly_batch.tokenizer import TextEncoder


class Grammars:
    """Grammars compiled for one model's tokens, each once, when the first request asks for it.

    `vocab_size` is the width of the logits.
    """

    def __init__(self, encoder: TextEncoder, vocab_size: int) -> None:
        self._encoder = encoder
        self._vocab_size = vocab_size
        self._compiled = lru_cache(maxsize=64)(self._compile)

    def refuse(self, request: Request) -> Failure | None:
        """Why a request's schema cannot be followed; None when it can, or when there is none."""
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
            raise EngineError("a grammar needs a model with a prompt format, which says what ends an answer")
        llguidance = importlib.import_module("llguidance")
        return llguidance.LLTokenizer(str(encoder.path), n_vocab=self._vocab_size, eos_token=encoder.end_id)

    def _compile(self, schema: str) -> Any:
        try:
            grammar = to_lark(json.loads(schema))
        except (ValueError, KeyError, TypeError) as error:
            return Failure("model_error", f"not a schema that can be followed: {type(error).__name__}")
        try:
            kind: Any = importlib.import_module("llguidance").LLMatcher
        except ImportError:
            return Failure("model_error", "the package llguidance is missing where the model runs: pip install it")
        matcher = kind(self._tokenizer, kind.grammar_from_lark(grammar), log_level=0)
        if matcher.is_error():
            return Failure("model_error", f"the schema cannot be compiled: {matcher.get_error()[:300]}")
        return matcher


class Constraint:
    """What one answer may still become. `compiled` is the grammar's matcher at its start; it is copied, not changed."""

    def __init__(self, compiled: Any, vocab_size: int) -> None:
        self._compiled = compiled
        self._bits = torch.zeros((vocab_size + 31) // 32, dtype=torch.int32)
        self.restart()

    def restart(self) -> None:
        """Go back to the answer's beginning."""
        self._matcher = self._compiled.deep_copy()
        self._forced: deque[int] = deque()
        self._knows_forced = False

    def mask(self, logits: Tensor) -> None:
        """Mask, in place, the logits of the tokens that cannot come next: [vocabulary], finite afterwards."""
        lowest = torch.finfo(logits.dtype).min
        if forced := self.forced():
            logits.fill_(lowest)
            logits[forced[0]] = 0.0
            return
        self._matcher.unsafe_compute_mask_ptr(self._bits.data_ptr(), self._bits.numel() * 4)
        allowed = (self._bits[:, None] >> _shifts()).bitwise_and_(1).flatten()[: len(logits)].bool()
        logits.masked_fill_(~allowed.to(logits.device), lowest)

    def forced(self) -> Sequence[int]:
        """The tokens that must come next, as many as are known; often none."""
        if not self._forced and not self._knows_forced:
            self._forced.extend(self._matcher.compute_ff_tokens())
            self._knows_forced = True
        return tuple(self._forced)

    def take(self, token_id: int) -> Failure | None:
        """Advance by a chosen token. A Failure when it is not allowed, or when the grammar's limits are reached."""
        if self._forced:
            self._forced.popleft()
        self._knows_forced = bool(self._forced)
        self._matcher.consume_token(token_id)
        if self._matcher.is_error():
            return Failure("model_error", f"the grammar ended: {self._matcher.get_error()[:300]}")
        return None


def mask_rows(logits: Tensor, constraints: Sequence[tuple[int, Constraint]]) -> None:
    """Mask, in place, [rows, vocabulary] logits by constraints, each with its row, as `Constraint.mask`.

    The host fills the masks of all rows in parallel, while a GPU computes the logits; they go over in one copy.
    """
    num_rows, vocab_size = logits.shape
    num_words = (vocab_size + 31) // 32
    bits = torch.full((num_rows, num_words), -1, dtype=torch.int32, pin_memory=logits.device.type == "cuda")
    matchers = []
    for row, constraint in constraints:
        if forced := constraint.forced():
            bits[row] = 0
            bits[row, forced[0] // 32] = _word(forced[0] % 32)
        else:
            matchers.append((constraint._matcher, row))
    if matchers:
        _executor().unsafe_compute_mask_ptr(matchers, bits.data_ptr(), 4 * num_words, num_rows)
    octets = bits.to(logits.device, non_blocking=True).view(torch.uint8)
    allowed = (octets[:, :, None] >> torch.arange(8, dtype=torch.uint8, device=logits.device)).bitwise_and_(1)
    logits.masked_fill_(allowed.view(num_rows, -1)[:, :vocab_size] == 0, torch.finfo(logits.dtype).min)


def _word(bit: int) -> int:
    """The int32 in which only this bit is set."""
    return 1 << bit if bit < 31 else -(2**31)


@lru_cache(maxsize=1)
def _executor() -> Any:
    return importlib.import_module("llguidance").LLExecutor()


@lru_cache(maxsize=1)
def _shifts() -> Tensor:
    return torch.arange(32, dtype=torch.int32)
