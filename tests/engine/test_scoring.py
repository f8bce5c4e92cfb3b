"""Scores equal the log-probabilities of one direct forward per sequence, however prompts and tries are batched."""

import random
from pathlib import Path

import pytest
import torch

from dolly_batch.engine.plain.engine import PlainEngine
from dolly_batch.engine.protocol import answer
from dolly_batch.engine.scoring import scorer as score_module
from dolly_batch.engine.scoring.scorer import Scorer
from dolly_batch.engine.scoring.trie import build_trie, split
from dolly_batch.engine.weights.loading import LoadedModel, load_model
from dolly_batch.records import Completion, GenerationParams, Request, ScoreRequest, Scores

PROMPTS = [[5], list(range(10, 60))]
CONTINUATIONS = [[7, 8, 9], [], [11], [12] * 20, [7, 8, 9], [399, 0, 1], [7, 8], [7, 8, 9, 10]]


def score_one(loaded: LoadedModel, prompt: list[int], continuation: list[int]) -> float:
    """The definition: token by token, from the logits of the whole sequence."""
    with torch.no_grad():
        logits = loaded.model(torch.tensor([prompt + continuation])).logits[0].double()
    places = range(len(prompt), len(prompt) + len(continuation))
    return sum(logits[place - 1].log_softmax(-1)[(prompt + continuation)[place]].item() for place in places)


def requests_of(seed: int, num_rows: int, shared: int = 0) -> list[ScoreRequest]:
    """Prompts of 1 to 40 tokens behind `shared` common ones; every third row has continuations of its own."""
    draw = random.Random(seed)
    labels = tuple(tuple(draw.choices(range(4, 12), k=draw.randint(1, 6))) for _ in range(9))
    head = [draw.randrange(400) for _ in range(shared)]
    rows = []
    for row in range(num_rows):
        prompt = (*head, *draw.choices(range(400), k=draw.randint(1, 40)))
        own = tuple(tuple(draw.choices(range(400), k=draw.randint(0, 4))) for _ in range(draw.randint(1, 3)))
        rows.append(ScoreRequest(str(row), prompt, own if row % 3 == 0 else labels))
    return rows


@pytest.mark.parametrize("folder", ["neox_folder", "gptj_folder", "llama_folder"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-6), ("float32", 1e-3)])
@pytest.mark.parametrize("budget", [None, 1])
def test_scores_are_sums_of_log_probabilities(
    folder: str, dtype: str, tolerance: float, budget: int | None, request: pytest.FixtureRequest
) -> None:
    loaded = load_model(request.getfixturevalue(folder), dtype=dtype, device="cpu")
    engine = PlainEngine(loaded, max_batch_tokens=budget)
    for prompt in PROMPTS:
        expected = [score_one(loaded, prompt, continuation) for continuation in CONTINUATIONS]
        assert engine.score(prompt, CONTINUATIONS) == pytest.approx(expected, abs=tolerance)
    assert engine.score([5], []) == []


