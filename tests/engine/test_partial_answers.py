"""An answer that was cut off is gone on with: the same tokens as in one go, without generating the first again."""

from dataclasses import replace
from pathlib import Path

import pytest

from dolly_batch.engine.continuous.sequence import Step
from dolly_batch.engine.plain.engine import PlainEngine
from dolly_batch.engine.protocol import Engine
from dolly_batch.engine.weights.loading import LoadedModel, load_model
from dolly_batch.host.encoding import RowEncoder
from dolly_batch.records import Completion, GenerationParams, PartialAnswer, PromptRow, Request
from dolly_batch.tiny import MODEL_FOLDER
from tests.engine.engines import answer, continuous_engine
from tests.engine.questions import dolly, mixed_requests
from tests.engine.test_continuous_faults import ShortOfMemory

WHOLE = 24
PARAMS = {
    "greedy": GenerationParams(WHOLE, do_sample=False),
    "sampled": GenerationParams(WHOLE, temperature=0.8),
    "penalized": GenerationParams(WHOLE, do_sample=False, repetition_penalty=1.3),
}


@pytest.fixture(scope="module")
def loaded(neox_folder: Path, gptj_folder: Path) -> dict[str, LoadedModel]:
    folders = {"gpt_neox": neox_folder, "gptj": gptj_folder}
    return {name: load_model(folder, dtype="float32", device="cpu") for name, folder in folders.items()}


def cut_at(whole: dict[str, Completion], requests: list[Request]) -> list[Request]:
    """The requests, each with a beginning of its answer as one that was cut off has it: of 1 token to all but one."""
    cut = []
    for number, request in enumerate(requests):
        ids = whole[request.key].token_ids
        num_partial = 0 if number % 5 == 0 else 1 + (number * 7) % (len(ids) or 1)
        cut.append(replace(request, partial_ids=ids[: min(num_partial, len(ids) - 1)] if ids else ()))
    return cut


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        *(("fast", params) for params in PARAMS),
        ("plain", "greedy"),
        pytest.param("plain", "penalized", marks=pytest.mark.chaos),
        ("plain", "sampled"),
        ("gptj", "greedy"),
        pytest.param("gptj", "sampled", marks=pytest.mark.chaos),
    ],
)
def test_an_answer_gone_on_with_is_the_answer_given_in_one_go(
    loaded: dict[str, LoadedModel], kind: str, params: str
) -> None:
    model = loaded["gptj" if kind == "gptj" else "gpt_neox"]

    def engine() -> Engine:
        return (
            continuous_engine(model, max_sequences=7) if kind == "fast" else PlainEngine(model, max_batch_tokens=1500)
        )

    requests = [replace(row, params=PARAMS[params]) for row in mixed_requests(dolly(model), 16)]
    whole = answer(engine(), requests)
    cut = cut_at(whole, requests)
    found = answer(engine(), cut)
    assert {key: replace(completion, num_partial_tokens=0) for key, completion in found.items()} == whole
    assert all(found[request.key].num_partial_tokens == len(request.partial_ids) for request in cut)
    assert sum(len(request.partial_ids) for request in cut) > 60


def test_only_the_rest_is_generated(loaded: dict[str, LoadedModel]) -> None:
    model = loaded["gpt_neox"]
    rows = [replace(row, params=PARAMS["greedy"]) for row in mixed_requests(dolly(model), 9)]
    requests = list({row.prompt_ids: row for row in rows}.values())  # of equal ones only one is run
    steps: list[int] = []

    def decoded(rows: list[Request]) -> tuple[float, int]:
        engine = continuous_engine(model)
        answers = answer(engine, rows)
        stats = engine.stats()
        steps.append(int(stats["num_steps"]))
        return stats["num_answer_tokens"] - stats["num_partial_tokens"], sum(len(a.token_ids) for a in answers.values())

    num_whole, num_tokens = decoded(requests)
    assert num_whole == num_tokens
    whole = answer(continuous_engine(model), requests)
    partial = [replace(row, partial_ids=whole[row.key].token_ids[:-3]) for row in requests]
    assert decoded(partial) == (num_whole - sum(len(row.partial_ids) for row in partial), num_tokens)
    assert steps[1] < steps[0] / 3


