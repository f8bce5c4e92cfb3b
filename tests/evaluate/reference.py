"""What lm-evaluation-harness was asked, for the recording and for the test that asks our engine the same.

Imported by benchmarks/record_lm_eval.py in an environment with lm-eval, and by the tests in one without.
"""

import gzip
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

import dolly_batch

RECORDING = Path(__file__).with_name("lm_eval.json")
PACKAGE = Path(dolly_batch.__file__).parent
TINY = PACKAGE / "tiny" / "model"
SAMPLES = PACKAGE / "samples" / "evaluate"

# 100 requests of each, and so 300: the first questions of the request files under the shared data.
FILES = {"piqa": ("piqa.jsonl", 50), "winogrande": ("winogrande.jsonl", 50), "hellaswag": ("hellaswag.jsonl.gz", 25)}

_PYTHIA_70M = {
    "vocab_size": 50304,
    "hidden_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "max_position_embeddings": 2048,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def first_rows(data: Path, task: str) -> list[dict[str, Any]]:
    """The first questions of a request file of the shared data."""
    name, count = FILES[task]
    path = data / "evaluate" / name
    with gzip.open(path, "rt", encoding="utf-8") if name.endswith(".gz") else path.open(encoding="utf-8") as lines:
        return [json.loads(line) for _, line in zip(range(count), lines, strict=False)]


def digest(value: object) -> str:
    """A hash of questions, so that a recording holds none of their text."""
    return hashlib.sha256(json.dumps(value, ensure_ascii=True, sort_keys=True).encode()).hexdigest()


def write_pythia_70m(folder: Path, tokenizer: Path) -> Path:
    """A model of pythia-70m's shape with random weights that are the same on every machine, and the given tokenizer.

    Every weight is an integer of 8 bits times a power of two: exact in bfloat16, and drawn without a logarithm or a
    cosine, whose last bit differs from one CPU to another.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(tokenizer, folder / "tokenizer.json")
    config = GPTNeoXConfig(**_PYTHIA_70M)
    config.architectures = ["GPTNeoXForCausalLM"]
    config.save_pretrained(folder)
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in GPTNeoXForCausalLM(config).named_parameters()}
    generator = torch.Generator().manual_seed(70)
    weights = {}
    for name in sorted(shapes):
        drawn = torch.randint(-127, 128, shapes[name], generator=generator, dtype=torch.int16)
        # Wide enough at the end that the choices' log-likelihoods lie apart.
        scale = 2.0**-10 if name == "embed_out.weight" else 2.0**-12
        weights[name] = (drawn.float() * scale + float("norm.weight" in name)).bfloat16()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
