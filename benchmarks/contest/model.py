"""The model that all engines run: random weights of pythia-160m's shape, also as CTranslate2 and vLLM want them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from benchmarks.contest.work import TOKENIZER
from dolly_batch.models.folder import write_manifest
from dolly_batch.prompt_format import END
from tests.random_models import train_tokenizer

# Of config.json as EleutherAI publishes it.
_PYTHIA_160M = {
    "vocab_size": 50_304,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3_072,
    "max_position_embeddings": 2_048,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<|endoftext|>",
    "eos_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
}


def write_model(folder: Path) -> str:
    """Write the model's folder and say what it holds.

    No row may end by itself, in any engine: the output layer's weights of the end markers are zero, so their logits
    are, and among 50,000 random ones 0 is never the largest.
    """
    folder.mkdir(parents=True)
    if TOKENIZER.is_file():
        shutil.copyfile(TOKENIZER, folder / "tokenizer.json")
        said = "the GPT-NeoX tokenizer"
    else:
        train_tokenizer().save(str(folder / "tokenizer.json"))
        said = f"a tokenizer of 400 tokens trained on the spot ({TOKENIZER} is absent)"
    (folder / "tokenizer_config.json").write_text(json.dumps(_TOKENIZER_CONFIG))
    layout = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    (end_id,) = (token["id"] for token in layout["added_tokens"] if token["content"] == END)
    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**_PYTHIA_160M))
    with torch.no_grad():
        model.get_output_embeddings().weight[[0, end_id]] = 0
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    write_manifest(folder, source="random weights", revision=None)
    return f"random weights of pythia-160m's shape with {said}"


def write_int8_for_vllm(source: Path, target: Path) -> Path:
    """The same weights in int8 for vLLM, a scale for each output channel; it scales activations token by token.

    It is the layout of compressed-tensors, the library that makes such models for vLLM.
    """
    shutil.copytree(source, target)
    tensors = {}
    for name, weight in load_file(source / "model.safetensors").items():
        tensors[name] = weight
        if ".layers." in name and weight.ndim == 2:
            scale = weight.abs().amax(dim=1, keepdim=True) / 127
            tensors[name], tensors[f"{name}_scale"] = (weight / scale).round().to(torch.int8), scale
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    numbers = {"num_bits": 8, "type": "int", "symmetric": True}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head", "embed_out"],
        "config_groups": {
            "all": {
                "targets": ["Linear"],
                "weights": {**numbers, "strategy": "channel", "dynamic": False},
                "input_activations": {**numbers, "strategy": "token", "dynamic": True},
            }
        },
    }
    (target / "config.json").write_text(json.dumps(config))
    return target


def convert(source: Path, target: Path, quantization: str | None) -> None:
    """Convert for CTranslate2. Its converter knows transformers 4's names; under transformers 5 they need aliases."""
    from ctranslate2.converters import TransformersConverter

    GPTNeoXConfig.rotary_pct = property(lambda config: config.rope_parameters.get("partial_rotary_factor", 1.0))
    GPTNeoXConfig.rotary_emb_base = property(lambda config: config.rope_parameters["rope_theta"])
    GPTNeoXForCausalLM.embed_out = property(lambda model: model.lm_head)
    TransformersConverter(str(source)).convert(str(target), quantization=quantization, force=True)


def convert_all(model: Path, folder: Path, python: Path) -> dict[str, str]:
    """CTranslate2's folders by compute type, made by the peers' interpreter; empty where that fails."""
    found = {}
    for compute_type, quantization in (("int8", "int8"), ("float32", "none")):
        target = folder / f"ctranslate2-{compute_type}"
        command = [str(python), "-m", "benchmarks.contest.model", str(model), str(target), quantization]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.stderr.write(done.stderr[-1_500:])
            return {}
        found[compute_type] = str(target)
    return found


if __name__ == "__main__":  # in the peers' interpreter: SOURCE TARGET QUANTIZATION
    convert(Path(sys.argv[1]), Path(sys.argv[2]), None if sys.argv[3] == "none" else sys.argv[3])
