"""Count the tokens of databricks-dolly-15k: what `benchmarks/gpu.py` takes the lengths of its rows from.

    python -m benchmarks.record_lengths SHARED_DATA benchmarks/dolly15k_lengths.csv

Writes how many rows have which lengths, and nothing of what they say: `prompt_tokens,answer_tokens,rows`, sorted. A
prompt is Dolly's, answers are capped at 256 tokens, and rows whose prompt leaves no room for 256 are left out, as a job
would set them aside.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

from tokenizers import Tokenizer

from dolly_batch.prompt import PromptEncoder

MAX_POSITIONS = 2048
MAX_ANSWER = 256


def main() -> None:
    """Write the file and say what is in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    given = parser.parse_args()
    tokenizer = given.data / "tokenizer/dolly_v2_tokenizer_derived.json"
    encoder = PromptEncoder(Tokenizer.from_file(str(tokenizer)), tokenizer)
    lines = (given.data / "dolly15k/databricks-dolly-15k.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    prompts = encoder.encode_batch([(row["instruction"], row["context"] or None) for row in rows])
    answers = encoder.encode_texts([row["response"] for row in rows])
    lengths = Counter(
        (len(prompt), max(1, min(len(answer), MAX_ANSWER)))
        for prompt, answer in zip(prompts, answers, strict=True)
        if len(prompt) + MAX_ANSWER <= MAX_POSITIONS
    )
    table = "".join(f"{prompt},{answer},{count}\n" for (prompt, answer), count in sorted(lengths.items()))
    given.output.write_text("prompt_tokens,answer_tokens,rows\n" + table, encoding="ascii")
    totals = [sum(pair[side] * count for pair, count in lengths.items()) for side in (0, 1)]
    print(f"{lengths.total():,} of {len(rows):,} rows, {totals[0]:,} prompt tokens, {totals[1]:,} answer tokens")


if __name__ == "__main__":
    main()
