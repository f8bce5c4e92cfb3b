"""The work of this benchmark: Dolly's shapes with random weights, and rows of databricks-dolly-15k's lengths."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig

from dolly_batch.engine.continuous.engine import ContinuousEngine
from dolly_batch.engine.continuous.load import continuous_engine
from dolly_batch.engine.load import choose_engine
from dolly_batch.engine.plain.engine import PlainEngine
from dolly_batch.engine.protocol import Engine
from dolly_batch.engine.weights.loading import LoadedModel
from dolly_batch.models.config import check_config
from dolly_batch.models.folder import ModelFolder
from dolly_batch.records import EngineSpec, GenerationParams, Request
from dolly_batch.tiny import MODEL_FOLDER
from dolly_batch.tokenizer import TextEncoder

# databricks-dolly-15k in GPT-NeoX tokens, rows in groups by the length of their prompt: number of rows, mean length of
# the prompts, means of the eighths of the answers from short to long (capped at 256). Of its 15,014 rows the 14,968
# whose prompt leaves room for 256 tokens. In all 1.712 million prompt tokens, 1.033 million answer tokens.
DOLLY_15K = (
    (935, 28, (10, 25, 42, 59, 75, 93, 130, 225)),
    (936, 30, (7, 19, 33, 51, 71, 93, 129, 216)),
    (935, 31, (5, 18, 31, 48, 66, 91, 128, 218)),
    (936, 32, (5, 14, 27, 42, 64, 90, 130, 222)),
    (935, 33, (5, 16, 29, 47, 68, 92, 129, 225)),
    (936, 34, (4, 15, 29, 48, 69, 98, 140, 231)),
    (935, 36, (4, 12, 25, 42, 63, 90, 134, 225)),
    (936, 38, (5, 11, 12, 22, 44, 77, 120, 216)),
    (935, 41, (5, 12, 14, 23, 47, 84, 134, 230)),
    (936, 49, (7, 17, 24, 31, 39, 61, 121, 233)),
    (935, 65, (11, 25, 33, 38, 44, 57, 98, 216)),
    (936, 110, (5, 13, 22, 35, 51, 67, 89, 191)),
    (935, 165, (5, 14, 20, 26, 35, 52, 94, 186)),
    (936, 221, (6, 14, 20, 27, 36, 53, 82, 175)),
    (935, 308, (8, 16, 22, 29, 41, 61, 95, 212)),
    (234, 405, (10, 18, 29, 36, 47, 63, 94, 184)),
    (234, 481, (9, 18, 27, 38, 50, 68, 97, 206)),
    (234, 591, (11, 23, 34, 49, 67, 85, 118, 217)),
    (234, 960, (16, 29, 46, 62, 84, 121, 177, 253)),
)
MAX_NEW_TOKENS = 256
NUM_PREFIX = 23  # tokens that all prompts of Dolly's format begin with


_STOP = -7  # no token of any model


@dataclass(frozen=True)
class Shape:
    """A GPT-NeoX's shape."""

    hidden_size: int
    num_layers: int
    num_heads: int
    vocab_size: int = 50_280
    max_positions: int = 2048

    @property
    def config(self) -> dict[str, Any]:
        """As config.json has it."""
        return {
            "model_type": "gpt_neox",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "intermediate_size": 4 * self.hidden_size,
            "max_position_embeddings": self.max_positions,
        }

    @property
    def layer_weights(self) -> int:
        """Weights of the linear layers of all layers."""
        return 12 * self.num_layers * self.hidden_size**2

    @property
    def head_weights(self) -> int:
        """Weights of the output layer."""
        return self.vocab_size * self.hidden_size

    def token_bytes(self, item_bytes: int) -> int:
        """Bytes of a token's keys and values."""
        return 2 * self.num_layers * self.hidden_size * item_bytes


SHAPES = {
    "3b": Shape(2560, 32, 32),
    "7b": Shape(4096, 32, 32),
    "12b": Shape(5120, 36, 40),
    "smoke": Shape(64, 2, 2, vocab_size=2048),
}


