"""`dolly-batch report` and each run's own page: numbers, settings, and ids of rows; no prompt and no answer."""

import json
from pathlib import Path

import pytest
from py4j.protocol import Py4JError

from dolly_batch import cli
from dolly_batch.cli import main
from dolly_batch.spark.local_files import LocalFiles
from dolly_batch.spark.plan.manifest import MANIFEST, Plan, PlanFolder
from tests.spark.desk import Desk, questions
from tests.spark.test_progress import PLAN_PARTS

SECRET = "Agnes Oyelaran"


def test_plans_of_several_jobs_stand_in_a_table_and_on_a_page(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    name = "b&b"
    desk.put([*questions(20), {"id": "null", "instruction": None}])
    first = desk.run()
    desk.put(questions(4, start=50), "more.jsonl")
    more = {"path": str(desk.folder / "more.jsonl")}
    second = desk.run(name="other", input=more, output={"path": str(desk.folder / name)}, report={"html": True})
    work = desk.folder / "work"
    assert main(["report", str(work), "--json"]) == 0
    shown = capsys.readouterr().out.splitlines()
    plans = {plan["plan_id"]: plan for plan in json.loads(shown[-1])}
    assert set(plans) == {first.plan_id, second.plan_id}
    assert plans[str(first.plan_id)]["report"]["by_status"] == {"ok": 20, "null_instruction": 1}
    assert [(plan["num_answered"], plan["num_todo"], plan["state"]) for plan in plans.values()] == [
        (4, 4, "complete"),
        (20, 20, "complete"),
    ]
    assert [line.split()[0] for line in shown[1:3]] == ["other", "job"]  # newest first
    page = (work / "report.html").read_text()
    assert all(str(report.plan_id) in page for report in (first, second))
    assert "b&amp;b" in page
    assert name not in page
    assert "Say the number" not in page
    assert main(["report", f"file:{work}"]) == 0  # its own page is no plan


def test_a_run_has_a_page_with_labels_confidences_and_the_ids_of_rows_that_need_a_look(desk: Desk) -> None:
    texts = {"r1": "a", "r2": f"{SECRET} wrote", "r3": f"b {SECRET} " * 3000, SECRET: "word " * 3000, "r5": "b"}
    desk.put([{"id": id, "text": text} for id, text in texts.items()])
    desk.document["input"].pop("context")
    document = {"task": {"kind": "classify", "labels": ["a", "b & c"]}, "report": {"html": True}}
    report = desk.run(**document, limits={"price_per_gpu_hour": 1000.0}, tags={"team": "support"})
    assert report.by_status == {"ok": 3, "too_long": 2}
    folder = desk.folder / "work" / str(report.plan_id)
    details = json.loads((folder / "details.json").read_text())
    assert details["look"]["too_long"] == [None, "r3"]  # of an id that may name a person only that there is one
    assert sorted(details["look"]["least confident"]) == ["r1", "r2", "r5"]
    assert sum(count for _, count, _ in details["labels"]) == sum(details["confidences"].values()) == 3
    assert details["ran"]["task"]["kind"] == "classify"
    page = (folder / "report.html").read_text()
    assert "too_long" in page
    assert "2 rows, 40.0% of all" in page
    assert "wave 0, task" in page
    assert "team=support" in page
    assert "and 1 whose ids may name a person" in page
    for path in (folder / "details.json", folder / "report.html", folder / "report.json", folder / "progress.json"):
        assert SECRET not in path.read_text()

    # The same page from the job's file, wherever it is wanted.
    output = desk.folder / "page.html"
    assert main(["report", str(desk.folder / "job.yaml"), "--output", str(output)]) == 0
    assert output.read_text() == page


def test_a_folder_without_plans_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 4
    assert main(["report", str(tmp_path / "absent")]) == 4
    said = capsys.readouterr().err
    assert "holds no plans" in said
    assert "no such folder" in said
    assert not list(tmp_path.iterdir())


def test_a_page_that_cannot_be_written_or_read_ends_in_exit_code_5(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = PlanFolder(LocalFiles(), str(tmp_path / "p1"))
    folder.files.write(folder.of(MANIFEST), Plan(**PLAN_PARTS, waves=()).to_json())
    assert main(["report", str(tmp_path), "--json", "--output", str(tmp_path / "none" / "page.html")]) == 5
    told = capsys.readouterr()
    assert "dolly-batch: the page could not be written: No such file or directory" in told.err
    assert [plan["plan_id"] for plan in json.loads(told.out.splitlines()[-1])] == ["p1"]

    def fail(arguments: object) -> None:
        raise Py4JError("no such bucket")

    monkeypatch.setattr(cli, "_page_of", fail)
    assert main(["report", str(tmp_path)]) == 5
    assert "dolly-batch: Spark stopped: " in capsys.readouterr().err
