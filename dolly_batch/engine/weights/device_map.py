"""One model over several GPUs: which part is on which. accelerate moves activations from one to the next."""

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch

from dolly_batch.errors import ConfigError
from dolly_batch.models.config import ModelConfig
from dolly_batch.models.sizing import layers_per_gpu


def first_gpus(num_gpus: int) -> tuple[torch.device, ...]:
    """The GPUs that this process sees, as many as share the model.

    Raises ConfigError where there are fewer, or no accelerate to run a model over them.
    """
    num_seen = torch.cuda.device_count()
    if num_seen < num_gpus:
        raise ConfigError(
            f"model.gpus is {num_gpus}, and the engine sees {num_seen} GPUs; set model.gpus to that, or have Spark "
            f"give each task {num_gpus} (spark.task.resource.gpu.amount)"
        )
    if importlib.util.find_spec("accelerate") is None:
        raise ConfigError(f"model.gpus is {num_gpus}, which needs accelerate on the executors: pip install accelerate")
    return tuple(torch.device("cuda", index) for index in range(num_gpus))


def device_map(model: Any, config: ModelConfig, devices: Sequence[torch.device]) -> dict[str, torch.device]:
    """The device of each part of a model, as accelerate and transformers take it: layers in their order.

    Everything else (embeddings, last norm, output layer) is on the first device: its names differ by version.
    """
    modules = dict(model.named_modules())
    layers = next(name for name, module in modules.items() if isinstance(module, torch.nn.ModuleList))
    base = layers.rpartition(".")[0]
    ends = [
        *modules[""].named_children(),
        *((f"{base}.{name}", child) for name, child in modules[base].named_children()),
    ]
    placed = {name: devices[0] for name, _ in ends if name not in (base, layers)}
    shares = zip(devices, layers_per_gpu(config, len(devices)), strict=True)
    of_layers = [device for device, num_layers in shares for _ in range(num_layers)]
    return placed | {f"{layers}.{number}": device for number, device in enumerate(of_layers)}
