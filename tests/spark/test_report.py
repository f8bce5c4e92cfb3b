"""`dolly-batch report`: every plan under a work folder on one page, which shows no prompt and no answer."""

import json
from pathlib import Path

import pytest

from dolly_batch.cli import main
from tests.spark.desk import Desk, questions


def test_plans_of_several_jobs_stand_in_a_table_and_on_a_page(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    name = "b&b"
    desk.put([*questions(20), {"id": "null", "instruction": None}])
    first = desk.run()
    desk.put(questions(4, start=50), "more.jsonl")
    more = {"path": str(desk.folder / "more.jsonl")}
    second = desk.run(name="other", input=more, output={"path": str(desk.folder / name)})
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


def test_a_folder_without_plans_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 4
    assert main(["report", str(tmp_path / "absent")]) == 4
    said = capsys.readouterr().err
    assert "holds no plans" in said
    assert "no such folder" in said
    assert not list(tmp_path.iterdir())
