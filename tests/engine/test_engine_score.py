"""Scores equal the log-probabilities of one direct forward per sequence."""

from pathlib import Path

import pytest
import torch

from dolly_batch.engine.model import LoadedModel, load_model
from dolly_batch.engine.plain import PlainEngine

PROMPTS = [[5], list(range(10, 60))]
CONTINUATIONS = [[7, 8, 9], [], [11], [12] * 20, [7, 8, 9], [399, 0, 1]]


def score_one(loaded: LoadedModel, prompt: list[int], continuation: list[int]) -> float:
    """The definition: token by token, from the logits of the whole sequence."""
    with torch.no_grad():
        logits = loaded.model(torch.tensor([prompt + continuation])).logits[0].double()
    places = range(len(prompt), len(prompt) + len(continuation))
    return sum(logits[place - 1].log_softmax(-1)[(prompt + continuation)[place]].item() for place in places)


@pytest.mark.parametrize("folder", ["neox_folder", "gptj_folder"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-6), ("float32", 1e-3)])
@pytest.mark.parametrize("budget", [None, 1, 150])
def test_scores_are_sums_of_log_probabilities(
    folder: str, dtype: str, tolerance: float, budget: int | None, request: pytest.FixtureRequest
) -> None:
    loaded = load_model(request.getfixturevalue(folder), dtype=dtype, device="cpu")
    engine = PlainEngine(loaded, max_batch_tokens=budget)
    for prompt in PROMPTS:
        expected = [score_one(loaded, prompt, continuation) for continuation in CONTINUATIONS]
        assert engine.score(prompt, CONTINUATIONS) == pytest.approx(expected, abs=tolerance)
    assert engine.score([5], []) == []


def test_scores_need_a_prompt_that_fits(neox_folder: Path) -> None:
    engine = PlainEngine(load_model(neox_folder, dtype="float32", device="cpu"))
    assert len(engine.score([5] * 2000, [[6] * 48])) == 1
    for prompt in ([], [5] * 2001):
        with pytest.raises(ValueError, match="2048"):
            engine.score(prompt, [[6] * 48])


def test_a_base_model_without_markers_scores_and_generates(neox_folder: Path) -> None:
    base = load_model(neox_folder, dtype="float32", device="cpu", prompt_format="none")
    full = load_model(neox_folder, dtype="float32", device="cpu")
    assert not hasattr(base.encoder, "end_id")
    assert PlainEngine(base).score([5, 6], CONTINUATIONS) == PlainEngine(full).score([5, 6], CONTINUATIONS)
