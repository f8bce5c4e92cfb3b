"""Classifying banking77 by the trie against scoring each (prompt, label) pair on its own, in one process.

    python benchmarks/classify.py SHARED_DATA [--model FOLDER] [--rows N] [--pairs N] [--list-labels]

`--model` is a folder, or `tiny` (the default), or `random-70m`: pythia-70m's shape with random weights and GPT-NeoX's
own tokenizer. The pairs are scored 77 at a time, all of one text, padded, with the output layer at the label's tokens
alone: what a careful user writes with transformers. They take so long that they are timed on the first `--pairs`
texts, right after the trie on the same texts; all `--rows` then go through the trie. Scores of both are compared.
"""

import argparse
import csv
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from dolly_batch.engine.plain.engine import PlainEngine
from dolly_batch.engine.protocol import answer
from dolly_batch.engine.weights.loading import LoadedModel, load_model
from dolly_batch.models.folder import write_manifest
from dolly_batch.prompt import PromptEncoder
from dolly_batch.records import Completion, ScoreRequest, Scores
from dolly_batch.tasks.classify import default_instruction
from dolly_batch.tiny import MODEL_FOLDER


def random_70m(data: Path, folder: Path) -> Path:
    """A folder of pythia-70m's shape with random weights."""
    config = json.loads((data / "configs" / "pythia-70m.derived.config.json").read_text())
    shape = {key: value for key, value in config.items() if not key.startswith("_")} | {"vocab_size": 50304}
    torch.manual_seed(0)
    GPTNeoXForCausalLM(GPTNeoXConfig(**shape)).save_pretrained(folder)
    shutil.copyfile(data / "tokenizer" / "dolly_v2_tokenizer_derived.json", folder / "tokenizer.json")
    write_manifest(folder, source="random", revision="0")
    return folder


def banking77(loaded: LoadedModel, data: Path, num_rows: int, list_labels: bool) -> list[ScoreRequest]:
    """The requests of the first rows, as the task `classify` makes them."""
    encoder: Any = loaded.encoder
    assert isinstance(encoder, PromptEncoder)
    labels = [
        name.replace("_", " ") for name in json.loads((data / "classify" / "banking77_categories.json").read_text())
    ]
    listed = default_instruction(labels, lambda text: len(encoder.encode_text(text)), loaded.folder.max_positions)
    instruction = listed if list_labels else "Classify the text."
    with (data / "classify" / "banking77_test.csv").open(newline="", encoding="utf-8") as file:
        rows = [row["text"] for row in csv.DictReader(file)][:num_rows]
    prompts = encoder.encode_batch([(instruction, text) for text in rows])
    ends = tuple(tuple(ids) for ids in encoder.encode_responses(labels))
    return [ScoreRequest(str(number), tuple(prompt), ends) for number, prompt in enumerate(prompts)]


@torch.inference_mode()
def score_pairs(loaded: LoadedModel, request: ScoreRequest) -> list[float]:
    """Each label behind a prompt of its own, in one padded batch."""
    width = max(len(label) for label in request.continuations)
    ids = [[*request.prompt_ids, *label[:-1]] for label in request.continuations]
    padded = [row + [request.prompt_ids[0]] * (len(request.prompt_ids) + width - 1 - len(row)) for row in ids]
    logits = loaded.model(input_ids=torch.tensor(padded), use_cache=False, logits_to_keep=width).logits
    log_probs = logits.log_softmax(-1, dtype=torch.float32)
    return [
        sum(float(log_probs[row, place, token]) for place, token in enumerate(label))
        for row, label in enumerate(request.continuations)
    ]


def _largest(found: Completion | Scores, values: Sequence[float]) -> float:
    assert isinstance(found, Scores)
    return max(abs(a - b) for a, b in zip(found.log_probs, values, strict=True))


def main() -> None:
    """Print both times, their ratio, and the largest difference of scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--rows", type=int, default=3080)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--list-labels", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = MODEL_FOLDER if given.model == "tiny" else Path(given.model)
        if given.model == "random-70m":
            folder = random_70m(given.data, Path(temporary) / "model")
        loaded = load_model(folder, dtype="float32", device="cpu")
        requests = banking77(loaded, given.data, given.rows, given.list_labels)
        list(answer(PlainEngine(loaded), requests[:2]))  # warm
        score_pairs(loaded, requests[0])
        few = requests[: given.pairs]
        started = time.process_time()
        scores = {found.key: found for found in answer(PlainEngine(loaded), few)}
        trie_s = time.process_time() - started
        started = time.process_time()
        expected = {request.key: score_pairs(loaded, request) for request in few}
        pairs_s = time.process_time() - started
        differences = [_largest(scores[key], values) for key, values in expected.items()]
        exact = PlainEngine(load_model(folder, dtype="float64", device="cpu"))
        (truth,) = answer(exact, few[:1])
        assert isinstance(truth, Scores)
        from_truth = _largest(scores[truth.key], truth.log_probs), _largest(truth, expected[truth.key])
        started = time.process_time()
        count = sum(1 for _ in answer(PlainEngine(loaded), requests)) if given.rows > given.pairs else 0
        all_s = time.process_time() - started
    prompt = sum(len(request.prompt_ids) for request in few) / len(few)
    print(
        f"{given.model}, {len(few[0].continuations)} labels, prompts of {prompt:.0f} tokens (CPU time of the process)"
    )
    print(
        f"pairs, {len(few)} texts: {pairs_s:.2f} s; trie, the same texts: {trie_s:.2f} s; ratio {trie_s / pairs_s:.4f}"
    )
    print(f"largest difference of a score: {max(differences):.2e}")
    print(f"from float64, on one text: the trie {from_truth[0]:.2e}, the pairs {from_truth[1]:.2e}")
    if count:
        print(f"all {count} texts by the trie: {all_s:.1f} s, {1000 * all_s / count:.2f} ms a text")


if __name__ == "__main__":
    main()
