"""The file systems of a run: the same promises from the driver's own and from Hadoop's."""

import errno
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from dolly_batch.spark import local_files
from dolly_batch.spark.files import Files, HadoopFiles, LocalFiles, files_for
from dolly_batch.spark.plan.manifest import ABANDONED, MANIFEST, PlanFolder, open_plan, plans_under


@pytest.fixture(params=["local", "hadoop"])
def place(request: pytest.FixtureRequest, spark: SparkSession, tmp_path: Path) -> tuple[Files, str]:
    if request.param == "local":
        return LocalFiles(), str(tmp_path)
    jvm: Any = spark._jvm
    # Without checksums, which lie in a file of their own: the two cannot be replaced at once.
    conf = jvm.org.apache.hadoop.conf.Configuration(spark._jsc.hadoopConfiguration())
    conf.set("fs.AbstractFileSystem.file.impl", "org.apache.hadoop.fs.local.RawLocalFs")
    system = jvm.org.apache.hadoop.fs.RawLocalFileSystem()
    system.initialize(jvm.java.net.URI("file:///"), conf)
    return HadoopFiles(spark.sparkContext._gateway, system), str(tmp_path)


def test_texts_are_written_read_and_replaced(place: tuple[Files, str]) -> None:
    files, folder = place
    path = f"{folder}/below/a.json"
    assert files.read(path) is None
    for text in ("one", "two, and longer: \u00e9"):
        files.write(path, text)
        assert files.read(path) == text
    assert files.list_names(f"{folder}/below") == ["a.json"]
    assert files.list_names(f"{folder}/nowhere") == []
    assert (files.exists(path), files.is_folder(path), files.is_folder(folder)) == (True, False, True)
    assert files.size(folder) >= len("two, and longer")


def test_a_name_is_taken_once(place: tuple[Files, str]) -> None:
    files, folder = place
    assert files.create(f"{folder}/lock", "first")
    assert not files.create(f"{folder}/lock", "second")
    assert files.read(f"{folder}/lock") == "first"
    files.write(f"{folder}/draft/x", "x")
    assert files.rename(f"{folder}/draft", f"{folder}/final")
    files.write(f"{folder}/draft/y", "y")
    assert not files.rename(f"{folder}/draft", f"{folder}/final")
    assert files.list_names(f"{folder}/final") == ["x"]
    files.delete(f"{folder}/final")
    files.delete(f"{folder}/final")
    assert not files.exists(f"{folder}/final")


def test_a_folder_is_made_with_its_rights(place: tuple[Files, str]) -> None:
    files, folder = place
    for _ in range(2):
        files.make(f"{folder}/of/mine", 0o700)
    assert stat.S_IMODE(Path(folder, "of", "mine").stat().st_mode) == 0o700


def test_a_text_that_is_rewritten_is_never_half(place: tuple[Files, str]) -> None:
    """Hadoop's rename replaces in one step on HDFS; on others the file is gone for a moment, as the lock expects."""
    files, folder = place
    path, texts, done = f"{folder}/beat", {"a" * 50, "b" * 5_000}, threading.Event()
    files.write(path, "a" * 50)

    def rewrite() -> None:
        while not done.is_set():
            for text in texts:
                files.write(path, text)

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        found = {files.read(path) for _ in range(300)}
    finally:
        done.set()
        writer.join()
    assert found - ({None} if isinstance(files, HadoopFiles) else set()) <= texts


def test_a_plan_of_another_version_or_half_of_one_stops_no_other_job(
    spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, work = files_for(spark, str(tmp_path))
    texts = {
        "p1": '{"format": 2, "name": "theirs"}',
        "p2": '{"format": 1, "name": "the',
        "p3": '{"format": 1, "name": "x"}',
    }
    for name, text in texts.items():
        files.write(f"{work}/{name}/{MANIFEST}", text)
    assert open_plan(files, work, "ours") is None
    said = capsys.readouterr().err
    assert all(f"{name}/{MANIFEST}" in said for name in texts)
    assert list(plans_under(files, work)) == []
    PlanFolder(files, f"{work}/p1").mark(ABANDONED, {})
    assert open_plan(files, work, "theirs") is None


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, path = LocalFiles(), tmp_path / "a.json"
    files.write(str(path), "one")

    def fill(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(local_files, "_sync", fill)
    with pytest.raises(OSError, match="No space left"):
        files.write(str(path), "two")
    assert [*tmp_path.iterdir()] == [path]
    assert path.read_text() == "one"
