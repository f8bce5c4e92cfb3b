"""What keys and values in 8 bits cost a model, beside int8 weights: how well it expects the responses of a table.

    PYTHONPATH=. python benchmarks/kv_cost.py MODEL_FOLDER ROWS.jsonl [--rows N]

Rows, measures and columns are those of `int8_cost.py`. Every key and value is rounded before anything attends to it, as
in the engine (`engine.kv_dtype`), on a CPU, with torch's own attention. The ways with other scales are those that were
not taken: one scale for all numbers (vLLM's default of 1), one for a layer's head (of these very rows, so better than a
calibration can be), and a zero point for each vector (LMDeploy's).
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from benchmarks.int8_cost import compare, draw_rows, load, log_probs
from dolly_batch.engine.eight_bits import LARGEST, quantize, restore
from dolly_batch.prompt import PromptEncoder

Rounding = Callable[[Tensor], Tensor]  # of keys or values, [1, heads, tokens, head size]
_FP8 = torch.float8_e4m3fn


def by_vector(stored: torch.dtype) -> Rounding:
    """A scale for each token and head: what the engine does."""
    return lambda vectors: restore(*quantize(vectors, stored), vectors.dtype)


def by_head(stored: torch.dtype) -> Rounding:
    """A scale for each head, of all tokens that are there."""

    def rounding(vectors: Tensor) -> Tensor:
        flat = vectors.transpose(-1, -2).flatten(-2)
        return restore(*quantize(flat, stored), vectors.dtype).view(*vectors.shape[:2], -1, vectors.shape[2]).mT

    return rounding


def as_it_is(vectors: Tensor) -> Tensor:
    """fp8 with a scale of 1."""
    largest = LARGEST[_FP8]
    return vectors.clamp(-largest, largest).to(_FP8).to(vectors.dtype)


def with_zero_point(vectors: Tensor) -> Tensor:
    """uint8 from a vector's smallest to its largest number."""
    low, high = vectors.amin(dim=-1, keepdim=True), vectors.amax(dim=-1, keepdim=True)
    scale = ((high - low) / 255).clamp(min=1e-30)
    return ((vectors - low) / scale).round() * scale + low


def _nothing(vectors: Tensor) -> Tensor:
    return vectors


# (name, dtype of the weights, their quantization, what is done to keys and to values)
WAYS: list[tuple[str, str, str, Rounding, Rounding]] = [
    ("as computed", "float32", "none", _nothing, _nothing),
    ("as computed", "bfloat16", "none", _nothing, _nothing),
    ("int8", "float32", "none", by_vector(torch.int8), by_vector(torch.int8)),
    ("fp8", "float32", "none", by_vector(_FP8), by_vector(_FP8)),
    ("int8", "bfloat16", "none", by_vector(torch.int8), by_vector(torch.int8)),
    ("fp8", "bfloat16", "none", by_vector(_FP8), by_vector(_FP8)),
    ("int8, keys alone", "float32", "none", by_vector(torch.int8), _nothing),
    ("int8, values alone", "float32", "none", _nothing, by_vector(torch.int8)),
    ("int8, a zero point too", "float32", "none", with_zero_point, with_zero_point),
    ("int8, a scale a head", "float32", "none", by_head(torch.int8), by_head(torch.int8)),
    ("fp8, a scale a head", "float32", "none", by_head(_FP8), by_head(_FP8)),
    ("fp8, a scale of 1", "float32", "none", as_it_is, as_it_is),
    ("as computed", "float32", "int8, smoothed", _nothing, _nothing),
    ("int8", "float32", "int8, smoothed", by_vector(torch.int8), by_vector(torch.int8)),
    ("fp8", "float32", "int8, smoothed", by_vector(_FP8), by_vector(_FP8)),
]


def round_keys_and_values(model: Any, keys: Rounding, values: Rounding) -> None:
    """Let a model of transformers attend to rounded keys and values."""

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **settings: Any) -> Any:
        return sdpa_attention_forward(module, query, keys(key), values(value), mask, **settings)

    AttentionInterface.register("rounded", attend)
    AttentionMaskInterface.register("rounded", sdpa_mask)
    model.set_attn_implementation("rounded")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=int, default=60)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = draw_rows(given.data, PromptEncoder.from_folder(given.model), given.rows)
    print(f"{len(rows)} rows, {sum(len(row.response) for row in rows):,} tokens of responses")
    print("| keys and values | weights | bits a token | more | divergence | likeliest token the same |")
    print("|---|---|---|---|---|---|")
    exact: list[Tensor] = []
    for name, dtype, quantization, keys, values in WAYS:
        loaded, _ = load(given.model, dtype, quantization)
        round_keys_and_values(loaded.model, keys, values)
        found = [log_probs(loaded.model, row) for row in rows]
        exact = exact or found
        weights = dtype if quantization == "none" else f"{quantization}, of {dtype}"
        print(f"| {name} | {weights} | {compare(found, exact, rows)} |", flush=True)


if __name__ == "__main__":
    main()
