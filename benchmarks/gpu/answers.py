"""How `benchmarks/gpu/checks.py` asks engines and holds their answers against a reference."""

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import GenerationConfig

from benchmarks.gpu.work import Shape
from dolly_batch.engine.protocol import Engine, answer
from dolly_batch.engine.weights.loading import LoadedModel
from dolly_batch.records import Completion, GenerationParams, Request
from dolly_batch.tiny import MODEL_FOLDER

# By how much a token may be behind the reference's best, in units of the logits' own deviation.
_LEADS = {torch.float32: 2e-3, torch.bfloat16: 0.15, torch.float16: 0.03}


def mixed(device: torch.device, shape: Shape, num_rows: int) -> list[Request]:
    """Greedy requests of 1 to 700 prompt tokens and 1 to 24 answer tokens; on a CPU fewer and shorter ones."""
    on_cpu = device.type == "cpu"
    draw = random.Random(7)
    requests = []
    for row in range(num_rows // 4 if on_cpu else num_rows):
        size = draw.choice([draw.randint(1, 40), draw.randint(1, 300), draw.choice([255, 256, 257, 512, 513, 700])])
        prompt = tuple(draw.choices(range(shape.vocab_size), k=size // 2 if on_cpu else size))
        params = GenerationParams(max_new_tokens=draw.randint(1, 6 if on_cpu else 24), do_sample=False)
        requests.append(Request(f"row {row}", prompt or (1,), params, seed=row))
    return requests


def answers(engine: Engine, requests: Sequence[Request]) -> dict[str, Completion]:
    """The completions by key; each must come out once."""
    found = [one for one in answer(engine, requests, max_waiting=len(requests)) if isinstance(one, Completion)]
    require(len(found) == len(requests), f"{len(found)} completions for {len(requests)} requests")
    by_key = {completion.key: completion for completion in found}
    require(len(by_key) == len(requests), "a request was answered twice")
    return by_key


def compare(
    loaded: LoadedModel,
    requests: Sequence[Request],
    reference: dict[str, tuple[int, ...]],
    found: dict[str, Completion],
) -> str:
    """Hold answers against a reference's tokens; the first token that differs must have been a near tie."""
    num_same, leads = 0, [0.0]
    for request in requests:
        wanted, given = reference[request.key], found[request.key].token_ids
        require(len(wanted) == len(given), f"{request.key}: {len(given)} tokens, expected {len(wanted)}")
        if wanted == given:
            num_same += 1
            continue
        at = next(index for index, (one, other) in enumerate(zip(wanted, given, strict=True)) if one != other)
        ahead = next_logits(loaded, (*request.prompt_ids, *wanted[:at])).float()
        leads.append(((ahead.max() - ahead[given[at]]) / ahead.std()).item())
        require(
            leads[-1] <= _LEADS[loaded.dtype],
            f"{request.key}: token {at} is {given[at]}, expected {wanted[at]}, ahead by {leads[-1]:.3f} deviations "
            f"(prompt of {len(request.prompt_ids)} tokens)",
        )
    return f"{num_same} of {len(requests)} rows equal, the others part at leads of at most {max(leads):.4f} deviations"


def save(loaded: LoadedModel, folder: Path) -> Path:
    """Write a model's folder, with the small model's tokenizer."""
    loaded.model.save_pretrained(folder)
    shutil.copyfile(MODEL_FOLDER / "tokenizer.json", folder / "tokenizer.json")
    return folder


def require(holds: bool, claim: str) -> None:
    """Fail the check that makes this claim."""
    if not holds:
        raise AssertionError(claim)


def generate_alone(loaded: LoadedModel, request: Request) -> tuple[int, ...]:
    """The greedy answer of Hugging Face's `generate`."""
    ids = torch.tensor([request.prompt_ids], device=loaded.device)
    config = GenerationConfig(max_new_tokens=request.params.max_new_tokens, do_sample=False, use_cache=True)
    with torch.inference_mode():
        output = loaded.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return tuple(output[0, ids.shape[1] :].tolist())


def next_logits(loaded: LoadedModel, ids: Sequence[int]) -> Tensor:
    """The logits behind these tokens, [vocabulary]."""
    with torch.inference_mode():
        output = loaded.model(input_ids=torch.tensor([ids], device=loaded.device), use_cache=False, logits_to_keep=1)
    logits: Tensor = output.logits[0, -1]
    return logits


def stats_of(engine: Engine) -> dict[str, float]:
    """What the engine counted, if it counts."""
    stats: dict[str, float] = getattr(engine, "stats", dict)()
    return {key: round(value, 3) for key, value in stats.items()}
