"""Jars of Maven packages: resolved once, by one process at a time, and quietly."""

import json
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from dolly_batch.errors import Refused
from dolly_batch.spark.session.jars import maven_jars, one_at_a_time
from dolly_batch.spark.session.java import prepare_java

PACKAGE = "com.example:answer:1.0"
ANOTHER = "com.example:another:1.0"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Settings by which Ivy knows one repository, a folder that holds `PACKAGE` and `ANOTHER`, which depends on it."""
    monkeypatch.setenv("JAVA_HOME", os.environ.get("JAVA_HOME", ""))  # restored after the test
    prepare_java()
    put(tmp_path / "repository", "answer", "")
    dependency = "<groupId>com.example</groupId><artifactId>answer</artifactId><version>1.0</version>"
    put(tmp_path / "repository", "another", f"<dependencies><dependency>{dependency}</dependency></dependencies>")
    settings = tmp_path / "ivysettings.xml"
    settings.write_text(
        '<ivysettings><settings defaultResolver="folder"/><resolvers>'
        f'<ibiblio name="folder" m2compatible="true" root="file://{tmp_path}/repository/"/></resolvers></ivysettings>'
    )
    return {"spark.jars.ivySettings": str(settings), "spark.jars.ivy": str(tmp_path / "ivy")}


def put(repository: Path, name: str, more: str) -> None:
    folder = repository / "com" / "example" / name / "1.0"
    folder.mkdir(parents=True)
    (folder / f"{name}-1.0.jar").write_bytes(b"PK\x05\x06" + bytes(18))  # an empty archive
    (folder / f"{name}-1.0.pom").write_text(
        f"<project><modelVersion>4.0.0</modelVersion><groupId>com.example</groupId><artifactId>{name}</artifactId>"
        f"<version>1.0</version>{more}</project>"
    )


def names(jars: list[str]) -> list[str]:
    return sorted(jar.rpartition("/")[2] for jar in jars)


def test_packages_are_resolved_once_with_what_they_depend_on(
    conf: dict[str, str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    jars = maven_jars([ANOTHER], conf)
    assert names(jars) == ["com.example_another-1.0.jar", "com.example_answer-1.0.jar"]
    shown = capfd.readouterr()
    assert (shown.out, shown.err) == ("", f"fetching {ANOTHER} from Maven (first time only)\n")
    monkeypatch.setenv("JAVA_HOME", "/nonexistent")  # nothing can be resolved from here on
    assert maven_jars([ANOTHER], conf) == jars
    with pytest.raises(Refused):
        maven_jars([PACKAGE, ANOTHER], conf)
    with pytest.raises(Refused):
        maven_jars([ANOTHER], {**conf, "spark.jars.excludes": "com.example:answer"})
    Path(jars[0].removeprefix("file:")).unlink()
    with pytest.raises(Refused):
        maven_jars([ANOTHER], conf)


def test_what_ivy_has_is_resolved_without_a_word(
    conf: dict[str, str], cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    jars = maven_jars([PACKAGE], conf)
    (record,) = (cache / "dolly-batch" / "jars").iterdir()
    record.write_text(record.read_text()[:20])  # as a full disk leaves it
    capfd.readouterr()
    assert maven_jars([PACKAGE], conf) == jars == json.loads(record.read_text())["jars"]
    assert capfd.readouterr() == ("", "")


def test_a_package_that_is_not_there_is_refused_by_name(conf: dict[str, str]) -> None:
    with pytest.raises(
        Refused, match=r"com\.example:nothing:2 cannot be fetched(.|\n)*nothing;2: not found(.|\n)*name"
    ):
        maven_jars(["com.example:nothing:2"], conf)


SESSION = """
import json, sys
from dolly_batch.config.job import SparkConfig
from dolly_batch.spark.session.session import start_session
conf = json.loads(sys.argv[1])
spark = start_session("test", SparkConfig(master="local[1]", conf=conf), ["parquet"])
print(spark.conf.get("spark.jars"))
"""


@pytest.mark.chaos
def test_a_session_has_the_jars_and_the_packages_that_the_user_names(conf: dict[str, str], tmp_path: Path) -> None:
    mine = tmp_path / "mine.jar"
    mine.write_bytes(b"PK\x05\x06" + bytes(18))
    given = json.dumps({**conf, "spark.jars.packages": ANOTHER, "spark.jars": str(mine)})
    command = [sys.executable, "-c", SESSION, given]
    for is_first in (True, False):
        ran = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
        assert names(ran.stdout.strip().split(",")) == [
            "com.example_another-1.0.jar", "com.example_answer-1.0.jar", "mine.jar"
        ]  # fmt: skip
        assert ("fetching" in ran.stderr) == is_first
        assert "resolving dependencies" not in ran.stdout + ran.stderr


PROGRAM = """
import sys
from dolly_batch.spark.session.jars import one_at_a_time
with one_at_a_time():
    print("alone", flush=True)
    sys.stdin.readline()
"""


def start() -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def says_something(process: "subprocess.Popen[str]", seconds: float) -> bool:
    return bool(select.select([process.stdout], [], [], seconds)[0])


@pytest.mark.parametrize("is_killed", [False, True])
def test_the_second_waits_until_the_first_is_done_or_gone(is_killed: bool) -> None:
    with start() as first:
        assert says_something(first, 60)
        with start() as second:
            assert not says_something(second, 2)
            if is_killed:
                first.kill()
            else:
                first.communicate("\n")
            assert says_something(second, 60)
            assert second.communicate("\n")[0] == "alone\n"


def test_where_no_lock_can_be_made_it_goes_on(cache: Path) -> None:
    cache.write_text("")
    with one_at_a_time():
        pass


def test_after_an_exception_the_lock_is_free() -> None:
    with pytest.raises(OSError, match="no Java"), one_at_a_time():
        raise OSError("no Java")
    with start() as process:
        assert process.communicate("\n", timeout=60)[0] == "alone\n"
