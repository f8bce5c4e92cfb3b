"""The GPU's engine: pages, steps ahead of what was read, padded decode steps. On the CPU, with attention by SDPA.

What needs a GPU (recorded steps, varlen_attn, the kernels as compiled) is tried where there is one, at the end.
"""

import json
import random
from collections.abc import Sequence as SequenceOf
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dolly_batch.engine.backend import Backend, choose_backend
from dolly_batch.engine.cache import CacheShape
from dolly_batch.engine.config import ModelConfig
from dolly_batch.engine.folder import read_config
from dolly_batch.engine.gpu import GpuEngine
from dolly_batch.engine.gpu_load import StepSize, engine_over_pages, kv_bytes
from dolly_batch.engine.gpu_load import gpu_engine as make_gpu_engine
from dolly_batch.engine.graphs import size_for
from dolly_batch.engine.load import load_engine, runs_fast
from dolly_batch.engine.model import LoadedModel, load_model
from dolly_batch.engine.pages import PAGE_TOKENS, Pages
from dolly_batch.engine.plain import PlainEngine
from dolly_batch.engine.schedule import Pace
from dolly_batch.engine.sequence import Sequence, Step
from dolly_batch.engine.stream import no_heartbeat
from dolly_batch.errors import ConfigError
from dolly_batch.records import Completion, EngineSpec, GenerationParams, Request, ScoreRequest
from tests.engine.fast import ROOMY, answer
from tests.engine.questions import dolly, mixed_requests
from tests.engine.test_begun import cut_at
from tests.engine.test_fast_faults import refuse_memory

TIGHT = 1  # byte: pages for one row of the model's full length, and no more
PATIENT = Pace(chunk_tokens=2**30, step_tokens=300, admit_every=3)
IN_CHUNKS = Pace(chunk_tokens=48, step_tokens=96)
WAYS: list[dict[str, object]] = [
    {},
    {"max_rows": 5},
    {"prefix_sharing": False},
    {"kv_bytes": TIGHT},
    {"max_rows": 9, "pace": PATIENT, "kv_bytes": TIGHT},
    {"max_rows": 7, "pace": IN_CHUNKS},
]


def gpu_engine(
    loaded: LoadedModel,
    kind: type[GpuEngine] = GpuEngine,
    pages: type[Pages] = Pages,
    *,
    kv_bytes: int = ROOMY,
    max_rows: int = 64,
    **settings: object,
) -> GpuEngine:
    """An engine whose pages are full of NaN at first."""
    cache = pages(CacheShape.of(loaded), min(kv_bytes, 2**24), max_rows=max_rows, max_positions=2048)
    cache.data.fill_(torch.nan)
    return kind(loaded, cache, max_rows=max_rows, **settings)  # type: ignore[arg-type]


def assert_empty(engine: GpuEngine) -> None:
    """Nothing is held but what one ended row may leave for the next ones, its prompt."""
    pages, donor = engine._pages, engine._schedule._donor
    held = set(donor.place.pages) if donor else set()
    assert pages.num_bytes == len(held) * pages.page_bytes
    assert sorted([*pages._free, *held]) == list(range(1, pages.num_pages))
    assert [page for page, number in enumerate(pages._num_holders) if number] == sorted(held)
    assert pages._num_outstanding == (donor.place.num_outstanding if donor else 0)
    assert pages._num_rows == bool(donor)
    assert engine._flight is None


@pytest.fixture(scope="module")
def double(neox_folder: Path) -> LoadedModel:
    return load_model(neox_folder, dtype="float64", device="cpu")


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
    assert way.get("max_rows") != 5 or engine.stats()["occupancy"] > 0.5


class LateByOne(GpuEngine):
    """Places every answer token one position too far from its prompt."""

    def _positions(self, decoding: SequenceOf[Sequence]) -> list[int]:
        for row in decoding:
            self._pages.place(row, row.num_cached + 2)
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


def test_a_common_prefix_is_held_once(double: LoadedModel) -> None:
    draw = random.Random(1)
    start = tuple(draw.choices(range(4, 390), k=200))
    params = GenerationParams(max_new_tokens=3, do_sample=False)
    rows = [Request(str(row), (*start, *draw.choices(range(4, 390), k=20)), params) for row in range(30)]
    engine, without = gpu_engine(double), gpu_engine(double, prefix_sharing=False)
    assert answer(engine, rows) == answer(without, rows)
    assert engine.stats()["num_prompt_tokens"] <= 220 + 29 * 20
    token_bytes = engine._pages.shape.token_bytes
    assert engine.stats()["peak_kv_bytes"] <= (208 + 30 * 48) * token_bytes
    assert without.stats()["peak_kv_bytes"] >= 30 * 220 * token_bytes


