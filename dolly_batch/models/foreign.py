"""Folders of models in forms that this package does not run, by their files' names. Standard library only."""

from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import PurePath

from dolly_batch.errors import ModelError

ADAPTER = "adapter_config.json"

_TAKE_ORIGINAL = "take the original model in safetensors"
# What files are, and what to do; only looked at where there are no weights that are read.
_FORMATS = (
    (
        ("*.gguf", "ggml*.bin"),
        "GGUF, the format of llama.cpp; name the file itself, which staging converts, or take the original model in "
        "safetensors",
    ),
    (
        ("quantize_config.json", "quant_config.json", "gptq*", "awq*", "*4bit*.safetensors", "*8bit*.safetensors"),
        f"a model that GPTQ, AWQ or the like has quantized; {_TAKE_ORIGINAL}, model.quantization: int8 quantizes it",
    ),
    (("adapter_model.*",), "an adapter without its config; merge it into its base model and take the merged model"),
    (
        ("*.h5", "*.msgpack", "*.onnx", "*.tflite", "*.nemo", "*.pdparams"),
        f"another library's format; {_TAKE_ORIGINAL}",
    ),
    (
        ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl"),
        "a pickle under another name; a single file must be called pytorch_model.bin (`save_pretrained` writes "
        "model.safetensors)",
    ),
    (
        ("*.safetensors",),
        "safetensors under another name; a single file must be called model.safetensors, and shards need their "
        "model.safetensors.index.json",
    ),
)


def refuse_adapter(where: object, names: Iterable[str]) -> None:
    """Raise ModelError where the files are, or include, an adapter: transformers would put it over the weights."""
    if ADAPTER in names:
        raise ModelError(
            f"{where}: {ADAPTER} is there, and adapters (LoRA and the like) are not run: merge it into its base model "
            "(`merge_and_unload` of peft, then `save_pretrained`) and take that folder, or remove the adapter's files"
        )


def explain_format(names: Iterable[str]) -> str | None:
    """What a folder without weights that are read holds instead, and what to do; None where it is not known."""
    present = sorted(names)
    for patterns, what in _FORMATS:
        for name in present:
            if any(fnmatch(PurePath(name).name.lower(), pattern) for pattern in patterns):
                return f"{name} is {what}"
    return None
