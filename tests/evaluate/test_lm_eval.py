"""Our log-likelihoods and accuracies are lm-evaluation-harness's, as benchmarks/record_lm_eval.py recorded them."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dolly_batch.engine.plain.engine import PlainEngine
from dolly_batch.engine.protocol import answer
from dolly_batch.engine.weights.loading import load_model
from dolly_batch.evaluate.accuracy import score_benchmark
from dolly_batch.evaluate.benchmarks import BENCHMARKS, read_row
from dolly_batch.evaluate.question import Question
from dolly_batch.host.encoding import RowEncoder
from dolly_batch.models.folder import inspect_folder
from dolly_batch.records import ScoreRequest, ScoreRow, Scores
from tests.evaluate.reference import FILES, SAMPLES, TINY, digest, first_rows

pytestmark = pytest.mark.usefixtures("one_thread")


def load_engine(folder: Path) -> PlainEngine:
    return PlainEngine(load_model(folder, dtype="float32", device="cpu", prompt_format="none"))


def score(engine: PlainEngine, questions: Sequence[Question]) -> list[list[float]]:
    """The questions' log-likelihoods, asked as the Spark tasks ask them, with the host's own encoding."""
    asked = [
        (number, prompt, ScoreRow(f"{number}/{place}", prompt.context, None, prompt.continuations, False, "plain"))
        for number, question in enumerate(questions)
        for place, prompt in enumerate(question.prompts())
    ]
    requests = RowEncoder(engine.encoder, engine.max_positions).encode([row for *_, row in asked])
    assert all(isinstance(request, ScoreRequest) for request in requests)
    found = {scores.key: scores for scores in answer(engine, requests) if isinstance(scores, Scores)}  # type: ignore[arg-type]
    result = [[math.nan] * len(question.requests) for question in questions]
    for number, prompt, row in asked:
        for choice, value in zip(prompt.choices, found[row.key].log_probs, strict=True):
            result[number][choice] = value
    return result


def sample_questions(name: str) -> list[Question]:
    lines = (SAMPLES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [read_row(BENCHMARKS[name], json.loads(line)) for line in lines]


@pytest.mark.parametrize("model", ["tiny", pytest.param("pythia-70m", marks=pytest.mark.chaos)])
def test_log_likelihoods_of_300_requests_equal_the_harness(
    model: str, recording: dict[str, Any], shared_data: Path, request: pytest.FixtureRequest
) -> None:
    folder = TINY if model == "tiny" else request.getfixturevalue("pythia_70m")
    recorded = recording["models"][model]
    # The very model: tiny's files, and every bit of the random weights.
    assert inspect_folder(folder).sha256 == recorded["identity"]
    engine = load_engine(folder)
    num_requests = 0
    for task in FILES:
        rows = first_rows(shared_data, task)
        assert digest(rows) == recorded["tasks"][task]["questions"]
        questions = [read_row(BENCHMARKS[task], row) for row in rows]
        expected = recorded["tasks"][task]["log_likelihoods"]
        found = score(engine, questions)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-3)
            num_requests += len(ours)
        assert score_benchmark(BENCHMARKS[task], questions, found) == score_benchmark(
            BENCHMARKS[task], questions, expected
        )
    assert num_requests == 300


@pytest.mark.parametrize("name", BENCHMARKS)
def test_requests_of_our_samples_are_those_the_harness_makes(name: str, recording: dict[str, Any]) -> None:
    recorded = recording["samples"]["tasks"][name]["requests"]
    for question, pairs in zip(sample_questions(name), recorded, strict=True):
        # The harness moves the white space over when it encodes.
        moved = [(a.rstrip(), a[len(a.rstrip()) :] + b) for a, b in pairs]
        assert list(question.requests) == moved


def test_accuracies_and_standard_errors_of_all_seven_equal_the_harness(recording: dict[str, Any]) -> None:
    engine = load_engine(TINY)
    for name, benchmark in BENCHMARKS.items():
        recorded = recording["samples"]["tasks"][name]
        questions = sample_questions(name)
        scores = score(engine, questions)
        for found, expected in zip(scores, recorded["log_likelihoods"], strict=True):
            assert found == pytest.approx(expected, abs=1e-3)
        result = score_benchmark(benchmark, questions, scores)
        ours = {"acc": result.acc.value, "acc_stderr": result.acc.stderr}
        if result.acc_norm is not None:
            ours |= {"acc_norm": result.acc_norm.value, "acc_norm_stderr": result.acc_norm.stderr}
        assert ours == pytest.approx(recorded["metrics"], abs=1e-9)


def test_every_benchmark_reports_what_the_harness_reports(recording: dict[str, Any]) -> None:
    for name, benchmark in BENCHMARKS.items():
        assert ("acc_norm" in recording["samples"]["tasks"][name]["metrics"]) == benchmark.has_acc_norm
