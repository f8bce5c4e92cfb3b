"""What it is worth to lay out rows by how they begin: 20 reviews of each product, in the order of either layout.

    PYTHONPATH=. python benchmarks/layout.py [--model FOLDER] [--products N] [--reviews N] [--new-tokens N]
        [--shard-rows N] [--words LEAST,MOST] [--processes N] [--rounds N]

Each product's text stands in front of its reviews, as a template `{product} {review}` would put it. Strewn: shards by a
hash of the row, longest first, as where nothing is shared. Together: by product, as `plan/beginnings` lays them out.
One engine, with the processes that this machine has, answers both orders in turn; printed are the share of the prompt
tokens that were not computed again, rows a second, and the share of the engine's slots in use; at the end how much
faster one order is, beside how many fewer tokens it computes: more than that no layout can bring. `--words` is what a
product's text has. With `--processes 1` seconds are of the CPU, which other work on the machine changes less.
"""

import argparse
import hashlib
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dolly_batch.engine.load import load_engine
from dolly_batch.engine.processes.pool import WorkerPool
from dolly_batch.engine.protocol import generate
from dolly_batch.prompt import PromptEncoder
from dolly_batch.records import EngineSpec, GenerationParams, Request
from dolly_batch.tiny import MODEL_FOLDER

WORDS = [
    "river",
    "stone",
    "market",
    "paper",
    "cloud",
    "garden",
    "winter",
    "engine",
    "orange",
    "silver",
    "window",
    "bridge",
    "letter",
    "music",
]
COUNTS = ("num_prompt_tokens", "num_shared_tokens", "num_answer_tokens", "slot_steps", "slot_steps_used", "num_steps")


def prompts(
    num_products: int, num_reviews: int, num_words: tuple[int, int], encoder: PromptEncoder
) -> list[tuple[int, tuple[int, ...]]]:
    """(product, token ids) of each row."""
    numbers = random.Random(7)

    def words(count: int) -> str:
        return " ".join(numbers.choice(WORDS) for _ in range(count))

    rows = []
    for product in range(num_products):
        text = f"Product {product}: {words(numbers.randint(*num_words))}."
        for _ in range(num_reviews):
            review = words(numbers.randint(20, 60))
            rows.append((product, tuple(encoder.encode(f"{text}\nReview: {review}\nIs the review good?", None))))
    return rows


def strewn(rows: Sequence[tuple[int, tuple[int, ...]]], shard_rows: int) -> list[int]:
    """Shard after shard, each of rows by a hash, the longest first."""
    num_shards = max(1, len(rows) // shard_rows)
    shard = [int(hashlib.sha256(str(number).encode()).hexdigest(), 16) % num_shards for number in range(len(rows))]
    return sorted(range(len(rows)), key=lambda number: (shard[number], -len(rows[number][1])))


def together(rows: Sequence[tuple[int, tuple[int, ...]]], shard_rows: int) -> list[int]:
    """Shard after shard, each of whole products, the one with the longest prompt first."""
    num_shards = max(1, len(rows) // shard_rows)
    longest: dict[int, int] = {}
    for product, ids in rows:
        longest[product] = max(longest.get(product, 0), len(ids))

    def place(number: int) -> tuple[int, int, int, int]:
        product, ids = rows[number]
        return product * num_shards // (rows[-1][0] + 1), -longest[product], product, -len(ids)

    return sorted(range(len(rows)), key=place)


def run(engine: Any, requests: Sequence[Request]) -> tuple[dict[str, float], float, dict[str, str]]:
    """Counts of the engine, seconds, and the answers by key."""
    before = engine.stats()
    clock = time.monotonic if isinstance(engine, WorkerPool) else time.process_time
    began = clock()
    answers = {found.key: found.text for found in generate(engine, requests)}
    seconds = clock() - began
    after = engine.stats()
    return {name: after[name] - before[name] for name in COUNTS}, seconds, answers


def main() -> None:
    """Print a line for each run, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL_FOLDER)
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--products", type=int, default=200)
    parser.add_argument("--reviews", type=int, default=20)
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--shard-rows", type=int, default=500)
    parser.add_argument("--words", default="60,140")
    parser.add_argument("--processes", type=int, help="of the engine; by default one for each core")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    least, most = map(int, arguments.words.split(","))
    encoder = PromptEncoder.from_folder(arguments.model)
    rows = prompts(arguments.products, arguments.reviews, (least, most), encoder)
    params = GenerationParams(arguments.new_tokens, do_sample=False)
    spec = EngineSpec("fast", str(arguments.model), quantization=arguments.quantization, processes=arguments.processes)
    engine = load_engine(spec)
    orders = {
        name: order(rows, arguments.shard_rows) for name, order in {"strewn": strewn, "together": together}.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in orders}
    computed: dict[str, float] = {}
    texts: dict[str, dict[str, str]] = {}
    for number in range(arguments.rounds):
        for name, order in orders.items():
            requests = [Request(f"{at}", rows[at][1], params) for at in order]
            counts, took, texts[name] = run(engine, requests)
            seconds[name].append(took)
            computed[name] = counts["num_prompt_tokens"] + counts["num_answer_tokens"]
            total = counts["num_prompt_tokens"] + counts["num_shared_tokens"]
            print(
                f"round {number}, {name}: {counts['num_shared_tokens'] / total:.1%} of {total:,.0f} prompt tokens "
                f"shared, {len(rows) / took:.1f} rows/s, occupancy "
                f"{counts['slot_steps_used'] / max(1, counts['slot_steps']):.1%}, {counts['num_steps']:,.0f} steps",
                flush=True,
            )
    print(
        f"together / strewn: {min(seconds['strewn']) / min(seconds['together']):.2f} times as fast, "
        f"{computed['strewn'] / computed['together']:.2f} times fewer tokens computed"
    )
    print(f"equal answers: {texts['strewn'] == texts['together']}")
    if isinstance(engine, WorkerPool):
        engine.close()


if __name__ == "__main__":
    main()
