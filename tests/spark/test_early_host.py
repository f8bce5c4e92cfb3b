"""The engine host of a local run: started while the plan is made, where there is something to ask."""

from pathlib import Path

from dolly_batch.host.address import default_root
from dolly_batch.host.runtime_dir import RuntimeDir
from tests.spark.desk import Desk, questions


def hosts_of(desk: Desk) -> list[Path]:
    """The folders of hosts that load the model of this desk."""
    records = [(path, RuntimeDir(path).read_record()) for path in default_root().iterdir() if path.is_dir()]
    return [path for path, record in records if record and record.spec.model_folder.startswith(str(desk.folder))]


def test_a_host_is_started_before_the_plan_is_made_and_only_where_rows_are_asked(desk: Desk) -> None:
    desk.document["model"]["stage_dir"] = str(desk.folder / "models")
    desk.document["engine"] = {"kind": "plain", "processes": 1}
    desk.document["generation"]["max_new_tokens"] = 4
    desk.put([{"id": "a", "instruction": None, "context": "A box."}])
    assert desk.run().by_status == {"null_instruction": 1}
    assert not hosts_of(desk)
    desk.put(questions(2))
    report = desk.run()
    assert report.model_loads == 1
    (host,) = hosts_of(desk)
    manifest = desk.folder / "work" / str(report.plan_id) / "manifest.json"
    assert (host / "host.json").stat().st_mtime_ns < manifest.stat().st_mtime_ns