def test_a_beginning_that_is_not_the_requests_own_is_dropped(loaded: dict[str, LoadedModel]) -> None:
    model = loaded["gpt_neox"]
    requests = [replace(row, params=PARAMS["sampled"]) for row in mixed_requests(dolly(model), 6)]
    whole = answer(continuous_engine(model), requests)
    wrong = [replace(row, partial_ids=((whole[row.key].token_ids[0] + 1) % 300, 5, 6)) for row in requests]
    for engine in (continuous_engine(model), PlainEngine(model)):
        assert answer(engine, wrong) == whole


def test_rows_that_gave_way_go_on_from_where_they_began(loaded: dict[str, LoadedModel]) -> None:
    model = loaded["gpt_neox"]
    requests = [replace(row, params=PARAMS["sampled"]) for row in mixed_requests(dolly(model), 16)]
    whole = answer(continuous_engine(model), requests)

    class LateShortage(ShortOfMemory):
        def _forward(self, step: Step):  # type: ignore[no-untyped-def]
            self.enough = 64 if self.stats()["num_steps"] < 2 else 4  # once the partial answers are in
            return super()._forward(step)

    engine = continuous_engine(model, LateShortage)
    found = answer(engine, cut_at(whole, requests))
    assert engine.stats()["num_out_of_memory"] > 0
    assert {key: replace(completion, num_partial_tokens=0) for key, completion in found.items()} == whole


def test_a_beginning_needs_room_and_no_grammar(loaded: dict[str, LoadedModel]) -> None:
    prompt = tuple(dolly(loaded["gpt_neox"]).encode("Say hello.", None))
    full = Request("full", prompt, GenerationParams(3, do_sample=False), partial_ids=(5, 6, 7))
    bound = Request("bound", prompt, GenerationParams(9, do_sample=False), grammar="{}", partial_ids=(5, 6, 7))
    for engine in (continuous_engine(loaded["gpt_neox"]), PlainEngine(loaded["gpt_neox"])):
        for completion in answer(engine, [full, bound]).values():
            assert completion.failure is not None
            assert completion.failure.status == "model_error"


def test_a_stored_text_is_taken_for_its_tokens_only_where_it_tells_them() -> None:
    model = load_model(MODEL_FOLDER, dtype="float32", device="cpu")
    encoder = RowEncoder(model.encoder, model.folder.max_positions)

    def partial_ids(text: str, num_tokens: int) -> tuple[int, ...]:
        row = PromptRow("k", "Say hello.", None, PARAMS["greedy"], partial=PartialAnswer(text, num_tokens))
        (request,) = encoder.encode([row])
        assert isinstance(request, Request)
        return request.partial_ids

    text = "The meeting in Paris was led by Ada Berg"
    ids = tuple(model.encoder.encode_text(text))
    assert partial_ids(text, len(ids)) == ids
    assert partial_ids(text, len(ids) + 1) == ()  # white space at the end was stripped, or other tokens were written
    broken = text + " \ufffd"
    assert partial_ids(broken, len(model.encoder.encode_text(broken))) == ()
    marker = "### End of it"
    assert partial_ids(marker, len(model.encoder.encode_text(marker)) - 2) == ()  # written as the marker's own token


def test_a_row_that_has_ended_may_stand_beside_longer_ones_at_the_last_position(loaded: dict[str, LoadedModel]) -> None:
    """Its place in the batch goes on, beyond the positions that the model has."""
    model = loaded["gptj"]
    longest = model.folder.max_positions
    last = Request("last", (9,) * (longest - 5), GenerationParams(5, do_sample=False))
    params = GenerationParams(60, do_sample=False)
    others = [Request(str(row), (7 + row,) * (longest - 80), params) for row in range(4)]
    together = answer(PlainEngine(model, max_batch_tokens=20_000), [last, *others])
    assert together == answer(PlainEngine(model, max_batch_tokens=1), [last, *others])
    assert all(completion.failure is None for completion in together.values())
