"""From an `EngineSpec` to an engine. Imports torch only where a model is loaded.

To add an engine, write a module with its `runs` and `load`, and enter it in `ENGINES`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import dolly_batch.engine.continuous.load as continuous
import dolly_batch.engine.plain.load as plain
from dolly_batch.engine import echo
from dolly_batch.engine.processes.machine import may_have_gpu
from dolly_batch.engine.protocol import Engine, no_heartbeat
from dolly_batch.errors import ConfigError
from dolly_batch.models.architectures import Architecture
from dolly_batch.models.config import ModelConfig
from dolly_batch.models.folder import read_config
from dolly_batch.records import EngineSpec

Heartbeat = Callable[[], None]
DeviceType = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class EngineKind:
    """How one engine is chosen and loaded.

    `runs(spec, architecture, device type)` says why the engine cannot run a model as the spec asks, None when it can;
    it needs no torch. `load(spec, config, device, heartbeat)` returns the engine, on a device such as `cuda:0`.
    `runs_model` is whether it needs a device, and may be taken by `auto`.
    """

    runs: Callable[[EngineSpec, Architecture, DeviceType], str | None]
    load: Callable[[EngineSpec, ModelConfig, str, Heartbeat], Engine]
    runs_model: bool = True


# By the name in `engine.kind`; `auto` takes the first that runs.
ENGINES: Mapping[str, EngineKind] = {
    "fast": EngineKind(continuous.runs, continuous.load),
    "plain": EngineKind(plain.runs, plain.load),
    "echo": EngineKind(echo.runs, echo.load, runs_model=False),
}


def load_engine(spec: EngineSpec, device: str | None = None, heartbeat: Heartbeat = no_heartbeat) -> Engine:
    """Load the model that `spec` names and return its engine, ready for requests.

    `device` is a torch device such as `cuda:0` or `cpu`; None takes the first GPU, else the CPU. `heartbeat` is called
    at least once per generated token. An echo engine reads config.json and tokenizer.json and no weights; the fast one
    loads them in its own processes where it has more than one.
    Raises ModelError when the folder cannot be run or is not the planned model, ConfigError for a setting that cannot
    work on this device.
    """
    config = read_config(Path(spec.model_folder), spec.max_positions)
    needs_device = spec.kind == "auto" or ENGINES[spec.kind].runs_model
    device = device or (_default_device() if needs_device else "cpu")
    name = choose_engine(spec, config.architecture, "cpu" if device.startswith("cpu") else "cuda")
    return ENGINES[name].load(spec, config, device, heartbeat)


def choose_engine(spec: EngineSpec, architecture: Architecture, device: DeviceType) -> str:
    """Return the name of the engine that runs this model as the spec asks.

    Raises ConfigError where the engine that the spec names cannot, or, with `auto`, none can.
    """
    names = [name for name, engine in ENGINES.items() if engine.runs_model] if spec.kind == "auto" else [spec.kind]
    reason: str | None = None
    for name in names:
        reason = ENGINES[name].runs(spec, architecture, device)
        if reason is None:
            return name
    raise ConfigError(reason)  # of `auto`'s engines the last one runs most


def _default_device() -> str:
    if not may_have_gpu():
        return "cpu"
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"
