"""`benchmarks/gpu/` on the CPU: it runs, its floor is the arithmetic it says, its checks can fail."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.gpu import calculator, checks, main, rates
from benchmarks.gpu.work import NUM_PREFIX, SHAPES, Work, random_model
from dolly_batch.engine.continuous.engine import ContinuousEngine
from dolly_batch.engine.continuous.sequence import CachedSequence
from dolly_batch.models import sizing
from dolly_batch.models.config import check_config

CPU = torch.device("cpu")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_it_runs_to_its_last_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--models smoke --device cpu --dtype float32 --rows 4 --padded-rows 3 --int8 --greedy"
    monkeypatch.setattr(sys, "argv", ["gpu.py", *words.split()])
    assert main.main() == 0
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])["models"]["smoke"]
    work = Work.whole_table().part(4)
    for kind in ("float32", "int8"):
        found = result[kind]
        assert (found["num_rows"], found["num_failed"], found["is_cut"]) == (4, 0, False)
        assert (found["prompt_tokens"], found["answer_tokens"]) == (work.prompt_tokens, work.answer_tokens)
        assert found["share"] > 0
    assert result["padded"]["num_rows"] == 3
    assert result["ratio"] == result["float32"]["tokens_per_s"] / result["padded"]["tokens_per_s"]
    assert [line for line in lines if line.startswith("| smoke | int8 | 4 |")]


def test_shapes_are_dollys() -> None:
    for name, billions in {"3b": 2.775, "7b": 6.856, "12b": 11.842}.items():
        shape = SHAPES[name]
        weights = shape.layer_weights + 2 * shape.head_weights
        assert weights / 1e9 == pytest.approx(billions, rel=0.001)
        num_parameters = sizing.num_parameters(check_config(Path("config.json"), shape.config))
        assert weights == pytest.approx(num_parameters, rel=0.001)
    assert SHAPES["12b"].token_bytes(2) == 737_280
    smoke = random_model(SHAPES["smoke"], CPU, torch.float32).model
    weights = [module.weight.numel() for module in smoke.modules() if isinstance(module, nn.Linear)]
    assert sum(weights) == SHAPES["smoke"].layer_weights + SHAPES["smoke"].head_weights


def test_rows_have_the_tables_lengths_and_nothing_else_of_it() -> None:
    whole = Work.whole_table()
    totals = (len(whole.lengths), whole.prompt_tokens, whole.answer_tokens)
    assert totals == (14_968, pytest.approx(1_711_926, rel=0.001), pytest.approx(1_032_945, rel=0.003))
    part = whole.part(500)
    for mean_of in (lambda work: work.prompt_tokens, lambda work: work.answer_tokens):
        assert mean_of(part) / 500 == pytest.approx(mean_of(whole) / len(whole.lengths), rel=0.05)
    requests = part.requests(2048, sampled=True)
    assert sorted((len(one.prompt_ids), one.params.max_new_tokens) for one in requests) == sorted(part.lengths)
    assert len({one.prompt_ids[:NUM_PREFIX] for one in requests}) == 1
    assert len({one.prompt_ids for one in requests}) > 490


def test_the_floor_is_the_larger_of_bytes_and_arithmetic() -> None:
    """Three rows of ten prompt tokens and four answer tokens, two in flight: reckoned by hand."""
    shape, work = SHAPES["smoke"], Work(((30, 4),) * 3)
    assert work.decoded_context == 32  # of 31, 32 and 33 tokens
    weights, row_bytes = shape.layer_weights + shape.head_weights, 32 * shape.token_bytes(2)
    by_memory = rates.floor(shape, work, rates.Rates(1e3, 1e30), 1, 2, 2.5 * row_bytes)
    assert by_memory.rows_in_flight == 2
    assert by_memory.decode_s == pytest.approx(9 / 2 * (weights + 2 * row_bytes) / 1e3)
    by_arithmetic = rates.floor(shape, work, rates.Rates(1e30, 1e3), 1, 2, 2.5 * row_bytes)
    assert by_arithmetic.decode_s == pytest.approx(9 * (2 * weights + 4 * shape.hidden_size * 2 * 32) / 1e3)
    prompts = 2 * shape.layer_weights * (90 - 2 * NUM_PREFIX) + 3 * 2 * shape.hidden_size * 2 * 30**2
    assert by_arithmetic.prefill_s == pytest.approx((prompts + 3 * 2 * shape.head_weights) / 1e3)


def test_the_calculator_has_the_benchmarks_floor_and_a_share_for_each_stage() -> None:
    work, device = Work.whole_table().part(600), calculator.DEVICES["H200"]
    model = calculator.MODELS["12b"]
    its_rates = rates.Rates(0.9 * device.bytes_s, 0.71 * device.flops_s)
    expected = rates.floor(SHAPES["12b"], work, its_rates, 2, 2, 50e9)
    assert calculator.floor(model, device, work, 50e9) == pytest.approx(expected.total_s, rel=0.001)
    found = [calculator.estimate(model, device, engine, work) for engine in calculator.STAGES.values()]
    shares = [each.share for each in found if each]
    assert len(shares) == len(calculator.STAGES)
    assert shares == sorted(shares)
    assert 0.2 < shares[0] < shares[-1] < 1.5
    assert calculator.estimate(model, calculator.DEVICES["A10"], calculator.Engine(), work) is None


def test_checks_pass_and_can_fail(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["greedy, heads of 80, float32", "spoilt", "int8 layers", "int8 in the engine"]
    assert checks.main(CPU, print, names) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"checks": 4, "failed": []}

    def shifted(self: ContinuousEngine, decoding: Sequence[CachedSequence]) -> list[int]:
        return [row.num_cached + 1 for row in decoding]

    monkeypatch.setattr(ContinuousEngine, "_positions", shifted)
    assert checks.main(CPU, print, ["greedy, heads of 80, float32", "int8 near"]) == 1
    told = capsys.readouterr().out
    assert json.loads(told.splitlines()[-1])["failed"] == ["greedy, heads of 80, float32"]
    assert "AssertionError: row " in told
