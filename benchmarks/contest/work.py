"""The work: rows of databricks-dolly-15k with their prompt ids, and where an answer ends.

With random weights that is the length of the row's own response; a real model ends its answers itself. Where the data
is absent, a synthetic table of the same length distribution stands in, and where the GPT-NeoX tokenizer
is absent, one that is trained on the spot. `Work.source` says what was used.
"""

import json
import math
import os
import random
from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path

from dolly_batch.prompt import PromptEncoder

SHARED = Path(os.environ.get("DOLLY_BATCH_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "data"
TABLE = SHARED / "dolly15k/databricks-dolly-15k.jsonl"
TOKENIZER = SHARED / "tokenizer/dolly_v2_tokenizer_derived.json"
MAX_NEW_TOKENS = 256
MAX_OPEN_TOKENS = 128  # of an answer that ends by itself
_MAX_POSITIONS = 2_048
# Quantiles of databricks-dolly-15k, in GPT-NeoX tokens: of the text between the markers, and of the response.
_SHARES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
_BODY_QUANTILES = (5, 7, 13, 115, 271, 413, 900, 1_700)
_RESPONSE_QUANTILES = (1, 20, 45, 94, 175, 256, 256, 256)


@dataclass(frozen=True)
class Row:
    """One question: its prompt's ids, and after how many tokens its answer is stopped at the latest."""

    key: str
    prompt_ids: tuple[int, ...]
    num_new_tokens: int


@dataclass(frozen=True)
class Work:
    """Rows in random order, and in words where they come from.

    `stop_ids` are the tokens that end an answer before its row's `num_new_tokens`; empty where none can come.
    """

    rows: list[Row]
    source: str
    stop_ids: tuple[int, ...] = ()

    def sample(self, num_rows: int) -> list[Row]:
        """So many rows that have the lengths of all of them, in the order of all of them.

        The rows are laid out in groups of like answers, in each by the length of their prompts, up and down in turn; of
        that line every k-th is taken, from the middle of its stretch.
        """
        if num_rows >= len(self.rows):
            return self.rows
        by_answer = sorted(self.rows, key=lambda row: (row.num_new_tokens, row.key))
        size = math.ceil(len(by_answer) / math.ceil(math.sqrt(num_rows)))
        line: list[Row] = []
        for start in range(0, len(by_answer), size):
            is_odd = start // size % 2 == 1
            line += sorted(by_answer[start : start + size], key=lambda row: len(row.prompt_ids), reverse=is_odd)
        chosen = {line[(2 * i + 1) * len(line) // (2 * num_rows)].key for i in range(num_rows)}
        return [row for row in self.rows if row.key in chosen]


def until_stop(ids: Sequence[int], stop_ids: Collection[int]) -> list[int]:
    """An answer's ids before the first that ends it: engines differ in whether they hand that one out too."""
    return [*takewhile(lambda token_id: token_id not in stop_ids, ids)]


def is_whole(row: Row, ids: Sequence[int], stop_ids: Collection[int]) -> bool:
    """Whether so many ids can be the row's answer, the one that ends it left out."""
    return len(ids) <= row.num_new_tokens if stop_ids else len(ids) == row.num_new_tokens


def load_work(model_folder: Path, num_rows: int, seed: int = 1) -> Work:
    """Take rows at random, without those that do not fit the model or have no response."""
    encoder = PromptEncoder.from_folder(model_folder)
    choose = random.Random(seed)
    if not TABLE.is_file():
        prompts = [_synthetic_row(choose, encoder) for _ in range(num_rows)]
        source = f"{num_rows} synthetic rows of databricks-dolly-15k's lengths ({TABLE} is absent)"
    else:
        lines = [json.loads(line) for line in TABLE.read_text(encoding="utf-8").splitlines()]
        choose.shuffle(lines)
        prompts = []
        for line in lines:
            prompt = encoder.encode(line["instruction"], line["context"] or None)
            num_tokens = min(len(encoder.encode_text(line["response"].strip())), MAX_NEW_TOKENS)
            if num_tokens and len(prompt) + num_tokens <= _MAX_POSITIONS:
                prompts.append((prompt, num_tokens))
            if len(prompts) == num_rows:
                break
        source = f"{len(prompts)} rows of databricks-dolly-15k, seed {seed}"
    rows = [Row(f"r{i:05d}", tuple(prompt), num_tokens) for i, (prompt, num_tokens) in enumerate(prompts)]
    return Work(rows, source)


def load_open_work(model_folder: Path, num_rows: int, seed: int = 1) -> Work:
    """Take rows at random whose answers end by themselves, after `MAX_OPEN_TOKENS` at the latest.

    Raises FileNotFoundError where the data is absent: a real model's answers to made-up words say nothing.
    """
    encoder = PromptEncoder.from_folder(model_folder)
    lines = [json.loads(line) for line in TABLE.read_text(encoding="utf-8").splitlines()]
    random.Random(seed).shuffle(lines)
    prompts = (tuple(encoder.encode(line["instruction"], line["context"] or None)) for line in lines)
    fitting = (prompt for prompt in prompts if len(prompt) + MAX_OPEN_TOKENS <= _MAX_POSITIONS)
    rows = [Row(f"r{i:05d}", prompt, MAX_OPEN_TOKENS) for i, prompt in enumerate(islice(fitting, num_rows))]
    source = f"{len(rows)} rows of databricks-dolly-15k, seed {seed}, each to its end, {MAX_OPEN_TOKENS} tokens at most"
    return Work(rows, source, encoder.stop_ids)


def _synthetic_row(choose: random.Random, encoder: PromptEncoder) -> tuple[list[int], int]:
    words = [choose.randrange(300) for _ in range(_draw(choose, _BODY_QUANTILES))]
    ids = encoder.encode("What is it?", None)
    end = ids.index(encoder.marks[1])
    return [*ids[:end], *words, *ids[end:]], _draw(choose, _RESPONSE_QUANTILES)


def _draw(choose: random.Random, quantiles: tuple[int, ...]) -> int:
    """A number distributed as the quantiles say, straight lines between them."""
    share = choose.random()
    right = max(1, bisect_left(_SHARES, share))
    left = right - 1
    part = (share - _SHARES[left]) / (_SHARES[right] - _SHARES[left])
    return round(quantiles[left] + part * (quantiles[right] - quantiles[left]))
