"""A small random Dolly in the layout of its hub repositories, and staging in a process with its own environment."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

PROJECT = Path(__file__).parent.parent.parent
REPO_ID = "databricks/dolly-v2-small"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
MARKERS = ["<|endoftext|>", "### End", "### Instruction:", "### Response:"]


def build_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=MARKERS[:1],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["a plain text of plain words, to learn a few merges from"] * 4, trainer)
    tokenizer.add_special_tokens(MARKERS[1:])
    return tokenizer


def write_pickles(folder: Path, state: dict[str, torch.Tensor], num_shards: int) -> None:
    names = list(state)
    weight_map = {}
    for number in range(num_shards):
        file = f"pytorch_model-{number + 1:05d}-of-{num_shards:05d}.bin"
        part = names[number::num_shards]
        torch.save({name: state[name] for name in part}, folder / file)
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {"total_size": sum(t.nbytes for t in state.values())}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def write_safetensors(folder: Path, state: dict[str, torch.Tensor]) -> None:
    """Two shards and their index, as a repository in the newer format has them."""
    names, weight_map = list(state), {}
    for number in (1, 2):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: state[name] for name in names[number - 1 :: 2]}, folder / file)
        weight_map.update(dict.fromkeys(names[number - 1 :: 2], file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def write_repository(folder: Path) -> dict[str, torch.Tensor]:
    """Fill `folder` as Dolly's repositories are: pickled shards, an index, code beside them. Returns the weights."""
    tokenizer = build_tokenizer()
    torch.manual_seed(7)
    config = GPTNeoXConfig(
        vocab_size=tokenizer.get_vocab_size() + 3,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        rotary_pct=0.25,
    )
    state = GPTNeoXForCausalLM(config).to(torch.bfloat16).state_dict()
    write_pickles(folder, state, num_shards=3)
    tokenizer.save(str(folder / "tokenizer.json"))
    written = {
        "architectures": ["GPTNeoXForCausalLM"],
        "custom_pipelines": {"text-generation": {"impl": "instruct_pipeline.InstructionTextGenerationPipeline"}},
        "model_type": "gpt_neox",
        "vocab_size": config.vocab_size,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-05,
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000,
        "use_parallel_residual": True,
        "torch_dtype": "bfloat16",
        "use_cache": False,
    }
    (folder / "config.json").write_text(json.dumps(written))
    (folder / "instruct_pipeline.py").write_text("raise SystemExit('code of the repository was run')\n")
    (folder / "README.md").write_text("A model card.\n")
    return state


@dataclass(frozen=True)
class Outcome:
    """What a staging process ended in: the staged model's fields, or its error's class and text."""

    result: dict[str, str]
    error: str
    log: list[str]
    stderr: str

    @property
    def folder(self) -> Path:
        return Path(self.result["folder"])


# The hub's client reads its settings when it is imported, so each call runs in a process with its own environment.
SCRIPT = """
import json, os, resource, sys
if "LARGEST_FILE" in os.environ:  # as good as a full disk, and needs no mount
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["LARGEST_FILE"]),) * 2)
from dataclasses import asdict
from dolly_batch.errors import DollyBatchError
from dolly_batch import staging
lines = []
out = {"result": {}, "error": "", "log": lines}
name, arguments = json.loads(sys.argv[1])
try:
    out["result"] = asdict(getattr(staging, name)(*arguments, log=lines.append))
except DollyBatchError as error:
    out["error"] = f"{type(error).__name__}: {error}"
out["torch"] = "torch" in sys.modules
print(json.dumps(out, default=str))
"""


def start(
    name: str, *arguments: object, home: Path, endpoint: str = "http://127.0.0.1:9", **env: str
) -> subprocess.Popen[str]:
    call = json.dumps([name, [None if value is None else str(value) for value in arguments]])
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, call],
        env={**inherited, **settings, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
