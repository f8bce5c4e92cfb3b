"""Make `tiny` from nothing: tokenizer, model, training, evaluation. Run `python -m tools.tiny.train`.

A GPT-NeoX of 2.4 million parameters; hidden matrices learn by Muon, which needs about half the steps of AdamW here, the
rest by AdamW. Loss on the response alone, with its end marker. Products are in bfloat16 where the CPU has it. Ends
with exit code 1 when a bar is missed.
"""

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from dolly_batch.engine.weights.loading import resolve_dtype
from dolly_batch.tiny import MODEL_FOLDER
from tools.tiny import texts
from tools.tiny.measure import Model, answer_rows, share_ended, share_right
from tools.tiny.tokenizer import encode_row, save_tokenizer, train_tokenizer

VOCAB_SIZE = 1536
MAX_LENGTH = 2048
SEED = 7
ROWS_PER_STEP = 32
STEPS_PER_POOL = 16
MUON_RATE, ADAMW_RATE = 4e-3, 3e-3
IGNORED = -100
BARS = {"sentiment": 0.9, "field": 0.8, "ended by itself": 0.95}

Batch = tuple[torch.Tensor, torch.Tensor]


def new_model() -> Model:
    """A GPT-NeoX with random weights. The published Dolly's config in small."""
    torch.manual_seed(SEED)
    config = GPTNeoXConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=768,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=True,
    )
    model: Model = GPTNeoXForCausalLM(config)
    # Copying a token is quicker to learn where the two embeddings start equal.
    model.get_output_embeddings().weight.data.copy_(model.get_input_embeddings().weight.data)
    # On a CPU the fused attention's backward pass is several times slower than plain products and a softmax.
    model.set_attn_implementation("eager")
    return model


def batches(tokenizer: Tokenizer, steps: int) -> Iterator[Batch]:
    """`steps` batches of ids and labels, both [rows, tokens], rows of about equal length together, padded at the right.

    Pads are never attended to by a real token under a causal mask, and their labels are ignored.
    """
    generator = torch.Generator().manual_seed(SEED)
    for pool_at in range(0, steps, STEPS_PER_POOL):
        rows = texts.training_rows(SEED * 100_003 + pool_at, pool_at / steps, ROWS_PER_STEP * STEPS_PER_POOL)
        encoded = sorted((encode_row(tokenizer, row) for row in rows), key=lambda pair: len(pair[0]) + len(pair[1]))
        for at in torch.randperm(STEPS_PER_POOL, generator=generator).tolist():
            yield _padded(encoded[at * ROWS_PER_STEP : (at + 1) * ROWS_PER_STEP])


def _padded(pairs: list[tuple[list[int], list[int]]]) -> Batch:
    width = max(len(prompt) + len(response) for prompt, response in pairs)
    ids, labels = torch.zeros(len(pairs), width, dtype=torch.long), torch.full((len(pairs), width), IGNORED)
    for line, (prompt, response) in enumerate(pairs):
        ids[line, : len(prompt) + len(response)] = torch.tensor(prompt + response)
        # The label of a position is the token after it.
        labels[line, len(prompt) - 1 : len(prompt) + len(response) - 1] = torch.tensor(response)
    return ids, labels


def loss_of(model: Model, batch: Batch, dtype: torch.dtype) -> torch.Tensor:
    """Mean cross-entropy of the response tokens; the output layer runs on their positions alone."""
    ids, labels = batch
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        hidden = model.gpt_neox(ids, use_cache=False).last_hidden_state
        counted = labels != IGNORED
        logits = model.get_output_embeddings()(hidden[counted])
    return functional.cross_entropy(logits.float(), labels[counted])


def _optimizers(model: Model) -> list[torch.optim.Optimizer]:
    matrices = [weight for weight in model.gpt_neox.layers.parameters() if weight.ndim == 2]
    chosen = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=ADAMW_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(model: Model, tokenizer: Tokenizer, steps: int) -> None:
    """Train in place: warm-up over 5 % of the steps, then a cosine to nothing."""
    dtype = resolve_dtype("auto", torch.device("cpu"))
    optimizers = _optimizers(model)
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    model.train()
    start, seen, mean = time.monotonic(), 0, 0.0
    for step, batch in enumerate(batches(tokenizer, steps)):
        factor = min(1.0, (step + 1) / (0.05 * steps)) * 0.5 * (1 + math.cos(math.pi * step / steps))
        loss = loss_of(model, batch, dtype)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad()
        seen += batch[0].numel()
        mean = float(loss.detach()) if step == 0 else 0.95 * mean + 0.05 * float(loss.detach())
        if (step + 1) % 100 == 0:
            seconds = time.monotonic() - start
            speed = f"{seen / seconds:,.0f} tokens/s  {seconds:.0f} s"
            print(f"step {step + 1}/{steps}  loss {mean:.3f}  {speed}", flush=True)
    model.eval()


def evaluate(model: Model, tokenizer: Tokenizer, num_rows: int = 100) -> bool:
    """Print what the model reaches on `num_rows` rows of each kind, with unseen names; whether it passes every bar."""
    kinds = {
        "sentiment": texts.sentiment_rows(num_rows, seed=1001),
        "field": texts.field_rows(num_rows, seed=1002),
        "JSON": texts.json_rows(num_rows, seed=1003),
        "any family, same words": texts.mixed_rows(num_rows, seed=1004),
    }
    answers = {kind: answer_rows(model, tokenizer, rows) for kind, rows in kinds.items()}
    reached = {kind: share_right(answers[kind], rows) for kind, rows in kinds.items()}
    reached["ended by itself"] = share_ended(answers["sentiment"] + answers["field"])
    for kind, share in reached.items():
        print(f"{kind}: {share:.1%}" + (f" (bar {BARS[kind]:.0%})" if kind in BARS else ""))
    return all(reached[kind] >= bar for kind, bar in BARS.items())


def write_manifest(folder: Path) -> None:
    """Write `manifest.json`; the revision is made of the files' contents."""
    files = {}
    for path in sorted(folder.iterdir()):
        if path.name != "manifest.json":
            content = path.read_bytes()
            files[path.name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    lines = "".join(f"{name} {entry['sha256']}\n" for name, entry in files.items())
    revision = hashlib.sha256(lines.encode()).hexdigest()[:16]
    manifest = {"format": 1, "source": "dolly_batch tiny", "revision": revision, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def main() -> int:
    """Make the model folder; 0 when every bar is passed."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--out", type=Path, default=MODEL_FOLDER, help="the folder to write (default: the package's)")
    options.add_argument("--steps", type=int, default=2000)
    options.add_argument("--threads", type=int, default=2)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    start = time.monotonic()
    chosen.out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(texts.training_rows(SEED, 0.5, 20_000), VOCAB_SIZE)
    model = new_model()
    print(f"{sum(weight.numel() for weight in model.parameters()):,} parameters, {tokenizer.get_vocab_size()} tokens")
    train(model, tokenizer, chosen.steps)
    model.to(torch.bfloat16).save_pretrained(chosen.out)
    for path in chosen.out.glob("*.safetensors"):
        # It is saved readable to its owner alone; an installed package is read by others.
        path.chmod(0o644)
    save_tokenizer(tokenizer, chosen.out, MAX_LENGTH)
    write_manifest(chosen.out)
    written: Model = GPTNeoXForCausalLM.from_pretrained(chosen.out, dtype=torch.float32)
    passed = evaluate(written.eval(), tokenizer)
    print(f"{'passed' if passed else 'MISSED'} in {time.monotonic() - start:.0f} s; written to {chosen.out}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
