"""The archive of Spark's classes: real starts of a JVM, with a cache of the test's own."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dolly_batch.spark.session.class_archive import OFF, WRITTEN, archive_options
from dolly_batch.spark.session.java import Java, find_java

PROJECT = Path(__file__).parents[2]
START = """
from dolly_batch.config.job import SparkConfig
from dolly_batch.spark.session.session import start_session
with start_session("archive", SparkConfig(master="local[1]"), []) as spark:
    print(spark.range(3).count())
    options = spark.sparkContext.getConf().get("spark.driver.extraJavaOptions")
    print(options)
"""


@pytest.fixture(scope="module")
def java() -> Java:
    return find_java(os.environ)


def started(cache: Path, log: str = "") -> str:
    """A start of Spark, and the options that its JVM got. `log` is what the JVM shall log."""
    environ = {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(PROJECT), "PYSPARK_PYTHON": sys.executable}
    environ["SPARK_SUBMIT_OPTS"] = f"{os.environ.get('SPARK_SUBMIT_OPTS', '')} {log}"
    command = [sys.executable, "-c", START]
    ran = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=180, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "[cds" not in ran.stdout + ran.stderr
    count, options = ran.stdout.strip().splitlines()
    assert count == "3"
    return options


def written(cache: Path, timeout_s: float = 90) -> Path:
    """The archive that a start leaves when its JVM ends, after the command."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for archive in cache.glob(f"dolly-batch/java-classes/*/{WRITTEN}"):
            if any(archive.read_bytes()[:4]):
                return archive
        time.sleep(0.2)
    raise AssertionError(f"no archive in {list(cache.rglob('*'))}")


@pytest.mark.chaos
def test_the_first_start_writes_the_archive_and_the_second_maps_it(tmp_path: Path) -> None:
    assert "-XX:ArchiveClassesAtExit=" in started(tmp_path)
    folder = written(tmp_path).parent
    options = started(tmp_path, f"-Xlog:class+load:file={tmp_path}/loaded.log")
    (archive,) = folder.glob("spark-*.jsa")
    assert "ArchiveClassesAtExit" not in options
    assert f":{archive}" in options
    loaded = (tmp_path / "loaded.log").read_text().splitlines()
    from_jars = [line for line in loaded if " org.apache.spark." in line and "source: file:" in line]
    mapped = [line for line in loaded if " org.apache.spark." in line and "shared objects file (top)" in line]
    assert len(mapped) > 1000
    assert len(mapped) > 20 * len(from_jars)


@pytest.mark.parametrize(
    "content", [bytes(4096), b"\xa8\xab\x0b\xf0 but not of this Java"], ids=["of a JVM that was killed", "damaged"]
)
def test_an_archive_that_is_not_whole_is_never_used(java: Java, tmp_path: Path, content: bytes) -> None:
    """Java 17 would crash."""
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    options = archive_options(java, "", environ)
    assert "ArchiveClassesAtExit" in options
    (folder,) = tmp_path.glob("dolly-batch/java-classes/*")
    (folder / WRITTEN).write_bytes(content)
    assert archive_options(java, "", environ) == options
    (folder / "spark-5000.jsa").write_bytes(content)  # cut off after it was taken
    assert archive_options(java, "", environ) == options


@pytest.mark.parametrize(
    ("given", "environ"),
    [
        ("-Xshare:off", {}),
        ("-XX:SharedArchiveFile=mine.jsa", {}),
        ("", {"JAVA_TOOL_OPTIONS": "-XX:ArchiveClassesAtExit=mine.jsa"}),
        ("", {OFF: "off"}),
    ],
)
def test_archives_of_the_users_own_are_left_alone(
    java: Java, tmp_path: Path, given: str, environ: dict[str, str]
) -> None:
    assert archive_options(java, given, {"XDG_CACHE_HOME": str(tmp_path), **environ}) == ""
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_costs_only_the_time(java: Java, tmp_path: Path) -> None:
    (tmp_path / "dolly-batch").write_text("a file, where the folder should be")
    assert archive_options(java, "", {"XDG_CACHE_HOME": str(tmp_path)}) == ""


def test_each_java_has_an_archive_of_its_own(java: Java, tmp_path: Path) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    other = Java(java.home, java.version, "another build")
    assert archive_options(java, "", environ) != archive_options(other, "", environ)
