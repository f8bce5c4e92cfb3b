"""The fast engine's answers are the oracle's, and a row's are the same bits whatever runs beside it."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dolly_batch.engine.continuous.engine import ContinuousEngine
from dolly_batch.engine.continuous.pace import CHUNK_TOKENS
from dolly_batch.engine.continuous.sequence import CachedSequence
from dolly_batch.engine.plain.engine import PlainEngine
from dolly_batch.engine.weights.int8_cpu import quantize
from dolly_batch.engine.weights.loading import LoadedModel, load_model
from dolly_batch.engine.weights.onednn import PackedLinear, pack
from dolly_batch.records import GenerationParams, Request
from tests.engine.engines import answer, continuous_engine
from tests.engine.questions import Expected, dolly, generate_alone, mixed_requests
from tests.engine.test_plain_equality import NEAR_TIE, differing, first_difference
from tests.random_models import write_random_model

# Engines that cut, share, wait and move in different ways: all must give the same answers.
WAYS = [
    {},
    {"max_sequences": 5},
    {"prefix_sharing": False},
    {"kv_bytes": 200_000},
    {"max_sequences": 1, "prefix_sharing": False},
]


@pytest.fixture(scope="module")
def requests(double: LoadedModel) -> list[Request]:
    """Short and long prompts, some equal at their start for longer than Dolly's prefix, some equal altogether."""
    short = mixed_requests(dolly(double), 36, do_sample=False)
    long = mixed_requests(dolly(double), 12, max_words=400, do_sample=False)
    shared = dolly(double).encode("List three rivers of Europe, one on each line. " * 6, None)[:90]
    alike = [replace(row, prompt_ids=(*shared, *row.prompt_ids[30:])) for row in short[:14]]
    rows = [*short, *long, *alike, *short[:5]]
    return [replace(row, key=f"row {number}", seed=number) for number, row in enumerate(rows)]


@pytest.fixture(scope="module")
def expected(double: LoadedModel, requests: list[Request]) -> dict[str, Expected]:
    return generate_alone(double, requests)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_float64_equals_the_reference_in_all_rows(
    double: LoadedModel, requests: list[Request], expected: dict[str, Expected], way: dict[str, int]
) -> None:
    order = random.Random(str(way)).sample(requests, len(requests))
    assert differing(answer(continuous_engine(double, **way), order), expected) == []
    assert max(len(row.prompt_ids) for row in requests) > CHUNK_TOKENS


def test_float32_differs_only_where_the_reference_is_undecided(neox_folder: Path, requests: list[Request]) -> None:
    loaded = load_model(neox_folder, dtype="float32", device="cpu")
    reference = generate_alone(load_model(neox_folder, dtype="float32", device="cpu"), requests)
    found = answer(continuous_engine(loaded), requests)
    keys = differing(found, reference)
    for key in keys:
        assert reference[key].leads[first_difference(found[key], reference[key])] < NEAR_TIE
    assert len(keys) < len(requests) / 20


class LateByOne(ContinuousEngine):
    """Places every answer token one position too far from its prompt."""

    def _positions(self, decoding: Sequence[CachedSequence]) -> list[int]:
        return [position + 1 for position in super()._positions(decoding)]


def test_equality_sees_positions_shifted_by_one(
    double: LoadedModel, requests: list[Request], expected: dict[str, Expected]
) -> None:
    assert len(differing(answer(continuous_engine(double, LateByOne), requests), expected)) > len(requests) / 4


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("numbers", ["float32", "bfloat16", "int8"])
def test_needles_get_the_same_bits_alone_and_among_others(
    neox_folder: Path, requests: list[Request], numbers: str, do_sample: bool
) -> None:
    loaded = load_model(neox_folder, dtype="bfloat16" if numbers == "int8" else numbers, device="cpu")
    if numbers == "int8":
        quantize(loaded.model)
    elif numbers == "bfloat16":
        pack(loaded.model)
        assert isinstance(loaded.model.lm_head, PackedLinear | torch.nn.Linear)
    rows = [replace(row, params=replace(row.params, do_sample=do_sample)) for row in requests]
    draw = random.Random(numbers)
    needles = draw.sample(rows, 50)
    bits = {row.key: LogitBits(loaded) for row in needles}
    alone = {row.key: answer(engine, [row])[row.key] for row in needles for engine in [bits[row.key].engine]}
    for way in ({"max_sequences": 5}, {"kv_bytes": 200_000, "prefix_sharing": False}):
        among = LogitBits(loaded, **way)
        found = answer(among.engine, draw.sample(rows, len(rows)))
        assert {key: found[key] for key in alone} == alone
        if do_sample:  # greedy twins are answered once, under one of their keys
            for key, one in bits.items():
                assert among.seen[key] == one.seen[key], key


