"""Clusters on which a job cannot run: found out before any work, and said in one line."""

from pathlib import Path

import pytest

from tests.cluster.jobs import write_job
from tests.cluster.standalone import PROJECT, Cluster, submit


def test_executors_without_the_package_are_refused_by_name(cluster: Cluster, tmp_path: Path) -> None:
    """The driver imports it from the source; nothing ships it."""
    job = write_job(tmp_path)
    on_driver = f"{PROJECT}:{cluster.packages}"
    options = ("--master", cluster.url, "--total-executor-cores", "1", "--executor-memory", "512m")
    ended = submit("plan_table.py", job, *options, PYTHONPATH=on_driver)
    assert (ended.code, ended.report.get("outcome")) == (4, "Refused"), ended.output
    assert "dolly_batch is missing" in ended.report["message"]
    assert "--py-files" in ended.report["message"]


def test_a_folder_that_one_executor_does_not_share_is_refused(cluster: Cluster, wheel: Path, tmp_path: Path) -> None:
    """One executor of two shares it, so some of what executors write there is seen, and some is not."""
    if cluster.hidden is None:
        pytest.skip("this user may not make mount namespaces (unshare --mount)")
    job = write_job(tmp_path, output={"path": str(cluster.hidden / "out")})
    options = ("--master", cluster.url, "--total-executor-cores", "2", "--executor-memory", "512m")
    ended = submit("run_table.py", job, *options, "--py-files", str(wheel))
    assert (ended.code, ended.report.get("outcome")) == (4, "ConfigError"), ended.output
    assert f"output.path: {cluster.hidden} is not shared" in ended.report["message"]
    assert list(cluster.hidden.iterdir()) == []
