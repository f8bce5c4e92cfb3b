"""The GPU's engine: pages, steps ahead of what was read, padded decode steps. On the CPU, with attention by SDPA.

What needs a GPU (recorded steps, varlen_attn, the kernels as compiled) is tried where there is one, at the end.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dolly_batch.engine.continuous.gpu.engine import GpuEngine
from dolly_batch.engine.continuous.gpu.load import StepSize, engine_over_pages
from dolly_batch.engine.continuous.gpu.pages import PAGE_TOKENS
from dolly_batch.engine.continuous.gpu.self_test import Backend, choose_backend
from dolly_batch.engine.continuous.pace import StepLimits
from dolly_batch.engine.continuous.sequence import CachedSequence
from dolly_batch.engine.load import load_engine
from dolly_batch.engine.plain.engine import PlainEngine
from dolly_batch.engine.protocol import no_heartbeat
from dolly_batch.engine.weights.loading import LoadedModel, load_model
from dolly_batch.records import Completion, EngineSpec, GenerationParams, Request, ScoreRequest
from tests.engine.engines import TIGHT, answer, assert_empty, gpu_engine
from tests.engine.questions import dolly, mixed_requests
from tests.engine.test_partial_answers import cut_at

PATIENT = StepLimits(chunk_tokens=2**30, step_tokens=300, admit_every=3)
IN_CHUNKS = StepLimits(chunk_tokens=48, step_tokens=96)
WAYS: list[dict[str, object]] = [
    {},
    {"max_sequences": 5},
    {"prefix_sharing": False},
    {"kv_bytes": TIGHT},
    {"max_sequences": 9, "limits": PATIENT, "kv_bytes": TIGHT},
    {"max_sequences": 7, "limits": IN_CHUNKS},
]


@pytest.fixture(scope="module")
def requests(double: LoadedModel) -> list[Request]:
    """Greedy and sampled, short and long, equal at their start for long or altogether, penalized, held to a schema."""
    short = [
        *mixed_requests(dolly(double), 15, do_sample=False),
        *mixed_requests(dolly(double), 15, do_sample=True, top_p=0.9, temperature=1.3),
    ]
    long = mixed_requests(dolly(double), 5, max_words=400, do_sample=True)
    shared = dolly(double).encode("List three rivers of Europe, one on each line. " * 6, None)[:90]
    alike = [replace(row, prompt_ids=(*shared, *row.prompt_ids[30:])) for row in short[8:22]]
    penalized = [replace(row, params=replace(row.params, repetition_penalty=1.3, top_k=9)) for row in short[13:17]]
    rows = [*short, *long, *alike, *penalized, *short[:3]]
    return [replace(row, key=f"row {number}", seed=number) for number, row in enumerate(rows)]


@pytest.fixture(scope="module")
def expected(double: LoadedModel, requests: list[Request]) -> dict[str, Completion]:
    return answer(PlainEngine(double), requests)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_answers_are_the_plain_engines(
    double: LoadedModel, requests: list[Request], expected: dict[str, Completion], way: dict[str, object]
) -> None:
    engine = gpu_engine(double, **way)  # type: ignore[arg-type]
    assert answer(engine, random.Random(str(way)).sample(requests, len(requests))) == expected
    assert_empty(engine)
    assert way.get("max_sequences") != 5 or engine.stats()["occupancy"] > 0.5


class LateByOne(GpuEngine):
    """Places every answer token one position too far from its prompt."""

    def _positions(self, decoding: Sequence[CachedSequence]) -> list[int]:
        for row in decoding:
            self._pages.allocate(row, row.num_cached + 2)
        return [position + 1 for position in super()._positions(decoding)]


def test_equality_sees_positions_shifted_by_one(
    double: LoadedModel, requests: list[Request], expected: dict[str, Completion]
) -> None:
    greedy = [row for row in requests if not row.params.do_sample and row.params.max_new_tokens > 3]
    found = answer(gpu_engine(double, LateByOne), greedy)
    # A wrong position reads a key that was never written: NaN where pages were poisoned.
    assert sum(found[row.key] != expected[row.key] for row in greedy) > len(greedy) / 2


@pytest.mark.parametrize("num_tokens", [1, 15, 16, 17, 32, 33, 257, 1025])
def test_borders_of_pages(double: LoadedModel, num_tokens: int) -> None:
    """Prompts at and around the borders, answers that cross the next one, and rows that share all but the end."""
    draw = random.Random(num_tokens)
    params = GenerationParams(max_new_tokens=PAGE_TOKENS + 3, do_sample=False)
    prompt = tuple(draw.randrange(4, 390) for _ in range(num_tokens))
    twins = [Request(f"twin {row}", (*prompt[:-1], 5 + row, 6, 7), params) for row in range(3)]
    rows = [Request("it", prompt, params), *twins]
    engine = gpu_engine(double)
    assert answer(engine, rows) == answer(PlainEngine(double), rows)
    if num_tokens > 16:
        assert engine.stats()["num_shared_tokens"] >= 3 * (num_tokens - 1)


def test_grammars_penalties_and_scores_go_along(double: LoadedModel) -> None:
    schema = json.dumps(
        {
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": 6}, "n": {"type": "integer"}},
            "required": ["name", "n"],
            "additionalProperties": False,
        }
    )
    rows = mixed_requests(dolly(double), 18, do_sample=True)
    rows[::3] = [
        replace(row, grammar=schema, params=replace(row.params, max_new_tokens=60, do_sample=number % 2 > 0))
        for number, row in enumerate(rows[::3])
    ]
    engine, plain = gpu_engine(double, max_sequences=6), PlainEngine(double)
    scores = ScoreRequest("scores", rows[0].prompt_ids, ((5, 6), (7,)))
    for each in (engine, plain):
        each.submit(scores)
    assert engine.step() == plain.step()
    assert answer(engine, rows) == answer(plain, rows)


def test_answers_that_were_begun_are_gone_on_with(double: LoadedModel) -> None:
    rows = [replace(row, params=GenerationParams(20)) for row in mixed_requests(dolly(double), 14)]
    whole = answer(PlainEngine(double), rows)
    partial = cut_at(whole, rows)
    found = answer(gpu_engine(double, max_sequences=6), partial)
    assert found == answer(PlainEngine(double), partial)
    assert all(found[row.key].token_ids == whole[row.key].token_ids for row in rows)


def test_the_heart_beats_for_every_step_and_the_device_is_read_one_step_late(double: LoadedModel) -> None:
    beats: list[int] = []
    engine = gpu_engine(double, heartbeat=lambda: beats.append(1))
    engine.submit(Request("it", (5, 6, 7), GenerationParams(3, do_sample=False)))
    found = [engine.step() for _ in range(4)]
    assert [len(answers) for answers in found] == [0, 0, 0, 1]
    assert len(beats) == engine.stats()["num_steps"] == 3
    assert engine.num_unfinished == 0


on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@on_gpu
@pytest.mark.parametrize("dtype", ["float32", "float16", "auto"])
def test_on_a_gpu_the_fast_engine_answers_as_the_plain_one(dtype: str) -> None:
    folder = Path(__file__).parents[2] / "dolly_batch/tiny/model"
    spec = EngineSpec("fast", str(folder), dtype=dtype, kv_bytes=2**24)
    engine = load_engine(spec, "cuda:0")
    plain = load_engine(replace(spec, kind="plain"), "cuda:0")
    rows = [replace(row, prompt_ids=row.prompt_ids[:400]) for row in mixed_requests(engine.encoder, 200, max_words=90)]  # type: ignore[arg-type]
    found, expected = answer(engine, rows), answer(plain, rows)
    share = sum(found[key] == expected[key] for key in found) / len(rows)
    assert share >= (0.97 if dtype == "float32" else 0.7)
    assert engine.stats()["num_graphs"] > 2  # type: ignore[attr-defined]


@on_gpu
def test_on_a_gpu_a_row_without_recorded_steps_is_the_same(neox_folder: Path) -> None:
    loaded = load_model(neox_folder, dtype="float32", device="cuda:0")
    backend = choose_backend(loaded)
    assert backend.use_kernels
    spec = EngineSpec("fast", str(neox_folder))
    rows = mixed_requests(dolly(loaded), 100, max_words=60)
    size = StepSize(64, 512)
    engines = [
        engine_over_pages(spec, loaded, kind, 2**26, size, no_heartbeat)
        for kind in (backend, replace(backend, use_graphs=False), Backend(use_kernels=True))
    ]
    found = [answer(engine, rows) for engine in engines]
    for other in found[1:]:
        assert sum(other[row.key] != found[0][row.key] for row in rows) <= 2
