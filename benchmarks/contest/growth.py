"""Growth: the same engine on more rows, and on longer prompts. Seconds, tokens/s, and the memory it comes to."""

import random
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from benchmarks.contest.contest import Course, say
from benchmarks.contest.engines import Engine, Options
from benchmarks.contest.launch import Run
from benchmarks.contest.work import Row

_PROCESS_BYTES = 600_000_000
_NEW_TOKENS = 32
PROMPT_LENGTHS = (64, 256, 512, 1_024, 1_600)


@dataclass
class Growth:
    """Runs by number of rows and by tokens of a prompt, and what memory may come to at most."""

    by_rows: dict[int, Run]
    by_prompt: dict[int, Run]
    bound_bytes: int


def measure(course: Course, engine: Engine, options: Options, on_all: Run, num_prompts: int) -> Growth:
    """Every number of rows and every length in processes of its own, so that no run inherits another's memory.

    `on_all` is a run of the engine on all rows, also in processes of its own.
    """
    num_rows = len(course.work.rows)
    by_rows = {}
    for count in (max(1, num_rows // 8), num_rows // 4, num_rows // 2):
        by_rows[count] = course.run_alone(engine, options, course.work.sample(count))
        say(f"  {count} rows: {by_rows[count].seconds:.0f} s")
    by_rows[num_rows] = on_all
    by_prompt = {}
    for length in PROMPT_LENGTHS:
        by_prompt[length] = course.run_alone(engine, options, _random_rows(num_prompts, length))
        say(f"  prompts of {length} tokens: {by_prompt[length].seconds:.0f} s")
    return Growth(by_rows, by_prompt, bound_bytes(engine, options))


def bound_bytes(engine: Engine, options: Options) -> int:
    """Weights + budget of keys and values + 0.6 GB a process."""
    weights = weight_bytes(Path(engine.options["model"]), engine.options["dtype"], engine.options["quantization"])
    return weights + int(engine.options["kv_bytes"]) + _PROCESS_BYTES * int(options["processes"])


def weight_bytes(model: Path, dtype: str, quantization: str) -> int:
    """Bytes of the weights as the engine holds them: in int8 every matrix but the embedding has a byte a number."""
    total = 0
    for file in model.glob("*.safetensors"):
        with safe_open(file, framework="np") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it has no iterator of its own
                shape = tensors.get_slice(name).get_shape()
                count = shape[0] * (shape[1] if len(shape) > 1 else 1)
                is_product = len(shape) == 2 and "embed_in" not in name
                size = 1 if quantization == "int8" and is_product else 4 if dtype == "float32" else 2
                total += count * size
    return total


def _random_rows(count: int, num_prompt_tokens: int) -> list[Row]:
    """Prompts with nothing in common."""
    numbers = random.Random(num_prompt_tokens)
    ids = [tuple(numbers.randrange(5, 50_000) for _ in range(num_prompt_tokens)) for _ in range(count)]
    return [Row(f"p{i}", prompt, _NEW_TOKENS) for i, prompt in enumerate(ids)]
