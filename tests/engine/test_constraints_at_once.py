"""Grammars and penalties of all rows at once, as on a GPU, leave the same tokens as row by row."""

import json
import random

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dolly_batch.engine import sampling
from dolly_batch.engine.continuous.sequence import CachedSequence
from dolly_batch.engine.grammar import Constraint, Grammars
from dolly_batch.prompt import PromptEncoder
from dolly_batch.records import GenerationParams, Request
from dolly_batch.tiny import MODEL_FOLDER

VOCAB_SIZE = 4_099  # no multiple of 32, and more than the tokenizer has
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 9}, "n": {"type": "integer"}, "ok": {"type": "boolean"}},
        "required": ["name", "n", "ok"],
        "additionalProperties": False,
    }
)


@pytest.fixture(scope="module")
def sequences() -> list[CachedSequence]:
    """Rows held to a schema, at its beginning and in the middle, where tokens are forced and where not; others free."""
    encoder = PromptEncoder.from_folder(MODEL_FOLDER)
    grammars = Grammars(encoder, VOCAB_SIZE)
    draw = random.Random(5)
    rows = []
    for number in range(24):
        params = GenerationParams(40, repetition_penalty=1.0 if number % 3 else 1.3)
        request = Request(str(number), (5, 6, 7, 6), params, grammar=SCHEMA if number % 4 else None)
        assert grammars.refuse(request) is None
        row = CachedSequence(request, constraint=grammars.constraint(request))
        for _ in range(number // 2):
            logits = torch.randn(VOCAB_SIZE, generator=torch.Generator().manual_seed(draw.randrange(99)))
            if row.constraint is not None:
                row.constraint.mask(logits)
            if row.is_open:
                row.append(int(logits.argmax()), encoder.stop_ids)
        rows.append(row)
    forced = [bool(row.constraint.forced()) for row in rows if isinstance(row.constraint, Constraint) and row.is_open]
    assert 0 < sum(forced) < len(forced)
    return rows


def test_the_same_tokens_stay_allowed_with_the_same_logits(sequences: list[CachedSequence]) -> None:
    logits = torch.randn(len(sequences), VOCAB_SIZE, generator=torch.Generator().manual_seed(1))
    one_by_one, at_once = logits.clone(), logits.clone()
    sampling._constrain(one_by_one, sequences)
    sampling._constrain_at_once(at_once, sequences)
    lowest = torch.finfo(torch.float32).min
    assert torch.equal(at_once == lowest, one_by_one == lowest)
    num_masked = (at_once == lowest).sum(dim=-1)
    for row, sequence in enumerate(sequences):
        assert bool(num_masked[row]) == (sequence.constraint is not None and sequence.is_open)
        if sequence.constraint is None or not sequence.constraint.forced():
            assert torch.equal(at_once[row], one_by_one[row])
    assert torch.equal(at_once.argmax(dim=-1), one_by_one.argmax(dim=-1))


class Launches(TorchDispatchMode):
    """Counts operations."""

    num = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.num += 1
        return function(*args, **(kwargs or {}))


def test_more_rows_are_no_more_operations(sequences: list[CachedSequence]) -> None:
    """But for those that write a forced token into the masks, on the host."""
    free = [row for row in sequences if row.constraint is None or not row.constraint.forced()]
    assert len(free) > 12
    counts = []
    for rows in (free[: len(free) // 2], free):
        with Launches() as launches:
            sampling._constrain_at_once(torch.zeros(len(rows), VOCAB_SIZE), rows)
        counts.append(launches.num)
    assert counts[0] == counts[1] < 30
