"""How many of a set of rows a model answers right, and whether it ends by itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer

from tools.tiny.records import Row
from tools.tiny.tokenizer import END_ID, ENDOFTEXT_ID, encode_row

# A GPTNeoXForCausalLM; transformers types its methods only in part.
Model = Any


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model wrote, stripped, and whether it wrote `### End` after it."""

    text: str
    ended: bool


def answer_rows(
    model: Model,
    tokenizer: Tokenizer,
    rows: Sequence[Row],
    batch_size: int = 50,
    max_new_tokens: int = 96,
    do_sample: bool = False,
) -> list[Answer]:
    """Answers in the order of the rows: greedy, or sampled as Dolly's reference does it (temperature 1, top-p 0.92)."""
    prompts = [encode_row(tokenizer, row)[0] for row in rows]
    order = sorted(range(len(rows)), key=lambda at: len(prompts[at]))
    answers: dict[int, Answer] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        width = max(len(prompts[at]) for at in chosen)
        ids = torch.full((len(chosen), width), ENDOFTEXT_ID)
        for line, at in enumerate(chosen):
            ids[line, width - len(prompts[at]) :] = torch.tensor(prompts[at])
        mask = torch.tensor([[0] * (width - len(prompts[at])) + [1] * len(prompts[at]) for at in chosen])
        sampling = {"do_sample": True, "top_p": 0.92, "top_k": 0} if do_sample else {"do_sample": False}
        output = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            eos_token_id=END_ID,
            pad_token_id=ENDOFTEXT_ID,
            **sampling,
        )
        for at, written in zip(chosen, output[:, width:].tolist(), strict=True):
            ended = END_ID in written
            text = tokenizer.decode(written[: written.index(END_ID)] if ended else written)
            answers[at] = Answer(text.strip(), ended)
    return [answers[at] for at in range(len(rows))]


def share_right(answers: Sequence[Answer], rows: Sequence[Row]) -> float:
    """The share of answers that equal their row's response."""
    return sum(answer.text == row.response for answer, row in zip(answers, rows, strict=True)) / len(rows)


def share_ended(answers: Sequence[Answer]) -> float:
    """The share of answers that ended with `### End`."""
    return sum(answer.ended for answer in answers) / len(answers)