@dataclass(frozen=True)
class Work:
    """Rows as (prompt tokens, answer tokens)."""

    lengths: tuple[tuple[int, int], ...]

    @classmethod
    def whole_table(cls) -> "Work":
        """As many rows as databricks-dolly-15k has that fit, of its lengths, shortest prompts first."""
        return cls(
            tuple(
                (prompt, answers[row * len(answers) // num_rows])
                for num_rows, prompt, answers in DOLLY_15K
                for row in range(num_rows)
            )
        )

    def part(self, num_rows: int) -> "Work":
        """Every so many-th row, which keeps the lengths' distribution."""
        total = len(self.lengths)
        return Work(tuple(self.lengths[(2 * row + 1) * total // (2 * num_rows)] for row in range(min(num_rows, total))))

    @cached_property
    def prompt_tokens(self) -> int:
        return sum(prompt for prompt, _ in self.lengths)

    @cached_property
    def answer_tokens(self) -> int:
        return sum(answer for _, answer in self.lengths)

    @property
    def prefilled_tokens(self) -> int:
        """Prompt tokens that must be computed: what all prompts begin with, once."""
        return self.prompt_tokens - NUM_PREFIX * max(0, len(self.lengths) - 1)

    @property
    def decoded_tokens(self) -> int:
        """Tokens that are fed in to decode: an answer's first comes from its prompt."""
        return self.answer_tokens - len(self.lengths)

    @property
    def decoded_context(self) -> float:
        """Mean number of tokens that a decoded token looks at."""
        seen = sum((answer - 1) * prompt + answer * (answer - 1) // 2 for prompt, answer in self.lengths)
        return seen / max(1, self.decoded_tokens)

    def requests(self, vocab_size: int, *, sampled: bool, seed: int = 0, ending: bool = False) -> list[Request]:
        """A request a row, in random order: a common beginning, then random ids; it ends at its own length alone.

        With `ending` each may have `MAX_NEW_TOKENS`, and ends before that where `end_by_themselves` says so.
        """
        draw = random.Random(seed)
        prefix = tuple(draw.choices(range(vocab_size), k=NUM_PREFIX))
        requests = []
        for row, (prompt, answer) in enumerate(self.lengths):
            ids = (*prefix, *draw.choices(range(vocab_size), k=max(0, prompt - NUM_PREFIX)))[:prompt]
            params = GenerationParams(max_new_tokens=MAX_NEW_TOKENS if ending else answer, do_sample=sampled)
            requests.append(Request(str(row), ids, params, seed=row))
        draw.shuffle(requests)
        return requests


def end_by_themselves(engine: Engine, work: Work) -> None:
    """Let each row of `work` end as at a stop token, once it has its length, which the engine cannot know before."""
    if not isinstance(engine, ContinuousEngine):
        return
    scheduler = engine._scheduler
    collected, lengths = scheduler.collected, {str(row): answer for row, (_, answer) in enumerate(work.lengths)}
    scheduler._stop_ids = {_STOP}

    def ending(sequences: Any, token_ids: Sequence[int], sound: Sequence[bool]) -> Any:
        pairs = zip(sequences, token_ids, strict=True)
        is_last = [len(row.token_ids) >= lengths[row.request.key] for row, _ in pairs]
        ids = [_STOP if last else token_id for last, token_id in zip(is_last, token_ids, strict=True)]
        return collected(sequences, ids, sound)

    scheduler.collected = ending  # type: ignore[method-assign]


def random_model(
    shape: Shape, device: torch.device, dtype: torch.dtype, spread: float = 0.02, seed: int = 0
) -> LoadedModel:
    """A model with random weights, made on the device. It has no end token: rows run to their own lengths."""
    torch.manual_seed(seed)
    folder = ModelFolder(Path("random weights"), check_config(Path("config.json"), shape.config), ())
    config = GPTNeoXConfig(
        **folder.config.settings, initializer_range=spread, bos_token_id=None, eos_token_id=None, use_cache=True
    )
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model = model.to(device).eval().requires_grad_(False)
    # Of the tokenizer nothing is needed but that it decodes.
    return LoadedModel(model, TextEncoder.from_folder(MODEL_FOLDER), device, dtype, folder)


def make_engine(loaded: LoadedModel, **settings: Any) -> Engine:
    """The engine that a job would get for this model on this device; `settings` are an EngineSpec's."""
    spec = EngineSpec(**{"kind": "auto", "processes": 1, "num_threads": 1, **settings}, model_folder="random weights")
    name = choose_engine(spec, loaded.folder.architecture, "cpu" if loaded.device.type == "cpu" else "cuda")
    return continuous_engine(spec, loaded) if name == "fast" else PlainEngine(loaded)
