"""An evaluation from its files to its tables: the numbers of the harness, refusals before any work, and going on."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyspark.sql import SparkSession

from dolly_batch.cli import main
from dolly_batch.config.evaluation import load_evaluation
from dolly_batch.errors import ConfigError, DollyBatchError, EngineError, InputError, OutputError, Refused
from dolly_batch.evaluate import scoring
from dolly_batch.evaluate.benchmarks import BENCHMARKS
from dolly_batch.evaluate.report import EvaluateReport
from dolly_batch.evaluate.run import run_evaluation
from dolly_batch.records import EngineSpec
from tests.evaluate.reference import RECORDING, SAMPLES

Evaluate = Callable[..., EvaluateReport]


@pytest.fixture
def evaluate(spark: SparkSession, stage_dir: Path, tmp_path: Path) -> Evaluate:
    """Run an evaluation of `tiny` in a folder of its own, with keys put over the defaults."""

    def run(**keys: Any) -> EvaluateReport:
        return run_evaluation(write(tmp_path, stage_dir, **keys))

    return run


def write(folder: Path, stage_dir: Path, **keys: Any) -> Path:
    document = {
        "name": "test",
        "model": {"path": "tiny", "dtype": "float32", "stage_dir": str(stage_dir)},
        "output": {"path": str(folder / "out")},
        "engine": {"num_threads": 1},
        "work_dir": str(folder / "work"),
        **keys,
    }
    path = folder / "evaluate.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def put(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def sample_rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (SAMPLES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_three_kinds_of_files_give_the_numbers_of_the_harness(
    evaluate: Evaluate, spark: SparkSession, tmp_path: Path
) -> None:
    recorded = json.loads(RECORDING.read_text(encoding="utf-8"))["samples"]["tasks"]
    # JSON lines, gzipped JSON lines, and Parquet with its nested columns as the data sets have them.
    (tmp_path / "hellaswag.jsonl.gz").write_bytes(gzip.compress((SAMPLES / "hellaswag.jsonl").read_bytes()))
    arc = spark.createDataFrame(
        [(row["question"], row["choices"], row["answerKey"]) for row in sample_rows("arc_easy")],
        "question string, choices struct<text: array<string>, label: array<string>>, answerKey string",
    )
    arc.coalesce(1).write.parquet(str(tmp_path / "arc"))
    tasks = {
        "boolq": str(SAMPLES / "boolq.jsonl"),
        "hellaswag": str(tmp_path / "hellaswag.jsonl.gz"),
        "arc_easy": str(tmp_path / "arc"),
    }
    report = evaluate(tasks=tasks, card="pythia-2.8b")
    assert (report.exit_code, report.model_loads, report.card_model) == (0, 1, "EleutherAI/pythia-2.8b")
    found = {row["benchmark"]: row for row in report.benchmarks}
    assert list(found) == ["arc_easy", "hellaswag", "boolq", "gmean"]
    for name in tasks:
        ours = {key: found[name][key] for key in ("acc", "acc_stderr", "acc_norm", "acc_norm_stderr")}
        assert {key: value for key, value in ours.items() if value is not None} == pytest.approx(
            recorded[name]["metrics"]
        )
    stored = spark.read.parquet(str(tmp_path / "out" / "benchmarks")).collect()
    assert sorted((row.benchmark, row.value) for row in stored) == sorted((n, r["value"]) for n, r in found.items())
    page = (tmp_path / "out" / "results.md").read_text(encoding="utf-8")
    assert "tiny, and the card's EleutherAI/pythia-2.8b" in page
    assert all(f"| {name} |" in page for name in found)
    # Nothing is left of the way there.
    assert [path.name for path in (tmp_path / "work").iterdir() if "evaluate" in path.name] == []


def test_what_was_scored_before_a_crash_is_not_scored_again(
    evaluate: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = {name: str(SAMPLES / f"{name}.jsonl") for name in ("piqa", "winogrande")}
    whole = evaluate(tasks=tasks).benchmarks
    run, asked = scoring.Scoring._run, []

    def crash_at_the_second(self: scoring.Scoring, spec: EngineSpec, name: str, *rest: Any) -> None:
        asked.append(name)
        if len(asked) == 2:
            raise KeyboardInterrupt
        run(self, spec, name, *rest)

    monkeypatch.setattr(scoring.Scoring, "_run", crash_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tasks=tasks)
    assert evaluate(tasks=tasks).benchmarks == whole
    assert asked == ["winogrande", "piqa", "piqa"]


def test_a_question_that_cannot_be_scored_stops_the_run(evaluate: Evaluate, tmp_path: Path) -> None:
    """An accuracy without it would be another number."""
    row = {"goal": "g", "sol1": "word " * 3000, "sol2": "two", "label": 1}
    path = put(tmp_path / "piqa.jsonl", [*sample_rows("piqa")[:1], row])
    with pytest.raises(EngineError, match=r"piqa: 1 of 3 prompts could not be scored; question 2: too_long"):
        evaluate(tasks={"piqa": path})


def test_a_long_context_loses_its_beginning(evaluate: Evaluate, tmp_path: Path) -> None:
    rows = sample_rows("boolq")[:2]
    long = [{**row, "passage": "Far away. " * 2000 + row["passage"]} for row in rows]
    report = evaluate(tasks={"boolq": put(tmp_path / "boolq.jsonl", long)})
    assert report.benchmarks[0]["num_questions"] == 2


def test_quality_of_three_kinds_of_tables(evaluate: Evaluate, spark: SparkSession, tmp_path: Path) -> None:
    gold = "struct<name: string, age: int>"
    spark.createDataFrame(
        [(("Ann", 3), '{"age": 3, "name": "Ann"}'), (("Bo", 4), '{"name": "Bo", "age": 5}'), (None, None)],
        f"response {gold}, gold string",
    ).write.parquet(str(tmp_path / "people"))
    labels = [("a", "a")] * 5 + [("b", "a"), ("b", None), ("b", "b"), (None, "a")]
    spark.createDataFrame(labels, "label string, response string").write.parquet(str(tmp_path / "labels"))
    quality = [
        {"kind": "classify", "path": str(tmp_path / "labels"), "format": "parquet", "gold": "label", "title": "labels"},
        {"kind": "extract", "path": str(tmp_path / "people"), "format": "parquet", "gold": "gold", "title": "people"},
    ]
    report = evaluate(quality=quality)
    found = {(row["name"], row["metric"], row["of"]): row for row in report.quality}
    assert found["labels", "accuracy", None]["value"] == pytest.approx(6 / 8)
    assert (found["labels", "accuracy", None]["num_rows"], found["labels", "accuracy", None]["num_unanswered"]) == (
        8,
        1,
    )
    # f1 of a: 5 right, 5 gold, 6 predicted; of b: 1 right, 3 gold, 1 predicted.
    assert found["labels", "macro_f1", None]["value"] == pytest.approx((10 / 11 + 2 / 4) / 2)
    assert found["people", "exact_match", None]["value"] == 0.5
    assert found["people", "exact_match", "name"]["value"] == 1.0
    assert found["people", "exact_match", "age"]["value"] == 0.5
    assert report.model_loads == 0
    # Another model's table beside it, in the same results.
    evaluate(quality=[{**quality[0], "title": "again"}], output={"path": str(tmp_path / "out"), "mode": "append"})
    stored = spark.read.parquet(str(tmp_path / "out" / "quality"))
    assert {row.name for row in stored.select("name").collect()} == {"labels", "people", "again"}


def test_rouge_of_summaries(evaluate: Evaluate, tmp_path: Path) -> None:
    pytest.importorskip("rouge_score", reason="rouge-score is not installed: pip install 'dolly-batch[evaluate]'")
    rows = [
        {"reference": "The cat sat on the mat.", "response": "The cat sat on the mat."},
        {"reference": "The cat sat on the mat.", "response": "the cats sat"},
        {"reference": "The cat sat on the mat.", "response": None},
    ]
    table = {"kind": "summarize", "path": put(tmp_path / "summaries.jsonl", rows), "format": "json"}
    report = evaluate(quality=[{**table, "gold": "reference"}])
    found = {row["metric"]: row for row in report.quality}
    # Stemmed: 3 of 3 words right, 3 of 6 found; 2 of 2 pairs, 2 of 5.
    assert found["rouge1"]["value"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert found["rouge2"]["value"] == pytest.approx((1 + 4 / 7 + 0) / 3)
    assert found["rougeL"]["num_unanswered"] == 1


@pytest.mark.parametrize(
    ("keys", "kind", "told"),
    [
        ({"tasks": {"piqa": "missing.jsonl"}}, InputError, "tasks.piqa: there is no file"),
        ({"tasks": {"piqa": "bad.jsonl"}}, InputError, "bad.jsonl, line 3: not a JSON object"),
        ({"tasks": {"boolq": "bad.jsonl"}}, InputError, "bad.jsonl, line 1: `passage` is missing"),
        ({"tasks": {"piqa": "empty.jsonl"}}, InputError, "holds no rows"),
        ({"tasks": {"pica": "bad.jsonl"}}, ConfigError, "tasks.pica: unknown key; did you mean `piqa`?"),
        ({}, ConfigError, "nothing to evaluate"),
        ({"tasks": {"piqa": "good.jsonl"}, "card": "gpt-9"}, ConfigError, "the model card has no 'gpt-9'"),
        ({"tasks": {"piqa": "good.jsonl"}, "model": {"path": "no/such/folder"}}, Refused, "no/such/folder"),
        ({"quality": [{"gold": "lable"}]}, InputError, "quality.0.gold: .*no column `lable`; did you mean `label`"),
        ({"quality": [{"gold": "none"}]}, InputError, "no row has a value in `none`"),
        ({"quality": [{"gold": "label", "kind": "extract"}]}, InputError, "1 values of `label` are not JSON objects"),
        ({"quality": [{"gold": "label", "path": "missing.jsonl"}]}, InputError, "quality.0 .*missing.jsonl cannot be"),
    ],
)
def test_a_refusal_names_what_is_wrong_and_writes_nothing(
    evaluate: Evaluate, tmp_path: Path, keys: dict[str, Any], kind: type[DollyBatchError], told: str
) -> None:
    good = json.dumps(sample_rows("piqa")[0])
    (tmp_path / "good.jsonl").write_text(f"{good}\n", encoding="utf-8")
    (tmp_path / "bad.jsonl").write_text(f"{good}\n\n{good[:-5]}\n", encoding="utf-8")
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    put(tmp_path / "answers.jsonl", [{"response": "a", "label": "a", "none": None}])
    if "tasks" in keys:
        keys = {**keys, "tasks": {name: str(tmp_path / file) for name, file in keys["tasks"].items()}}
    table = {"kind": "classify", "path": "answers.jsonl", "format": "json"}
    filled = [{**table, **entry} for entry in keys.get("quality", [])]
    keys = {**keys, "quality": [{**entry, "path": str(tmp_path / entry["path"])} for entry in filled]}
    with pytest.raises(kind, match=told) as caught:
        evaluate(**keys)
    assert caught.value.exit_code == 4
    assert not (tmp_path / "out").exists()


def test_another_tables_folder_is_not_replaced(evaluate: Evaluate, tmp_path: Path) -> None:
    (tmp_path / "out" / "benchmarks").mkdir(parents=True)
    with pytest.raises(OutputError, match="that no evaluation wrote"):
        evaluate(tasks={"piqa": str(SAMPLES / "piqa.jsonl")})


def test_the_command_prints_tables_and_ends_in_json(
    spark: SparkSession, stage_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, stage_dir, tasks={name: str(SAMPLES / f"{name}.jsonl") for name in ("piqa", "boolq")})
    assert main(["evaluate", str(path), "--json", "--limit", "3", "--set", "card=databricks/dolly-v2-7b"]) == 0
    *shown, last = capsys.readouterr().out.strip().splitlines()
    assert any("3 of 1,838" in line and "0.750816" in line for line in shown)
    report = json.loads(last)
    assert (report["outcome"], report["exit_code"], len(report["benchmarks"])) == ("complete", 0, 3)
    assert main(["evaluate", str(path), "--set", "tasks.piqa=missing.jsonl", "--json"]) == 4
    failed = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert (failed["outcome"], failed["exit_code"]) == ("InputError", 4)


def test_a_model_is_taken_in_each_of_the_quantizations(tmp_path: Path) -> None:
    path = write(tmp_path, tmp_path, tasks={"piqa": str(SAMPLES / "piqa.jsonl")})
    assert load_evaluation(path, ["quantizations=[none, int8]"]).quantized("int8").quantization == "int8"


def test_the_file_in_conf_is_valid_and_covers_all_seven() -> None:
    project = Path(__file__).parents[2]
    config = load_evaluation(project / "conf" / "evaluate.yaml")
    assert list(config.tasks.paths) == list(BENCHMARKS)
    assert all((project / path).is_file() for path in config.tasks.paths.values())
