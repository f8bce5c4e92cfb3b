"""This package on the executors: sent there if it came as a wheel, and checked before any work."""

import atexit
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from zipimport import zipimporter

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

import dolly_batch
from dolly_batch.errors import Refused

PLANNING_NEEDS = ("pandas", "pyarrow", "tokenizers")
MODEL_NEEDS = ("torch", "transformers", "safetensors")
# The first version that will do, as pyproject.toml has it: a cluster brings its own.
FIRST_VERSIONS = {"torch": (2, 11), "transformers": (5, 5), "tokenizers": (0, 22), "pandas": (2, 2)}


def ship_package(spark: SparkSession) -> None:
    """Send executors this package if the driver imported it from a wheel; do nothing where it is installed.

    `spark-submit --py-files` takes a `.whl`, and puts it on the driver's import path alone: Spark adds only files
    named `.zip`, `.egg` and `.jar` to that of its workers. So the same bytes go out under another name.
    """
    archive = archive_of_package()
    if archive is None or archive.suffix in (".zip", ".egg", ".jar"):
        return
    spark.sparkContext.addPyFile(str(_renamed(archive)))


@cache
def _renamed(archive: Path) -> Path:
    """A copy named `.zip`, for as long as this process lives: Spark serves the file to executors of its application.

    The same one for every job of the process: an application takes a file's name from one path only.
    """
    folder = Path(tempfile.mkdtemp(prefix="dolly-batch-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(shutil.copyfile(archive, folder / f"{archive.stem}.zip"))


def archive_of_package() -> Path | None:
    """The wheel or zip that this package was imported from, None where it lies in a folder."""
    loader = dolly_batch.__loader__
    return Path(loader.archive) if isinstance(loader, zipimporter) else None


def check_local_python(python: str) -> None:
    """Raise Refused where the Python of this machine's tasks, `PYSPARK_PYTHON`, is not there or lacks packages.

    That of this process has them.
    """
    found = shutil.which(python)
    if found == sys.executable:
        return
    names = [*PLANNING_NEEDS, *(["dolly_batch"] if archive_of_package() is None else [])]
    fault = "there is none" if found is None else _lacks(found, names)
    if fault:
        raise Refused(
            f"PYSPARK_PYTHON is {python}, and that Python cannot run this job: {fault}; unset it, or set it to "
            f"{sys.executable}"
        )


def _lacks(python: str, names: Sequence[str]) -> str:
    """What another Python lacks: this one's version, or packages. Empty where it lacks nothing."""
    missing = f"(name for name in {names} if util.find_spec(name) is None)"
    code = f"import sys; from importlib import util; print(*sys.version_info[:2], *{missing})"
    # As -P, which a Python that is too old does not know.
    environ = {**os.environ, "PYTHONSAFEPATH": "1"}
    try:
        ran = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60, check=True, env=environ)
    except (OSError, subprocess.SubprocessError) as error:
        return f"it does not run ({error})"
    major, minor, *lacking = ran.stdout.split()
    if (int(major), int(minor)) != sys.version_info[:2]:
        return f"it is Python {major}.{minor}, and the driver is {sys.version_info[0]}.{sys.version_info[1]}"
    return f"it lacks {', '.join(lacking)}" if lacking else ""


def check_package(spark: SparkSession, num_tasks: int, with_model: bool, also: Sequence[str] = ()) -> None:
    """Check that executors can import this version of the package and what it needs there, and the modules `also`.

    Raises Refused, naming what is missing where, and what to do about it.
    """
    modules = (*PLANNING_NEEDS, *(MODEL_NEEDS if with_model else ()), *also)
    find = F.udf(_finder(dolly_batch.__version__, modules), "string", useArrow=False)
    rows = spark.range(0, num_tasks, 1, num_tasks).select(find().alias("fault")).distinct().collect()
    faults = sorted(row[0] for row in rows if row[0])
    if faults:
        raise Refused(
            f"executors cannot run this job: {'; '.join(faults[:3])}. Install dolly-batch with torch >= 2.11, pandas "
            "and pyarrow in the Python of every node (spark.pyspark.python), or, where only dolly_batch is missing, "
            "give spark-submit its wheel: --py-files dist/dolly_batch-VERSION-py3-none-any.whl (docs/deploy.md)"
        )


def check_versions(with_model: bool) -> None:
    """Raise Refused where what this process imports is older than what is needed, for who runs a job in one process."""
    modules = (*PLANNING_NEEDS, *(MODEL_NEEDS if with_model else ()))
    fault = _finder(dolly_batch.__version__, [name for name in modules if find_spec(name) is not None])()
    if fault:
        raise Refused(f"this machine cannot run this job: {fault}; install a newer one")


def _finder(
    version: str, modules: Sequence[str], first_versions: Mapping[str, tuple[int, ...]] = FIRST_VERSIONS
) -> Callable[[], str]:
    """The function that looks for the package in a task. Nested, so pickled by value, without the package."""
    firsts = {name: first_versions[name] for name in modules if name in first_versions}

    def find() -> str:
        import importlib
        import re
        from importlib.metadata import PackageNotFoundError
        from importlib.metadata import version as version_of
        from importlib.util import find_spec

        faults = [f"{name} is missing" for name in modules if find_spec(name) is None]
        for name, first in firsts.items():
            try:
                found = version_of(name)
            except PackageNotFoundError:  # missing, or there without what says its version
                continue
            if tuple(int(number) for number in re.findall(r"\d+", found)[: len(first)]) < first:
                faults.append(f"{name} is {found}, and {'.'.join(map(str, first))} is the first that will do")
        try:
            found = importlib.import_module("dolly_batch").__version__
            if found != version:
                faults.append(f"dolly_batch is {found} and the driver's is {version}")
        except ImportError:
            faults.append("dolly_batch is missing")
        return f"on {socket.gethostname()} {', '.join(faults)}" if faults else ""

    return find
