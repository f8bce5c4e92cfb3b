"""A GGUF file to a model folder, as a process of its own: `python -m dolly_batch.staging.gguf FILE DST`.

Transformers reads the file and takes its numbers out of their blocks; they are written as they come, in float32.
"""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from dolly_batch.errors import ModelError
from dolly_batch.models.folder import CONFIG, WEIGHTS
from dolly_batch.staging.isolated import report, serve

# What transformers notes down of the file; none of it shapes the model.
_NOTES = ("quantization_config", "_model_name_or_path", "unk_token_id", "transformers_version")


def convert(file: Path, dst: Path) -> None:
    """Write config, tokenizer, chat template and weights of a GGUF file to the folder `dst`.

    Raises ModelError for a file that transformers cannot read, and where the package `gguf` is missing.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"{file}: reading GGUF needs the package gguf: pip install 'dolly-batch[gguf]'")
    import torch
    import transformers
    from safetensors.torch import save_file

    report(f"reading {file.name}")
    logging: Any = transformers.utils.logging
    logging.disable_progress_bar()
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
        model = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    except Exception as error:  # the reader raises whatever its parts raise
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ModelError(f"{file}: not a GGUF file that can be read: {reason}") from error
    config = {key: value for key, value in model.config.to_dict().items() if key not in _NOTES and value is not None}
    (dst / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    tokenizer.save_pretrained(dst)
    model.generation_config.save_pretrained(dst)
    tied = set(model.all_tied_weights_keys) if config.get("tie_word_embeddings") else set()
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in tied}
    save_file(tensors, dst / WEIGHTS, metadata={"format": "pt"})


def main(arguments: list[str]) -> None:
    """Convert as the two arguments say: file, destination."""
    file, dst = arguments
    convert(Path(file), Path(dst))


if __name__ == "__main__":
    sys.exit(serve(main, sys.argv[1:]))
