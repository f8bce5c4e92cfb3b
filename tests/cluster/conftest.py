"""The cluster that the tests of this folder share, and the wheel that they ship to it."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.standalone import BASE_PYTHON, PROJECT, Cluster, environment, hiding


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as a wheel, built from a copy of the project without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(PROJECT / "dolly_batch", source / "dolly_batch", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(PROJECT / name, source / name)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check")
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "-w", folder, source], check=True, timeout=120)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """A folder that the second worker does not share; None where this user may not make a mount namespace."""
    folder = tmp_path_factory.mktemp("hidden")
    tried = (
        subprocess.run([*hiding(folder), "true"], capture_output=True, check=False) if shutil.which("unshare") else None
    )
    return folder if tried is not None and tried.returncode == 0 else None


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, hidden: Path | None) -> Iterator[Cluster]:
    """A running standalone cluster of two workers, in whose Python this package is not installed."""
    tried = subprocess.run(
        [BASE_PYTHON, "-c", "import pyspark, dolly_batch"],
        env=environment(),
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    if "No module named 'dolly_batch'" not in tried.stderr:
        pytest.skip(f"{BASE_PYTHON} must see pyspark and no dolly_batch: {tried.stderr[-300:] or 'it sees both'}")
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), hidden)
    try:
        yield cluster.start()
    finally:
        cluster.stop()
