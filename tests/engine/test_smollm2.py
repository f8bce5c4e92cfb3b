"""A real model: the engines' greedy answers are those of transformers' `generate`, row by row."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import transformers

from dolly_batch.engine.continuous.load import load_packed
from dolly_batch.engine.plain.engine import PlainEngine
from dolly_batch.engine.weights.loading import LoadedModel, load_model
from dolly_batch.prompt import PromptEncoder
from dolly_batch.records import EngineSpec, GenerationParams, Request
from tests.conftest import PROJECT
from tests.engine.engines import answer, continuous_engine
from tests.engine.questions import Expected, generate_alone
from tests.engine.test_plain_equality import NEAR_TIE, differing, first_difference
from tests.smollm2 import smollm2_folder

QUESTIONS = PROJECT / "dolly_batch" / "samples" / "questions.jsonl"
WAYS = ({}, {"max_sequences": 7, "prefix_sharing": False}, {"kv_bytes": 2**26})


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(smollm2_folder(), dtype="float32", device="cpu")


def requests_of(encoder: PromptEncoder, table: list[dict[str, str]], max_new_tokens: int) -> list[Request]:
    params = GenerationParams(max_new_tokens=max_new_tokens, do_sample=False)
    return [
        Request(str(number), tuple(encoder.encode(row["instruction"], row.get("context"))), params)
        for number, row in enumerate(table)
    ]


def assert_equal_but_for_ties(loaded: LoadedModel, rows: list[Request], expected: dict[str, Expected]) -> None:
    engines = [PlainEngine(loaded), *(continuous_engine(loaded, **way) for way in WAYS)]
    for number, engine in enumerate(engines):
        found = answer(engine, random.Random(number).sample(rows, len(rows)))
        keys = differing(found, expected)
        leads = [expected[key].leads[first_difference(found[key], expected[key])] for key in keys]
        print(f"engine {number}: {len(rows)} rows, {len(keys)} differ, the best two logits apart by at most {leads}")
        assert all(lead < NEAR_TIE for lead in leads)


@pytest.mark.long
def test_the_sample_table_is_answered_as_by_generate(loaded: LoadedModel) -> None:
    table = [row for row in map(json.loads, QUESTIONS.read_text().splitlines()) if (row["instruction"] or "").strip()]
    rows = requests_of(loaded.encoder, table[::4], 12)
    assert_equal_but_for_ties(loaded, rows, generate_alone(loaded, rows))


@pytest.mark.chaos
def test_300_rows_of_a_real_table_are_answered_as_by_generate(loaded: LoadedModel, shared_data: Path) -> None:
    lines = (shared_data / "dolly15k" / "databricks-dolly-15k.jsonl").read_text().splitlines()
    draw = random.Random(15)
    table = draw.sample([json.loads(line) for line in lines], 300)
    rows = [row for row in requests_of(loaded.encoder, table, 64) if len(row.prompt_ids) < 4_000]
    assert max(len(row.prompt_ids) for row in rows) > 1_000
    assert_equal_but_for_ties(loaded, rows, generate_alone(loaded, rows))


def test_prompts_are_those_of_the_models_own_template(loaded: LoadedModel) -> None:
    encoder = loaded.encoder
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(encoder.path))
    text = tokenizer.decode(encoder.encode("Name a river.", "In Europe."))
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nName a river.\n\nIn Europe.<|im_end|>\n<|im_start|>assistant\n"
    )
    # Its vocabulary has no token for some control characters: they are not dropped unseen.
    assert encoder.encode("a\x04b", None) == encoder.encode("a\ufffdb", None)


def test_no_answer_depends_on_its_company_in_the_dtype_of_this_cpu(caplog: pytest.LogCaptureFixture) -> None:
    """In bfloat16 with AMX the order of sums would depend on the number of rows."""
    spec = EngineSpec("fast", str(smollm2_folder()), num_threads=1, processes=1, kv_bytes=2**27)
    engine = continuous_engine(load_packed(spec))
    assert not caplog.records
    lines = QUESTIONS.read_text().splitlines()
    table = [row for row in map(json.loads, lines) if (row["instruction"] or "").strip()]
    rows = requests_of(engine.encoder, table, 12)
    together = answer(engine, rows)
    few = rows[::5]
    assert answer(engine, few) == {row.key: together[row.key] for row in few}


@pytest.mark.chaos
def test_rows_with_seeds_of_their_own_are_the_same_in_any_batch(loaded: LoadedModel) -> None:
    params = GenerationParams(max_new_tokens=8, do_sample=True)
    table = [{"instruction": f"Say something about the number {number}."} for number in range(6)]
    rows = [replace(row, params=params, seed=7) for row in requests_of(loaded.encoder, table, 8)]
    together = answer(continuous_engine(loaded), rows)
    assert {row.key: answer(continuous_engine(loaded), [row])[row.key] for row in rows} == together
