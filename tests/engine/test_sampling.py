"""Sampling: the distribution of Hugging Face's warpers, drawn so that no neighbour can change a row."""

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from dolly_batch.engine.plain.engine import PlainEngine
from dolly_batch.engine.protocol import generate
from dolly_batch.engine.sampling import choose_tokens, penalize_repetition, uniform
from dolly_batch.engine.weights.loading import load_model
from dolly_batch.records import GenerationParams
from tests.engine.engines import continuous_engine
from tests.engine.questions import dolly, mixed_requests

NUM_DRAWS = 8_000
MASK = 2**64 - 1


def logits_with_ties() -> Tensor:
    """60 logits, a few of them equal, as bfloat16 models have them."""
    logits = torch.randn(60, generator=torch.Generator().manual_seed(1)) * 2
    logits[[3, 11, 40]] = logits[7].item()
    logits[[20, 21, 22]] = logits.topk(6).values[-1].item()
    return logits


def warped(logits: Tensor, params: GenerationParams) -> Tensor:
    """The probabilities that `generate` samples from."""
    ids = torch.zeros(1, 1, dtype=torch.long)
    scores = TemperatureLogitsWarper(params.temperature)(ids, logits[None])
    if params.top_k:
        scores = TopKLogitsWarper(params.top_k)(ids, scores)
    if params.top_p < 1:
        scores = TopPLogitsWarper(params.top_p)(ids, scores)
    return scores.double().softmax(dim=-1)[0]


def draw(logits: Tensor, params: GenerationParams, seeds: list[int], positions: list[int]) -> Tensor:
    return choose_tokens(logits.expand(len(seeds), -1), [params] * len(seeds), seeds, positions)


