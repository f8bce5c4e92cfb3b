"""A classification with a cascade, from a table to a table: who answers, what adds up, and what is refused."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from dolly_batch import Options, plan_job
from dolly_batch.cascade.proxy import Proxy
from dolly_batch.errors import ConfigError, InputError, Refused
from dolly_batch.functions import _settings
from dolly_batch.spark.generate import cascade
from dolly_batch.spark.preflight import executors
from tests.spark.cascade_desk import CASCADE, LABELS, TASK, again, answers, prepared, told
from tests.spark.desk import Desk

pytest.importorskip("sklearn")
APPEND = {"mode": "append", "keep": ["gold"]}


@pytest.fixture
def cascade_desk(desk: Desk) -> Desk:
    prepared(desk.document, desk.folder)
    return desk


def check_sums(report: Any, rows: list[dict[str, Any]], num_skipped: int = 0) -> None:
    """Statuses, answerers and questions of a first run all count the table's rows."""
    assert report.by_status == dict(Counter(row["status"] for row in rows))
    assert report.answered_by == dict(Counter(row["answered_by"] for row in rows if row["answered_by"]))
    assert sum(report.by_status.values()) == sum(report.answered_by.values()) + num_skipped == len(rows)
    asked = report.num_answered_by_model + report.num_answered_by_proxy
    assert asked + report.num_shared_rows + report.num_copied_rows + num_skipped == report.num_published_rows


@pytest.mark.long
def test_most_rows_are_answered_by_the_proxy_and_all_sums_add_up(cascade_desk: Desk) -> None:
    rows = told(700)
    repeated = again(rows[:50])
    cascade_desk.put([*rows, *repeated, {"id": "null", "text": None}, {"id": "blank", "text": " "}])
    report = cascade_desk.run(output=APPEND)
    found = {row["id"]: row for row in cascade_desk.rows()}
    check_sums(report, [*found.values()], num_skipped=2)
    assert (report.num_shared_rows, report.by_status["ok"]) == (50, 750)
    assert report.num_answered_by_proxy > 350
    assert report.num_answered_by_model >= CASCADE["sample"]
    assert report.cascade["drift"] is None
    by_proxy = [row for row in found.values() if row["answered_by"] == "proxy"]
    assert {row["proxy_hash"] for row in by_proxy} == {report.cascade["proxy_hash"]}
    assert {row["num_prompt_tokens"] for row in by_proxy} == {0}
    agreeing = sum(row["response"] == row["gold"] for row in by_proxy)
    assert agreeing >= CASCADE["agreement"] * len(by_proxy)
    for row in found.values():
        if row["answered_by"] == "model":
            assert (row["response"], row["proxy_hash"]) == (row["gold"], None)
            assert row["num_prompt_tokens"] > 0
        elif row["answered_by"] == "proxy":
            assert set(row["label_scores"]) == set(LABELS)
            assert row["confidence"] == max(row["label_scores"].values())
    for row in repeated:
        one, other = found[row["id"]], found[row["id"].removeprefix("again-")]
        assert (one["response"], one["answered_by"]) == (other["response"], other["answered_by"])
    assert (found["null"]["answered_by"], found["blank"]["answered_by"]) == (None, None)
    kept = next(cascade_desk.folder.glob("work/p*/proxy.json")).read_text()
    assert not [word for row in rows[:200] for word in row["text"].split() if len(word) > 4 and word in kept]

    more = told(400, seed=2, first=700)
    cascade_desk.put([*rows, *repeated, *more, *again(more[:5]), *({**row, "id": f"n{row['id']}"} for row in rows[:9])])
    second = cascade_desk.run(output=APPEND)
    assert (second.num_copied_rows, second.num_shared_rows, second.num_published_rows) == (9, 5, 414)
    assert sum(second.answered_by.values()) == 414
    drift = second.cascade["drift"]
    assert (drift["plan_id"], drift["has_fallen"]) == (report.plan_id, False)
    assert drift["num_agreeing"] >= 0.9 * drift["num_answered"] > 100
    found = {row["id"]: row for row in cascade_desk.rows()}
    hashes = Counter((row["plan_id"], row["proxy_hash"]) for row in found.values() if not row["id"].startswith("n"))
    assert {hash for plan, hash in hashes if plan == report.plan_id} == {report.cascade["proxy_hash"], None}
    assert {hash for plan, hash in hashes if plan == second.plan_id} == {second.cascade["proxy_hash"], None}
    for row in rows[:9]:  # a copy says who gave the answer that is copied
        one, other = found[f"n{row['id']}"], found[row["id"]]
        assert (one["answered_by"], one["proxy_hash"]) == (other["answered_by"], other["proxy_hash"])
    assert cascade_desk.run(output=APPEND).outcome == "nothing_to_do"