@pytest.mark.parametrize("shared", [0, 30])
@pytest.mark.parametrize(("budget", "max_nodes"), [(None, 1024), (150, 1024), (None, 3)])
@pytest.mark.parametrize("folder", ["neox_folder", "gptj_folder", "llama_folder"])
def test_no_batching_changes_a_score(
    folder: str,
    shared: int,
    budget: int | None,
    max_nodes: int,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(score_module, "MAX_NODES", max_nodes)
    loaded = load_model(request.getfixturevalue(folder), dtype="float64", device="cpu")
    requests = requests_of(shared, 14, shared)
    found = {scores.key: scores for scores in answer(PlainEngine(loaded, max_batch_tokens=budget), requests)}
    assert len(found) == len(requests)
    for asked in requests:
        expected = [score_one(loaded, [*asked.prompt_ids], [*ids]) for ids in asked.continuations]
        scores = found[asked.key]
        assert isinstance(scores, Scores)
        assert scores.failure is None
        assert scores.log_probs == pytest.approx(expected, abs=1e-6)


def test_what_labels_share_is_fed_once_and_last_tokens_never() -> None:
    trie = build_trie(((1, 2, 3), (1, 2, 4), (1, 5), (6,)))
    assert (trie.num_nodes, trie.depths) == (2, (0, 1))
    assert len(trie.edges) == 6
    assert trie.ancestors.tolist() == [[True, False], [True, True]]
    draw = random.Random(3)
    labels = [tuple(draw.choices(range(3), k=draw.randint(0, 7))) for _ in range(60)]
    parts = list(split(labels, 12))
    assert sorted(index for part in parts for index in part) == list(range(60))
    tries = [build_trie(tuple(labels[index] for index in part)) for part in parts]
    assert max(found.num_nodes for found in tries) <= 12


def test_scoring_and_generating_share_an_engine(neox_folder: Path) -> None:
    loaded = load_model(neox_folder, dtype="float64", device="cpu")
    generating = [Request(f"g{row}", (5, 6, row + 9), GenerationParams(3, do_sample=False)) for row in range(5)]
    scoring = requests_of(1, 5)
    mixed = [request for pair in zip(generating, scoring, strict=True) for request in pair]
    found = list(answer(PlainEngine(loaded), mixed))
    assert {found.key for found in found if isinstance(found, Completion)} == {row.key for row in generating}
    assert {found.key for found in found if isinstance(found, Scores)} == {row.key for row in scoring}


def test_rows_at_fault_fail_alone(neox_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_model(neox_folder, dtype="float64", device="cpu")
    good = requests_of(2, 6, 20)
    bad = [
        ScoreRequest("long", (5,) * 2047, ((6, 7),)),
        ScoreRequest("empty", (), ((6,),)),
        ScoreRequest("id", (5,), ((400,),)),
        ScoreRequest("poison", tuple(range(100, 190)), ((6, 7),)),
    ]
    expected = {scores.key: scores for scores in answer(PlainEngine(loaded), good)}
    real = Scorer._score

    def run(self, batch):  # type: ignore[no-untyped-def]
        if len(batch) > 2 or any(len(request.prompt_ids) == 90 for request in batch):
            raise torch.OutOfMemoryError
        return real(self, batch)

    monkeypatch.setattr(Scorer, "_score", run)
    found = {scores.key: scores for scores in answer(PlainEngine(loaded), [*good, *bad])}
    statuses = {key: found[key].failure.status for key in ("long", "empty", "id", "poison")}  # type: ignore[union-attr]
    assert statuses == {
        "long": "too_long", "empty": "model_error", "id": "model_error", "poison": "out_of_memory",
    }  # fmt: skip
    for key, scores in expected.items():
        assert found[key].log_probs == pytest.approx(scores.log_probs, abs=1e-9)  # type: ignore[union-attr]


def test_broken_logits_are_a_failure(neox_folder: Path) -> None:
    loaded = load_model(neox_folder, dtype="float32", device="cpu")
    with torch.no_grad():
        loaded.model.gpt_neox.embed_in.weight[77] = torch.nan
    rows = [ScoreRequest("bad", (5, 77), ((6, 7),)), ScoreRequest("good", (5, 78, 79), ((6, 7),))]
    found = {scores.key: scores.failure for scores in answer(PlainEngine(loaded), rows)}
    assert found["good"] is None
    assert found["bad"] is not None


def test_scores_need_a_prompt_that_fits(neox_folder: Path) -> None:
    engine = PlainEngine(load_model(neox_folder, dtype="float32", device="cpu"))
    assert len(engine.score([5] * 2000, [[6] * 48])) == 1
    for prompt in ([], [5] * 2001):
        with pytest.raises(ValueError, match=r"2048|no tokens"):
            engine.score(prompt, [[6] * 48])


def test_a_base_model_without_markers_scores_and_generates(neox_folder: Path) -> None:
    base = load_model(neox_folder, dtype="float32", device="cpu", prompt_format="none")
    full = load_model(neox_folder, dtype="float32", device="cpu")
    assert not hasattr(base.encoder, "end_id")
    assert PlainEngine(base).score([5, 6], CONTINUATIONS) == PlainEngine(full).score([5, 6], CONTINUATIONS)
