"""What 8 bits cost a model: how well it expects the responses of a table, in floating point, in int8 and in fp8.

    PYTHONPATH=. python benchmarks/int8_cost.py MODEL_FOLDER ROWS.jsonl [--rows N]

Rows are those of databricks-dolly-15k (instruction, context, response), drawn with a fixed seed. Each way of computing
is compared with float32 at every token of the responses: bits a token (of the response's own tokens), how many more,
the divergence from float32's probabilities (Kullback-Leibler, in bits a token: over all tokens that might follow, so
that few rows say more), and how often the likeliest token is the same. The CPU time is that of quantizing. One thread.
`--ways fp8` computes float32 and the ways of this quantization alone.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dolly_batch.engine.weights.fp8_gpu import CudaFp8Linear
from dolly_batch.engine.weights.int8_cpu import quantize
from dolly_batch.engine.weights.loading import LoadedModel, load_model, smoothing_of
from dolly_batch.prompt import PromptEncoder

# Of the model, before it is quantized or not; what is done then.
WAYS = [
    ("float32", "none"),
    ("bfloat16", "none"),
    ("float32", "int8"),
    ("bfloat16", "int8"),
    ("float32", "int8, smoothed"),
    ("bfloat16", "int8, smoothed"),
    ("float32", "fp8"),
    ("bfloat16", "fp8"),
]
MAX_PROMPT, MAX_RESPONSE = 1_000, 64
BITS = 1 / math.log(2)


@dataclass(frozen=True)
class Row:
    """Token ids of a prompt, and of the response that follows."""

    prompt: list[int]
    response: list[int]


def draw_rows(path: Path, encoder: PromptEncoder, num_rows: int) -> list[Row]:
    """Rows of the table in a fixed random order; long prompts are left out, long responses cut."""
    table = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    drawn = random.Random(15).sample(table, min(len(table), 2 * num_rows))
    prompts = encoder.encode_batch([(row["instruction"], row.get("context")) for row in drawn])
    responses = encoder.encode_responses([row["response"] for row in drawn])
    rows = [Row(*ids) for ids in zip(prompts, responses, strict=True) if len(ids[0]) <= MAX_PROMPT]
    return [Row(row.prompt, row.response[:MAX_RESPONSE]) for row in rows[:num_rows]]


def load(folder: Path, dtype: str, quantization: str) -> tuple[LoadedModel, float]:
    """The model, and the CPU seconds that its quantization took."""
    loaded = load_model(folder, dtype=dtype, device="cpu")
    started = time.process_time()
    if quantization == "fp8":  # the GPU's layers, with torch's own product for CPUs
        put_into_fp8(loaded.model, loaded.dtype)
    elif quantization != "none":
        smoothing = smoothing_of(loaded.folder, loaded.encoder) if quantization == "int8, smoothed" else None
        quantize(loaded.model, smoothing=smoothing)
    return loaded, time.process_time() - started


def put_into_fp8(model: Any, dtype: torch.dtype) -> None:
    """Replace every linear layer but the output layer."""
    output_layer = model.get_output_embeddings()
    for module in list(model.modules()):
        for name, linear in list(module.named_children()):
            if isinstance(linear, torch.nn.Linear) and linear is not output_layer:
                setattr(module, name, CudaFp8Linear(linear, torch.device("cpu"), dtype, None))


@torch.inference_mode()
def log_probs(model: Any, row: Row) -> Tensor:
    """Of every token that may follow, at each token of the response: [tokens, vocabulary]."""
    ids = torch.tensor([[*row.prompt, *row.response[:-1]]])
    found: Tensor = model(input_ids=ids, use_cache=False, logits_to_keep=len(row.response)).logits[0]
    return found.float().log_softmax(dim=-1)


def compare(found: Sequence[Tensor], exact: Sequence[Tensor], rows: Sequence[Row]) -> str:
    """The table's cells: bits a token, those over float32's, the divergence, the likeliest tokens that are the same."""
    bits, more, divergences, same = [], [], [], []
    for ours, theirs, row in zip(found, exact, rows, strict=True):
        own, expected = (of.gather(-1, torch.tensor(row.response)[:, None]).double() * BITS for of in (ours, theirs))
        bits.append(-own)
        more.append(expected - own)
        divergences.append((theirs.exp() * (theirs - ours)).sum(dim=-1).double() * BITS)
        same.append(ours.argmax(dim=-1) == theirs.argmax(dim=-1))
    mean, share = torch.cat(bits).mean().item(), torch.cat(same).double().mean().item()
    return f"{mean:.4f} | {_with_error(more)} | {_with_error(divergences)} | {share:.1%}"


def _with_error(numbers: Sequence[Tensor]) -> str:
    """Mean and standard error over tokens."""
    every = torch.cat(list(numbers))
    return f"{every.mean().item():.4f} ± {every.std().item() / len(every) ** 0.5:.4f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--ways", help="only this quantization")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = draw_rows(given.data, PromptEncoder.from_folder(given.model), given.rows)
    num_tokens = sum(len(row.response) for row in rows)
    print(f"{len(rows)} rows, {num_tokens:,} tokens of responses")
    print("| weights | quantization | bits a token | more | divergence | likeliest token the same | CPU time |")
    print("|---|---|---|---|---|---|---|")
    exact: list[Tensor] = []
    for dtype, quantization in [WAYS[0], *(way for way in WAYS[1:] if given.ways in (None, way[1]))]:
        loaded, seconds = load(given.model, dtype, quantization)
        found = [log_probs(loaded.model, row) for row in rows]
        exact = exact or found
        print(f"| {dtype} | {quantization} | {compare(found, exact, rows)} | {seconds:.1f} s |", flush=True)


if __name__ == "__main__":
    main()