@pytest.mark.chaos
def test_a_run_that_ends_before_and_after_its_proxy_is_kept_resumes_to_the_same_table(
    cascade_desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    cascade_desk.put(told(700))
    trained, summary = cascade.train, cascade._summary

    def dies(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    for name in ("train", "_summary"):
        monkeypatch.setattr(cascade, name, dies)
        with pytest.raises(KeyboardInterrupt):
            cascade_desk.run()
        kept = [*cascade_desk.folder.glob("work/p*/proxy.json")]
        assert len(kept) == (name == "_summary")
        monkeypatch.setattr(cascade, "train", trained)
    monkeypatch.setattr(cascade, "train", dies)  # it is not trained again
    monkeypatch.setattr(cascade, "_summary", summary)
    report = cascade_desk.run()
    check_sums(report, cascade_desk.rows())
    resumed = answers(cascade_desk)
    monkeypatch.setattr(cascade, "train", trained)
    cascade_desk.document["output"]["path"] = str(cascade_desk.folder / "other")
    cascade_desk.document["work_dir"] = str(cascade_desk.folder / "other-work")
    whole = cascade_desk.run()
    assert whole.num_resumed_waves == 0 < report.num_resumed_waves
    monkeypatch.setattr(Desk, "out", property(lambda desk: desk.folder / "other"))
    assert answers(cascade_desk) == resumed


@pytest.mark.chaos
def test_a_proxy_that_no_longer_agrees_is_named_and_this_runs_is_its_own(
    cascade_desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    cascade_desk.put(told(500))
    first = cascade_desk.run(output=APPEND)
    kept = next(cascade_desk.folder.glob("work/p*/proxy.json"))
    proxy = Proxy.from_text(kept.read_text())
    good, bad, *others = proxy.labels
    kept.write_text(replace(proxy, labels=(bad, good, *others)).to_text())  # as if what they mean had changed
    cascade_desk.put([*told(500), *told(500, seed=2, first=500)])
    report = cascade_desk.run(output=APPEND)
    assert report.cascade["drift"]["has_fallen"]
    assert f"the table has changed since plan {first.plan_id}" in capsys.readouterr().err
    agreeing = [row["response"] == row["gold"] for row in cascade_desk.rows() if row["answered_by"] == "proxy"]
    assert sum(agreeing) >= 0.9 * len(agreeing) > 200


@pytest.mark.chaos
def test_a_small_table_is_answered_by_the_model_and_says_so(
    cascade_desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    cascade_desk.put(told(280))
    assert "answers 200 rows, by which a proxy is trained" in plan_job(cascade_desk.job()).message
    cascade_desk.put(told(279))
    assert "fewer than 280 different texts" in plan_job(cascade_desk.job()).message
    report = cascade_desk.run()
    assert (report.answered_by, report.cascade, report.num_answered_by_proxy) == ({"model": 279}, {}, 0)
    assert "the model answers all rows" in capsys.readouterr().err
    check_sums(report, cascade_desk.rows())


@pytest.mark.chaos
def test_gold_labels_take_the_place_of_the_models_in_the_check(cascade_desk: Desk) -> None:
    """Half of the gold labels are wrong, so nothing is shown, however well the proxy imitates the model."""
    rows = told(500)
    for at, row in enumerate(rows):
        row["gold"] = LABELS[at % 3]
    cascade_desk.put(rows)
    cascade_desk.document["task"]["cascade"]["gold"] = "gold"
    report = cascade_desk.run()
    assert report.answered_by == {"model": 500}
    assert report.cascade["num_answered"] == 0
    cascade_desk.document["task"]["cascade"]["gold"] = None
    assert cascade_desk.run(Options()).answered_by["proxy"] > 150


def test_what_cannot_be_a_cascade_is_refused_by_name(cascade_desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    cascade_desk.put(told(3))
    for given, said in [
        ({"agreement": 1.0}, "task.cascade.agreement: must be between 0 and 1"),
        ({"agreement": 0.0}, "task.cascade.agreement: must be between 0 and 1"),
        ({"agreement": 0.999999}, "task.cascade.agreement: 0.999999 takes a sample of"),
        ({"agreement": 0.99, "sample": 500}, "task.cascade.sample: 500 texts; agreement 0.99 takes 748 to"),
        ({"agrement": 0.9}, "task.cascade.agrement: unknown key; did you mean `agreement`?"),
    ]:
        with pytest.raises(ConfigError, match=said):
            cascade_desk.job(task={**TASK, "cascade": given})
    with pytest.raises(ConfigError, match="1 labels; give 2 to 500"):
        cascade_desk.job(task={**TASK, "labels": ["good"]})
    for kind in ("generate", "summarize"):
        cascade_desk.document["task"] = {"kind": kind, "cascade": {}}
        with pytest.raises(ConfigError, match=r"task\.cascade: unknown key"):
            cascade_desk.job()
    cascade_desk.document["task"] = {**TASK, "cascade": {**CASCADE, "gold": "golden"}}
    error = cascade_desk.refused()
    assert isinstance(error, InputError)
    assert "task.cascade.gold" in str(error)
    cascade_desk.document["task"] = TASK
    monkeypatch.setattr(executors, "find_spec", lambda name: None)
    error = cascade_desk.refused()
    assert isinstance(error, Refused)
    assert "pip install 'dolly-batch[cascade]'" in str(error)
    with pytest.raises(ConfigError, match=r"tasks\.classify\.cascade: is for jobs"):
        _settings({"classify": {"cascade": {}}})