class Optimist(Pages):
    """Expects every row to end at once."""

    def _num_expected(self, row: Sequence) -> int:
        return -(-row.num_tokens // PAGE_TOKENS)


@pytest.mark.parametrize("prefix_sharing", [False, True])
def test_rows_that_outgrow_the_pages_are_suspended_and_go_on(double: LoadedModel, prefix_sharing: bool) -> None:
    engine, plain = (
        gpu_engine(double, pages=Optimist, kv_bytes=TIGHT, prefix_sharing=prefix_sharing),
        PlainEngine(double),
    )
    for seed in (3, 4, 5):  # what one batch leaves behind, the next one finds
        draw = random.Random(seed)
        start = draw.choices(range(4, 390), k=12)
        prompts = [(*start, *draw.choices(range(4, 390), k=18 + row % 7)) for row in range(36)]
        rows = [Request(str(row), ids, GenerationParams(90, row % 2 > 0), row) for row, ids in enumerate(prompts)]
        assert answer(engine, rows) == answer(plain, rows)
        assert_empty(engine)
    assert engine.stats()["num_suspended"] > 15
    assert engine.stats()["num_out_of_memory"] == 0
    longest = Request("longest", tuple(draw.choices(range(4, 390), k=2040)), GenerationParams(8))
    engine.submit(longest)
    ended = [completion for _ in range(40) for completion in engine.step()]
    assert [completion.key for completion in ended] == ["longest"]  # it needs all the pages that there are


def test_rows_are_admitted_by_what_others_came_to_need(double: LoadedModel) -> None:
    """Answers that end by themselves long before they must leave room for more rows."""
    pages = Pages(CacheShape.of(double), TIGHT, max_rows=64, max_positions=2048)
    params = GenerationParams(max_new_tokens=512)
    ended, other = (Sequence(Request("", (5,) * 40, params)) for _ in range(2))
    for number in range(200):
        pages.place(ended, 60)
        if number == 0:
            assert pages._num_outstanding == -(-(40 + 511) // PAGE_TOKENS) - 4
        ended.token_ids, ended.finish_reason = [7] * 19, "stop"
        pages.release(ended)
        ended.token_ids, ended.finish_reason = [], None
    pages.place(other, 41)
    assert 41 + 20 <= PAGE_TOKENS * (len(other.place.pages) + pages._num_outstanding) <= 41 + 80


class ShortOfMemory(GpuEngine):
    """Has memory for `enough` rows; never for the row named `poison`."""

    enough = 64
    poison = ""
    num_failures = 0

    def _forward(self, step: Step) -> tuple[list[Sequence], torch.Tensor]:
        rows = {row.request.key for row in [*step.decoding, *(chunk.row for chunk in step.chunks)]}
        found = super()._forward(step)
        if len(rows) > self.enough or self.poison in rows:
            self.num_failures += 1
            refuse_memory()  # late: whatever a step leaves behind must not matter to those that follow
        return found


@pytest.mark.parametrize("enough", [9, 1])
def test_out_of_memory_halves_the_rows(double: LoadedModel, enough: int) -> None:
    requests = mixed_requests(dolly(double), 25, do_sample=True)
    engine = gpu_engine(double, ShortOfMemory)
    assert isinstance(engine, ShortOfMemory)
    engine.enough, engine.poison = enough, "row 11"
    found, expected = answer(engine, requests), answer(PlainEngine(double), requests)
    failed = found.pop("row 11")
    assert failed.failure is not None
    assert failed.failure.status == "out_of_memory"
    del expected["row 11"]
    assert found == expected
    assert 0 < engine.num_failures < 30
    assert_empty(engine)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_broken_logits_fail_their_row_alone(neox_folder: Path, poison: float) -> None:
    spoilt = load_model(neox_folder, dtype="float32", device="cpu")
    requests = mixed_requests(dolly(spoilt), 40, do_sample=False)
    expected = answer(gpu_engine(spoilt), requests)
    params = GenerationParams(6)
    poisoned = [Request(f"bad {row}", (*requests[row].prompt_ids[:9], 200, 7), params) for row in range(12)]
    clean = {key for key, wanted in expected.items() if 200 not in wanted.token_ids}
    clean -= {request.key for request in requests if 200 in request.prompt_ids}
    assert len(clean) > 25
    with torch.no_grad():
        spoilt.model.gpt_neox.embed_in.weight[200] = poison
    engine = gpu_engine(spoilt, max_rows=4, kv_bytes=TIGHT)
    found = answer(engine, [*requests[:20], *poisoned, *requests[20:]])
    assert {found[row.key].failure.status for row in poisoned} == {"model_error"}  # type: ignore[union-attr]
    assert {key: found[key] for key in clean} == {key: expected[key] for key in clean}


def test_a_broken_prompt_is_not_copied_before_it_is_known_to_be_sound(neox_folder: Path) -> None:
    """Each third row has a broken twin that is one token longer, and so taken in just before it."""
    spoilt = load_model(neox_folder, dtype="float32", device="cpu")
    requests = [row for row in mixed_requests(dolly(spoilt), 40, do_sample=False) if 200 not in row.prompt_ids]
    expected = answer(gpu_engine(spoilt), requests)
    requests = [row for row in requests if 200 not in expected[row.key].token_ids]
    twins = [replace(row, key=f"bad {row.key}", prompt_ids=(*row.prompt_ids, 200)) for row in requests[::3]]
    with torch.no_grad():
        spoilt.model.gpt_neox.embed_in.weight[200] = torch.nan
    engine = gpu_engine(spoilt)
    for _ in range(2):  # the second time in places that the broken rows have left
        found = answer(engine, [*requests, *twins])
        assert {found[row.key].failure.status for row in twins} == {"model_error"}  # type: ignore[union-attr]
        assert {row.key: found[row.key] for row in requests} == {row.key: expected[row.key] for row in requests}
    assert engine.stats()["num_shared_tokens"] > 0


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
    engine, plain = gpu_engine(double, max_rows=6), PlainEngine(double)
    scores = ScoreRequest("scores", rows[0].prompt_ids, ((5, 6), (7,)))
    for each in (engine, plain):
        each.submit(scores)
    assert engine.step() == plain.step()
    assert answer(engine, rows) == answer(plain, rows)


def test_answers_that_were_begun_are_gone_on_with(double: LoadedModel) -> None:
    rows = [replace(row, params=GenerationParams(20)) for row in mixed_requests(dolly(double), 14)]
    whole = answer(PlainEngine(double), rows)
    begun = cut_at(whole, rows)
    found = answer(gpu_engine(double, max_rows=6), begun)
    assert found == answer(PlainEngine(double), begun)
    assert all(found[row.key].token_ids == whole[row.key].token_ids for row in rows)


def test_the_heart_beats_for_every_step_and_the_device_is_read_one_step_late(double: LoadedModel) -> None:
    beats: list[int] = []
    engine = gpu_engine(double, heartbeat=lambda: beats.append(1))
    engine.submit(Request("it", (5, 6, 7), GenerationParams(3, do_sample=False)))
    found = [engine.step() for _ in range(4)]
    assert [len(answers) for answers in found] == [0, 0, 0, 1]
    assert len(beats) == engine.stats()["num_steps"] == 3
    assert engine.num_unfinished == 0


def test_sizes_of_recorded_steps_hold_all_rows_with_little_padding() -> None:
    sizes = [size_for(number, 1000) for number in range(1, 1001)]
    assert all(number <= size <= 1000 for number, size in enumerate(sizes, start=1))
    assert max(size / number for number, size in enumerate(sizes, start=1) if number > 16) < 1.42
    assert len(set(sizes)) < 50
    assert sizes == sorted(sizes)


def test_what_runs_fast(neox_folder: Path) -> None:
    spec = EngineSpec("auto", str(neox_folder))
    assert runs_fast(spec, "gpt_neox", on_cpu=False)
    assert runs_fast(replace(spec, quantization="int8", kind="fast"), "gpt_neox", on_cpu=False)
    assert not runs_fast(replace(spec, dtype="float64"), "gpt_neox", on_cpu=False)
    assert not runs_fast(spec, "gptj", on_cpu=False)
    with pytest.raises(ConfigError, match="float64 on a GPU"):
        runs_fast(replace(spec, dtype="float64", kind="fast"), "gpt_neox", on_cpu=False)


def test_what_fails_its_trial_is_named_and_the_plain_engine_runs(
    double: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    spec = EngineSpec("auto", "")
    assert isinstance(make_gpu_engine(spec, double, no_heartbeat), PlainEngine)
    assert "the decode kernel does not compute in float64" in caplog.text
    with pytest.raises(
        ConfigError, match=r"'fast', which cannot run on this GPU: the decode kernel .* use auto or plain"
    ):
        make_gpu_engine(replace(spec, kind="fast"), double, no_heartbeat)


def real_shape(folder: Path, num_layers: int, hidden_size: int) -> tuple[ModelConfig, CacheShape]:
    config = replace(
        read_config(folder), num_layers=num_layers, hidden_size=hidden_size, vocab_size=50_280, max_positions=2048
    )
    return config, CacheShape(num_layers, 40, hidden_size // 40, torch.bfloat16, torch.device("cpu"))


@pytest.mark.parametrize(
    ("num_layers", "hidden_size", "free_gib", "least_tokens", "max_rows"),
    [(36, 5120, 55, 60_000, 1024), (32, 2560, 73, 190_000, 1024), (32, 4096, 9, 9_000, 512), (36, 5120, 4, 0, 64)],
    ids=["12b on 80 GB", "3b on 80 GB", "7b on 24 GB", "12b where it hardly fits"],
)
def test_memory_is_for_keys_and_values_once_the_steps_have_theirs(
    double: LoadedModel, neox_folder: Path, num_layers: int, hidden_size: int, free_gib: int, least_tokens: int,
    max_rows: int,
) -> None:  # fmt: skip
    config, shape = real_shape(neox_folder, num_layers, hidden_size)
    loaded = replace(double, dtype=torch.bfloat16, folder=replace(double.folder, config=config))
    spec = EngineSpec("auto", "")
    size = StepSize.within(free_gib << 30, loaded)
    spare = (free_gib << 30) - size.working_bytes(loaded)
    assert size.max_rows == max_rows
    assert kv_bytes(spec, shape, spare) // shape.token_bytes >= least_tokens
    assert kv_bytes(replace(spec, max_batch_tokens=100), shape, spare) <= 100 * shape.token_bytes
    assert kv_bytes(replace(spec, kv_bytes=12_345), shape, spare) == 12_345


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
