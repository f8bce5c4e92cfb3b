"""What is particular to Databricks, as far as a machine that is none can show it: mounts, root, modes, versions.

Nothing here has run on Databricks (docs/deploy.md).
"""

import importlib.metadata
import re
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession
from pyspark.sql.connect.session import SparkSession as ConnectSession

from dolly_batch.config.job import SparkConfig
from dolly_batch.errors import ConfigError, OutputError, Refused
from dolly_batch.spark import files, local_files
from dolly_batch.spark.files import files_for
from dolly_batch.spark.local_files import LocalFiles, MountedFiles, in_volume, mounted
from dolly_batch.spark.preflight.package import FIRST_VERSIONS, _finder
from dolly_batch.spark.session.session import check_databricks, start_session
from dolly_batch.spark.tables import delta_commit
from dolly_batch.spark.tables.places import _real
from tests.conftest import PROJECT
from tests.spark.desk import Desk, questions


@pytest.fixture
def databricks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABRICKS_RUNTIME_VERSION", "17.3")


@pytest.fixture
def root(databricks: None, spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file system whose root is dbfs:/ in Spark, with Volumes, and mounted below a folder of this machine."""
    (tmp_path / "dbfs").mkdir()
    (tmp_path / "Volumes").mkdir()
    monkeypatch.setattr(local_files, "VOLUMES", f"{tmp_path}/Volumes")
    monkeypatch.setattr(local_files, "DBFS", f"{tmp_path}/dbfs")
    view = "org.apache.hadoop.fs.viewfs.ViewFileSystemOverloadScheme"
    settings = {
        "fs.defaultFS": "dbfs:/",
        "fs.dbfs.impl": view,
        "fs.dbfs.impl.disable.cache": "true",
        "fs.viewfs.overload.scheme.target.dbfs.impl": view,
        "fs.viewfs.overload.scheme.target.file.impl": "org.apache.hadoop.fs.LocalFileSystem",
        f"fs.viewfs.mounttable.default.link.{tmp_path}/Volumes": f"file://{tmp_path}/Volumes",
        "fs.viewfs.mounttable.default.link./jobs": f"file://{tmp_path}/dbfs/jobs",
    }
    (tmp_path / "dbfs" / "jobs").mkdir()
    spark.sql("SHOW DATABASES").collect()  # the catalog of the session, which all tests share, keeps its own root
    conf = getattr(spark, "_jsc").hadoopConfiguration()  # noqa: B009
    before = {key: conf.get(key) for key in settings}
    for key, value in settings.items():
        conf.set(key, value)
    yield tmp_path
    for key, value in before.items():
        conf.set(key, value) if value is not None else conf.unset(key)


@pytest.mark.parametrize(
    ("path", "in_spark", "in_python"),
    [
        ("/Volumes/main/a/b", "/Volumes/main/a/b", "/Volumes/main/a/b"),
        ("dbfs:/Volumes/main/a", "/Volumes/main/a", "/Volumes/main/a"),
        ("dbfs:///Volumes/main//a/", "/Volumes/main/a", "/Volumes/main/a"),
        ("file:/Volumes/main/a", "/Volumes/main/a", "/Volumes/main/a"),
        ("dbfs:/work/a", "dbfs:/work/a", "/dbfs/work/a"),
        ("/dbfs/work/a", "dbfs:/work/a", "/dbfs/work/a"),
        ("file:///dbfs/work/a", "dbfs:/work/a", "/dbfs/work/a"),
    ],
)
def test_a_path_has_one_name_in_spark_and_one_in_python(
    databricks: None, path: str, in_spark: str, in_python: str
) -> None:
    found = mounted(path)
    assert found is not None
    assert (found[1], found[0].plain(found[1])) == (in_spark, in_python)
    assert _real(path) == in_python


@pytest.mark.parametrize("path", ["/VolumesOfMine/a", "/tmp/a", "s3://bucket/Volumes", "abfss://c@a/x", "Volumes/a"])
def test_other_paths_are_no_mounts(databricks: None, path: str) -> None:
    assert mounted(path) is None
    assert not in_volume(path)


def test_elsewhere_a_folder_of_this_name_is_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABRICKS_RUNTIME_VERSION", raising=False)
    assert mounted("/Volumes/USB/a") is None


def test_a_mounted_file_is_the_file_of_its_uri(tmp_path: Path) -> None:
    store = MountedFiles("dbfs:", str(tmp_path))
    store.make("dbfs:/work", 0o700)
    store.write("dbfs:/work/a.json", "one")
    assert (tmp_path / "work" / "a.json").read_text() == "one"
    assert (store.read("dbfs:/work/a.json"), store.exists("dbfs:/work/b")) == ("one", False)
    assert store.create("dbfs:/work/b", "b")
    assert not store.create("dbfs:/work/b", "c")
    assert store.rename("dbfs:/work", "dbfs:/done/work")
    assert (store.list_names("dbfs:/done/work"), store.size("dbfs:/done")) == (["a.json", "b"], 4)
    store.delete("dbfs:/done")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["volume", pytest.param("dbfs", marks=pytest.mark.chaos)])
def test_a_job_goes_through_the_mounts(root: Path, desk: Desk, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    def unexpected(spark: SparkSession, path: str) -> Any:
        raise AssertionError(f"{path} is mounted")

    monkeypatch.setattr(files, "_hadoop", unexpected)
    mount = root / "Volumes" if place == "volume" else root / "dbfs" / "jobs"
    named = str(mount) if place == "volume" else "dbfs:/jobs"
    desk.put(questions(5))
    (desk.folder / "input.jsonl").rename(mount / "input.jsonl")
    sections = {
        "input": {"path": f"{named}/input.jsonl"},
        "output": {"path": f"{named}/out"},
        "model": {"stage_dir": f"{named}/models"},
        "work_dir": f"{named}/work",
    }
    assert desk.run(**sections).by_status == {"ok": 5}
    assert desk.run(**sections).outcome == "nothing_to_do"
    assert list((mount / "work").glob("p*/complete.json"))
    assert list((mount / "out").glob("*.parquet"))
    other = {**sections, "output": {"path": str(root / "Volumes" / "delta"), "format": "delta", "mode": "append"}}
    if place == "volume":
        error = desk.refused(**other)
        assert isinstance(error, OutputError)
        assert "a Delta table cannot lie in a Volume; name a table of the catalog" in str(error)


def test_a_uri_that_has_no_credentials_is_refused_by_name(databricks: None, desk: Desk) -> None:
    desk.put(questions(1))
    began = time.monotonic()
    for sections in ({"work_dir": "abfss://c@account/work"}, {"output": {"path": "abfss://c@account/out"}}):
        error = desk.refused(**sections)
        assert isinstance(error, ConfigError)
        assert re.search(
            r"abfss://c@account/\w+ cannot be reached: .*FileSystem not found.*name a folder of a Volume", str(error)
        )
    assert time.monotonic() - began < 30


def test_a_local_file_keeps_its_scheme_where_the_root_is_another(root: Path, spark: SparkSession) -> None:
    store, path = files_for(spark, f"file://{root}/here")
    assert (path, store.plain(path)) == (f"file:{root}/here", f"{root}/here")
    assert isinstance(store, LocalFiles)


def test_modes_that_cannot_share_an_engine_are_refused_without_a_connection(databricks: None) -> None:
    with pytest.raises(Refused, match="dedicated access mode"):
        check_databricks(object.__new__(ConnectSession))
    for remote in (
        "sc://adb-12.azuredatabricks.net:443/;token=SECRET",
        "sc://h/;token=SECRET;x-databricks-cluster-id=7",
    ):
        with pytest.raises(Refused, match=r"spark\.remote: .*dedicated access mode") as caught:
            start_session("job", SparkConfig(remote=remote), [])
        assert "SECRET" not in str(caught.value)


def test_versions_are_asked_for_as_pyproject_has_them() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["local"]]
    for name, first in FIRST_VERSIONS.items():
        assert any(line.startswith(f"{name}>={'.'.join(map(str, first))}") for line in wanted), name
    found = importlib.metadata.version("torch")
    fault = _finder("0", ("torch", "pandas"), {"torch": (99, 1), "pandas": (1, 0)})()
    assert f"torch is {found}, and 99.1 is the first that will do" in fault
    assert "pandas" not in fault


class Conflicting:
    """A MERGE that meets another writer a number of times."""

    def __init__(self, num_conflicts: int, text: str = "[DELTA_CONCURRENT_APPEND] files were added") -> None:
        self.left, self.text = num_conflicts, text

    def merge(self) -> None:
        if self.left:
            self.left -= 1
            raise PySparkException(self.text)


def test_a_commit_waits_longer_after_each_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    delta_commit._with_retries(Conflicting(delta_commit.TRIES - 1).merge)
    assert len(pauses) == delta_commit.TRIES - 1
    assert all(0.5 <= pause / min(30.0, 0.5 * 2**i) <= 1 for i, pause in enumerate(pauses))
    with pytest.raises(PySparkException):
        delta_commit._with_retries(Conflicting(delta_commit.TRIES).merge)
    pauses.clear()
    with pytest.raises(PySparkException):
        delta_commit._with_retries(Conflicting(1, "[DELTA_TABLE_NOT_FOUND] gone").merge)
    assert pauses == []
