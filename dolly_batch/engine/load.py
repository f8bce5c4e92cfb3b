"""From an `EngineSpec` to an engine: the one door for the engine host. Imports torch only where a model is loaded."""

from collections.abc import Callable
from pathlib import Path

from dolly_batch.engine.echo import EchoEngine
from dolly_batch.engine.folder import read_config
from dolly_batch.engine.stream import Engine, no_heartbeat
from dolly_batch.errors import ConfigError
from dolly_batch.prompt import PromptEncoder
from dolly_batch.records import EngineSpec


def load_engine(spec: EngineSpec, device: str | None = None, heartbeat: Callable[[], None] = no_heartbeat) -> Engine:
    """Load the model that `spec` names and return its engine, ready for requests.

    `device` is a torch device such as `cuda:0` or `cpu`; None takes the first GPU, else the CPU. `heartbeat` is called
    at least once per generated token. An echo engine reads config.json and tokenizer.json and no weights.
    Raises ModelError when the folder cannot be run or is not the planned model, ConfigError for a setting that cannot
    work on this device.
    """
    if spec.kind == "echo":
        config = read_config(Path(spec.model_folder))
        encoder = PromptEncoder.from_folder(spec.model_folder)
        return EchoEngine(encoder, spec.echo_delay_s, config.max_positions, heartbeat)
    if spec.quantization != "none":
        raise ConfigError(f"model.quantization is {spec.quantization!r}; the plain engine runs only 'none'")
    # Imported here, so that echo engines and planning need no torch.
    import torch

    from dolly_batch.engine.model import load_model
    from dolly_batch.engine.plain import PlainEngine

    if spec.num_threads is not None:
        torch.set_num_threads(spec.num_threads)
    loaded = load_model(
        spec.model_folder,
        dtype=spec.dtype,
        device=device,
        expected_sha256=spec.model_sha256,
        prompt_format=spec.prompt_format,
    )
    return PlainEngine(loaded, max_batch_tokens=spec.max_batch_tokens, heartbeat=heartbeat)
