"""Jars of Maven packages: Ivy resolves a set of packages once, later sessions start with the same jars.

Ivy would take some seconds and ninety lines at every start to find what it has found before. So the paths that it
reported are kept in this user's cache, under the packages, the version of Spark and all that can change the answer.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote, urlparse

import pyspark

from dolly_batch.config.credentials import masked
from dolly_batch.console import say
from dolly_batch.errors import Refused
from dolly_batch.spark.session.environment import conf_folders
from dolly_batch.system.file_lock import locked
from dolly_batch.system.user_cache import user_cache

PACKAGES = "spark.jars.packages"
JARS = "spark.jars"
_SHOWN_LINES = 12
_LOCK_TIMEOUT_S = 900
# Where packages come from and which are left out (spark.jars.repositories, .excludes, .ivy, .ivySettings), and by which
# proxy.
_RESOLVING = ("spark.jars.", "spark.driver.extraJavaOptions", "spark.driver.defaultJavaOptions")
# A JVM that is started as Spark's is, and asked for what spark-submit has made of the packages.
_PROGRAM = """
import json, os, sys
from pyspark import SparkConf
from pyspark.errors import PySparkRuntimeError
from pyspark.java_gateway import launch_gateway
try:
    gateway = launch_gateway(SparkConf(loadDefaults=False).setAll(json.loads(os.environ["SPARK_SETTINGS"]).items()))
except PySparkRuntimeError:
    sys.exit(1)  # the JVM has said why
print("\\nspark.jars=" + gateway.jvm.System.getProperty("spark.jars"), flush=True)
gateway.shutdown()
"""


def maven_jars(packages: Sequence[str], conf: Mapping[str, str]) -> list[str]:
    """The jars of Maven packages (`group:artifact:version`) and of all that they depend on, fetched where needed.

    `conf` holds Spark's settings, of which those of resolving count. Raises Refused, with Ivy's last lines, where a
    package cannot be fetched.
    """
    settings = {key: value for key, value in conf.items() if key.startswith(_RESOLVING)}
    settings[PACKAGES] = ",".join(packages)
    record = user_cache() / "jars" / f"{_digest(settings)}.json"
    jars = _recorded(record)
    if jars is None:
        with one_at_a_time():
            jars = _recorded(record)  # another process may have resolved them meanwhile
            if jars is None:
                jars = _resolve(settings)
                _write(record, jars)
    return jars


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Hold a lock that one process of this user has at a time: two that fill Ivy's cache at once break it.

    Where no lock can be made, go on without it.
    """
    with ExitStack() as stack:
        with suppress(OSError, TimeoutError):
            user_cache().mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(user_cache() / "packages.lock", _LOCK_TIMEOUT_S))
        yield


def _digest(settings: Mapping[str, str]) -> str:
    """What stands for a record: the settings, the version of Spark and its defaults, which name repositories too."""
    defaults = [file.read_text("utf-8") for file in _defaults_files() if file.is_file()]
    text = json.dumps([sorted(settings.items()), pyspark.__version__, defaults])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _defaults_files() -> list[Path]:
    return [folder / "spark-defaults.conf" for folder in conf_folders()]


def _recorded(record: Path) -> list[str] | None:
    """The jars of a record, None where there is none or one of them is gone."""
    try:
        jars: list[str] = json.loads(record.read_text("utf-8"))["jars"]
    except (OSError, ValueError, KeyError):
        return None
    paths = (urlparse(jar) for jar in jars)
    return jars if all(path.scheme != "file" or os.path.isfile(unquote(path.path)) for path in paths) else None


def _write(record: Path, jars: list[str]) -> None:
    """Keep what was resolved; where that cannot be written, the next session resolves it again."""
    with suppress(OSError):
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps({"jars": jars}, indent=1), "utf-8")


def _resolve(settings: Mapping[str, str]) -> list[str]:
    """Have Ivy resolve the packages, with one line on the terminal when something is fetched in place of its many."""
    jars: list[str] | None = None
    lines, is_fetching = deque[str](maxlen=_SHOWN_LINES), False
    command = [sys.executable, "-P", "-c", _PROGRAM]
    environ = {**os.environ, "SPARK_SETTINGS": json.dumps(settings)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environ
    ) as process:
        for line in process.stdout or ():
            if line.startswith("downloading ") and not is_fetching:
                say(f"fetching {settings[PACKAGES]} from Maven (first time only)")
                is_fetching = True
            if line.startswith(f"{JARS}="):
                jars = line.removeprefix(f"{JARS}=").strip().split(",")
            if line.strip() and not line.startswith("\tat "):
                lines.append(line.rstrip())
    if jars is None:
        shown = masked("\n".join(f"  {line}" for line in lines))
        raise Refused(
            f"{settings[PACKAGES]} cannot be fetched from Maven; Spark said at the end:\n{shown}\n"
            "Where no repository can be reached, name the jars: in spark.conf spark.jars, those of Delta in DELTA_JARS"
        )
    return jars