class LogitBits:
    """An engine that notes a hash of the logits of every row at every step."""

    def __init__(self, loaded: LoadedModel, **way: int) -> None:
        self.seen: dict[str, list[int]] = {}
        note = self.seen

        class Noting(ContinuousEngine):
            def _forward(self, step):  # type: ignore[no-untyped-def]
                rows, logits = super()._forward(step)
                for row, row_logits in zip(rows, logits, strict=True):
                    bits = row_logits.float().view(torch.int32).tolist()
                    note.setdefault(row.request.key, []).append(hash(tuple(bits)))
                return rows, logits

        self.engine = continuous_engine(loaded, Noting, **way)


@pytest.mark.parametrize("num_tokens", [1, 7, 8, 9, 31, 63, 64, 65, 255, 256, 257, 511, 512, 513, 1025])
def test_borders_of_chunks_and_classes(double: LoadedModel, num_tokens: int) -> None:
    """Prompts at and around the borders, with answers long enough to cross the next class."""
    draw = random.Random(num_tokens)
    params = GenerationParams(max_new_tokens=6, do_sample=False)
    prompt = tuple(draw.randrange(4, 390) for _ in range(num_tokens))
    request = Request("it", prompt, params)
    twin = Request("twin", (*prompt[:-1], 5, 6, 7), params)  # starts with all but the last token of the other
    rows = [request, twin]
    engine = continuous_engine(double)
    assert differing(answer(engine, rows), generate_alone(double, rows)) == []
    assert engine.stats()["num_shared_tokens"] == (num_tokens - 1 if num_tokens > 16 else 0)


def test_rows_move_through_the_classes_and_leave_nothing(double: LoadedModel) -> None:
    draw = random.Random(5)
    params = GenerationParams(max_new_tokens=150, do_sample=True)
    rows = [Request(str(row), tuple(draw.choices(range(4, 390), k=40 + row)), params, row) for row in range(24)]
    engine = continuous_engine(double)
    found = answer(engine, rows)
    assert found == answer(PlainEngine(double), rows)
    pools = engine._cache
    assert pools.num_moves > 24
    assert engine.stats()["peak_kv_bytes"] < 24 * 6 * 64 * pools.shape.token_bytes
    # The last row stays as the source of Dolly's prefix, nothing else does.
    assert pools.num_bytes <= 16 * 256 * pools.shape.token_bytes


def test_equal_greedy_requests_are_computed_once(double: LoadedModel) -> None:
    one = mixed_requests(dolly(double), 1, do_sample=False)[0]
    rows = [replace(one, key=str(copy)) for copy in range(30)]
    engine = continuous_engine(double)
    found = answer(engine, rows)
    assert len({completion.token_ids for completion in found.values()}) == 1
    assert engine.stats()["num_answer_tokens"] == found["0"].num_completion_tokens
    assert engine.num_unfinished == 0
    sampled = [replace(row, params=GenerationParams(12), seed=seed) for seed, row in enumerate(rows)]
    assert len({completion.token_ids for completion in answer(engine, sampled).values()}) > 25


def test_a_common_prefix_is_computed_once(double: LoadedModel) -> None:
    draw = random.Random(1)
    start = tuple(draw.choices(range(4, 390), k=200))
    params = GenerationParams(max_new_tokens=3, do_sample=False)
    rows = [Request(str(row), (*start, *draw.choices(range(4, 390), k=20)), params) for row in range(100)]
    engine, without = continuous_engine(double), continuous_engine(double, prefix_sharing=False)
    assert answer(engine, rows) == answer(without, rows)
    assert without.stats()["num_prompt_tokens"] == 100 * 220
    # Some happen to share a token more.
    assert 220 + 99 * 19 < engine.stats()["num_prompt_tokens"] <= 220 + 99 * 20
    assert 99 * 200 <= engine.stats()["num_shared_tokens"] < 99 * 201


def test_slots_are_refilled_at_once(tmp_path: Path) -> None:
    loaded = load_model(write_random_model(tmp_path / "model"), dtype="float32", device="cpu")
    draw = random.Random(2)
    rows = [
        Request(
            str(row),
            tuple(draw.choices(range(4, 390), k=draw.randint(2, 30))),
            GenerationParams(draw.randint(5, 60)),
            row,
        )
        for row in range(300)
    ]
    engine = continuous_engine(loaded, max_sequences=16)
    answer(engine, rows)
    assert engine.stats()["occupancy"] > 0.95
