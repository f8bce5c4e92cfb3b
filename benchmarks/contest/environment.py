"""The interpreter that runs the peers which this project does not need: CTranslate2, and vLLM where it is there."""

import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

from benchmarks.contest.contest import say

_ROOT = Path(__file__).resolve().parents[2]
FOLDER = _ROOT / "benchmarks/.venv-peers"


def peers_python() -> Path:
    """Return an interpreter that has what the extra `bench` of pyproject.toml names.

    This one if it has it. Else an environment beside the benchmark, made and filled once, that sees this one's packages
    first of all: so the peers run on the same torch and transformers, and nothing is installed into this one.
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
        done = subprocess.run([str(python), "-m", "pip", "install", "--quiet", *extras["bench"]], check=False)
        if done.returncode:
            say("They could not be installed; what needs them is left out")
    return python


def _has_peers(python: Path) -> bool:
    if not python.exists():
        return False
    return subprocess.run([str(python), "-c", "import ctranslate2"], capture_output=True, check=False).returncode == 0