def misfit(logits: Tensor, tokens: Tensor, probabilities: Tensor) -> float:
    """Standard deviations by which chi-squared exceeds its mean; infinite when an impossible token was drawn.

    Equal logits are counted as one: which of them top-p keeps is up to the warper's sort, how many of them is not.
    """
    _, group = logits.unique(return_inverse=True)
    none = torch.zeros(int(group.max()) + 1, dtype=torch.float64)
    counts = none.index_add(0, group[tokens], torch.ones(len(tokens), dtype=torch.float64))
    expected = none.index_add(0, group, probabilities) * len(tokens)
    possible = expected > 0
    if counts[~possible].any():
        return math.inf
    freedom = max(1, int(possible.sum()) - 1)
    chi_squared = ((counts - expected)[possible] ** 2 / expected[possible]).sum().item()
    return (chi_squared - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize(
    "params",
    [
        GenerationParams(top_p=1.0),
        GenerationParams(),
        GenerationParams(temperature=0.5, top_p=0.5),
        GenerationParams(temperature=1.7, top_p=0.99),
        GenerationParams(temperature=1.7, top_p=0.05),
        GenerationParams(temperature=3.0, top_p=0.15),
        GenerationParams(top_p=1e-6),
        GenerationParams(top_k=5, top_p=1.0),
        GenerationParams(top_k=6, top_p=0.7),
        GenerationParams(top_k=1),
        GenerationParams(top_k=1000),
    ],
    ids=str,
)
def test_draws_fit_the_warpers(params: GenerationParams) -> None:
    logits = logits_with_ties()
    for seeds, positions in (
        (list(range(NUM_DRAWS)), [0] * NUM_DRAWS),
        ([5] * NUM_DRAWS, list(range(NUM_DRAWS))),
    ):
        assert misfit(logits, draw(logits, params, seeds, positions), warped(logits, params)) < 5


@pytest.mark.parametrize(
    "other", [GenerationParams(temperature=1.1), GenerationParams(top_p=0.9), GenerationParams(top_k=20)], ids=str
)
def test_the_fit_sees_other_parameters(other: GenerationParams) -> None:
    logits = logits_with_ties()
    tokens = draw(logits, GenerationParams(), list(range(NUM_DRAWS)), [0] * NUM_DRAWS)
    assert misfit(logits, tokens, warped(logits, other)) > 5


def test_rows_keep_their_own_parameters() -> None:
    logits = torch.stack([logits_with_ties().roll(row) for row in range(40)])
    kinds = [
        GenerationParams(do_sample=False),
        GenerationParams(top_k=3),
        GenerationParams(temperature=2.0, top_p=0.1),
        GenerationParams(top_p=1.0),
    ]
    params = [kinds[row % 4] for row in range(40)]
    together = choose_tokens(logits, params, list(range(40)), [2] * 40).tolist()
    alone = [choose_tokens(logits[[row]], [params[row]], [row], [2]).item() for row in range(40)]
    assert together == alone
    assert together[::4] == logits.argmax(dim=-1).tolist()[::4]


def mix(bits: int) -> int:
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & MASK
    return bits ^ (bits >> 31)


def test_numbers_are_the_documented_hash() -> None:
    golden = 0x9E3779B97F4A7C15
    draws = random.Random(0)
    cases = [(draws.getrandbits(63) - 2**62, draws.randrange(2048), draws.randrange(17)) for _ in range(500)]
    for seed, position, attempt in cases:
        state = mix(mix((mix(seed & MASK) + (position + 1) * golden) & MASK) + (attempt + 1) * golden & MASK)
        expected = ((state >> 12) + 0.5) / 2**52
        assert uniform(torch.tensor([seed]), torch.tensor([position]), attempt).item() == expected
        assert 0 < expected < 1


def test_any_integer_is_a_seed() -> None:
    logits = logits_with_ties()
    big = draw(logits, GenerationParams(), [2**64 + 5, -1, 2**200], [0, 0, 0])
    assert big.tolist() == draw(logits, GenerationParams(), [5, 2**64 - 1, 0], [0, 0, 0]).tolist()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_sampled_row_does_not_depend_on_its_neighbours(neox_folder: Path, dtype: str) -> None:
    loaded = load_model(neox_folder, dtype=dtype, device="cpu")
    requests = mixed_requests(dolly(loaded), 60)
    alone = {c.key: c for request in requests for c in generate(PlainEngine(loaded), [request])}
    assert len({completion.text for completion in alone.values()}) > 50
    for order in (requests, requests[::-1], random.Random(1).sample(requests, 60)):
        for budget in (None, 1500):
            together = {c.key: c for c in generate(PlainEngine(loaded, max_batch_tokens=budget), order)}
            assert together == alone


def test_another_seed_gives_another_answer(neox_folder: Path) -> None:
    loaded = load_model(neox_folder, dtype="float32", device="cpu")
    request = mixed_requests(dolly(loaded), 1)[0]
    texts = set()
    for seed in range(20):
        seeded = type(request)(str(seed), request.prompt_ids, GenerationParams(16), seed)
        texts |= {completion.text for completion in generate(PlainEngine(loaded), [seeded])}
    assert len(texts) == 20


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.7])
def test_the_repetition_penalty_is_that_of_hugging_face(penalty: float) -> None:
    logits = logits_with_ties()
    ids = torch.tensor([[3, 3, 7, 20, 59, 0]])
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits[None].clone())[0]
    penalize_repetition(logits, ids[0].tolist(), penalty)
    assert torch.equal(logits, expected)


def test_penalized_answers_are_those_of_generate(neox_folder: Path) -> None:
    loaded = load_model(neox_folder, dtype="float64", device="cpu")
    requests = mixed_requests(dolly(loaded), 12, do_sample=False)
    penalized = [replace(row, params=replace(row.params, repetition_penalty=1.3)) for row in requests]
    changed = 0
    for engine in (PlainEngine(loaded), continuous_engine(loaded)):
        found = {c.key: c.token_ids for c in generate(engine, penalized)}
        changed += sum(c.token_ids != found[c.key] for c in generate(engine, requests))
        for row in penalized:
            config = GenerationConfig(
                max_new_tokens=row.params.max_new_tokens,
                do_sample=False,
                repetition_penalty=1.3,
                eos_token_id=dolly(loaded).end_id,
                pad_token_id=0,
            )
            prompt = torch.tensor([row.prompt_ids])
            output = loaded.model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=config)
            assert found[row.key] == tuple(
                token_id for token_id in output[0, prompt.shape[1] :].tolist() if token_id != dolly(loaded).end_id
            )
    assert changed > 0
