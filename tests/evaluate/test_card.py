"""The model card's table, and gmean recomputed from its columns."""

import pytest

from dolly_batch.config.evaluation import BenchmarkFiles
from dolly_batch.evaluate.accuracy import gmean
from dolly_batch.evaluate.benchmarks import BENCHMARKS
from dolly_batch.evaluate.card import CARD, card_row

# The card's last column.
GMEANS = {
    "EleutherAI/pythia-2.8b": 0.523431,
    "EleutherAI/pythia-6.9b": 0.543567,
    "databricks/dolly-v2-3b": 0.544886,
    "EleutherAI/pythia-12b": 0.559676,
    "EleutherAI/gpt-j-6B": 0.565936,
    "databricks/dolly-v2-12b": 0.56781,
    "databricks/dolly-v2-7b": 0.573487,
    "databricks/dolly-v1-6b": 0.583431,
    "EleutherAI/gpt-neox-20b": 0.602236,
}


def test_gmean_reproduces_the_nine_rows_of_the_card() -> None:
    assert list(CARD) == list(GMEANS)
    for model, expected in GMEANS.items():
        assert gmean(CARD[model].values()) == pytest.approx(expected, abs=1e-6)


def test_every_value_of_the_card_is_a_whole_number_of_questions() -> None:
    """Each is k/N of its split, rounded: so the columns stand under the right names."""
    for row in CARD.values():
        for name, value in row.items():
            num_right = value * BENCHMARKS[name].card_num_questions
            assert round(num_right) / BENCHMARKS[name].card_num_questions == pytest.approx(value, abs=6e-7)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("databricks/dolly-v2-3b", "databricks/dolly-v2-3b"),
        ("eleutherai/GPT-J-6b", "EleutherAI/gpt-j-6B"),
        ("modelscope:AI-ModelScope/dolly-v2-12b", "databricks/dolly-v2-12b"),
        ("tiny", None),
        ("", None),
        ("someone/dolly-v2-3b-finetuned", None),
    ],
)
def test_a_model_finds_its_row(asked: str, found: str | None) -> None:
    row = card_row(asked)
    assert (None if row is None else row[0]) == found


def test_the_config_knows_the_same_benchmarks() -> None:
    assert list(BenchmarkFiles.model_fields) == list(BENCHMARKS)
