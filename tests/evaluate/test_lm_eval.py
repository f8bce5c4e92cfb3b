"""Our log-likelihoods and accuracies are lm-evaluation-harness's, as benchmarks/record_lm_eval.py recorded them."""

import json
from pathlib import Path
from typing import Any

import pytest

from dolly_batch.engine.folder import inspect_folder
from dolly_batch.engine.model import load_model
from dolly_batch.engine.plain import PlainEngine
from dolly_batch.tasks.evaluate.accuracy import is_right, score_benchmark
from dolly_batch.tasks.evaluate.benchmarks import BENCHMARKS, read_row
from dolly_batch.tasks.evaluate.question import Question
from tests.evaluate.reference import FILES, SAMPLES, TINY, digest, first_rows


def load_engine(folder: Path) -> PlainEngine:
    return PlainEngine(load_model(folder, dtype="float32", device="cpu", prompt_format="none"))


def score(engine: PlainEngine, question: Question) -> list[float]:
    """Context and continuation encoded apart."""
    found: dict[int, float] = {}
    for prompt in question.prompts():
        continuations = engine.encoder.encode_texts(prompt.continuations)
        scores = engine.score(engine.encoder.encode_text(prompt.context), continuations)
        found.update(zip(prompt.choices, scores, strict=True))
    return [found[choice] for choice in range(len(found))]


def sample_questions(name: str) -> list[Question]:
    lines = (SAMPLES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [read_row(BENCHMARKS[name], json.loads(line)) for line in lines]


@pytest.mark.parametrize("model", ["tiny", "pythia-70m"])
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
        for row, expected in zip(rows, recorded["tasks"][task]["log_likelihoods"], strict=True):
            question = read_row(BENCHMARKS[task], row)
            found = score(engine, question)
            assert found == pytest.approx(expected, abs=1e-3)
            assert is_right(question, found) == is_right(question, expected)
            num_requests += len(found)
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
        scores = [score(engine, question) for question in questions]
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
