"""Requests of mixed lengths, and the reference's answers to them: `model.generate`, one row at a time."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from transformers import GenerationConfig

from dolly_batch.engine.weights.loading import LoadedModel
from dolly_batch.prompt import PromptEncoder
from dolly_batch.records import GenerationParams, Request
from tests.random_models import TEXTS


@dataclass(frozen=True)
class Expected:
    """The reference's answer, and by how much its best logit led the second, per generated token."""

    token_ids: tuple[int, ...]
    finish_reason: str
    leads: tuple[float, ...]


def dolly(loaded: LoadedModel) -> PromptEncoder:
    return cast("PromptEncoder", loaded.encoder)


def mixed_requests(encoder: PromptEncoder, num_rows: int, max_words: int = 50, **params: object) -> list[Request]:
    """Rows of 0 to `max_words` words, each with its own number of new tokens and its own seed."""
    draw = random.Random(7)
    words = " ".join(TEXTS).split()
    requests = []
    for row in range(num_rows):
        num_words = draw.choice([draw.randint(0, 8), draw.randint(0, max_words)])
        instruction = " ".join(draw.choices(words, k=num_words))
        context = " ".join(draw.choices(words, k=num_words // 2)) if row % 3 == 0 else None
        row_params = GenerationParams(max_new_tokens=draw.randint(1, 16), **params)  # type: ignore[arg-type]
        requests.append(Request(f"row {row}", tuple(encoder.encode(instruction, context)), row_params, seed=row))
    return requests


def generate_alone(loaded: LoadedModel, requests: Sequence[Request]) -> dict[str, Expected]:
    """Greedy answers of `model.generate`, a row at a time, without any padding."""
    return {request.key: _generate_one(loaded, request) for request in requests}


def _generate_one(loaded: LoadedModel, request: Request) -> Expected:
    end_id = dolly(loaded).end_id
    config = GenerationConfig(
        max_new_tokens=request.params.max_new_tokens,
        do_sample=False,
        eos_token_id=end_id,
        pad_token_id=end_id,
        use_cache=True,
        return_dict_in_generate=True,
        output_logits=True,
    )
    prompt = torch.tensor([request.prompt_ids])
    output = loaded.model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=config)
    best = torch.cat(output.logits).topk(2).values
    token_ids = tuple(output.sequences[0, prompt.shape[1] :].tolist())
    ended = token_ids[-1] == end_id
    leads = tuple((best[:, 0] - best[:, 1]).tolist())
    return Expected(token_ids[:-1] if ended else token_ids, "stop" if ended else "length", leads)
