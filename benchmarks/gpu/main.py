"""Dolly's models on one GPU, against what the GPU can do and against Hugging Face's `generate`.

    python benchmarks/gpu/first_minutes.py OUT                all of it, whatever fails, for the first minutes
    python benchmarks/gpu/main.py --check                     correctness first: some minutes, nothing timed
    python benchmarks/gpu/main.py --models 12b --profile      the numbers: under 10 minutes
    python benchmarks/gpu/main.py --models 12b --products     products in bf16 and int8, at the sizes of decoding
    python benchmarks/gpu/main.py --models smoke --device cpu --rows 16      that it runs

Needs torch, transformers and this checkout; no data, no weights. Models have Dolly's shapes and random weights, made on
the device. The rows have the lengths of databricks-dolly-15k's (`work.DOLLY_15K`) and random ids, and each runs
to its own length, at most 256 tokens; they are sampled as Dolly's pipeline does, or greedy.

The floor is the least time of this work on this device: arithmetic of the prompts at the rate of the model's own
products, and memory traffic of the answers at the rate of a copy, both measured here, with as many rows in flight as
there is memory for keys and values. `share` is floor / measured. `all` is the time for the whole table, in
proportion to its floor. What is worth most is done first, and printed when it is known; the last line is JSON.
"""

import argparse
import gc
import json
import logging
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # as a script, without the package installed

import torch

from benchmarks.gpu import checks, padded, products, rates, top_kernels
from benchmarks.gpu.answers import stats_of
from benchmarks.gpu.run import drive, finished
from benchmarks.gpu.work import SHAPES, Shape, Work, end_by_themselves, make_engine, random_model
from dolly_batch.engine.eight_bits import EIGHT_BITS
from dolly_batch.engine.protocol import Engine
from dolly_batch.engine.weights.int8_cpu import quantize
from dolly_batch.engine.weights.loading import LoadedModel
from dolly_batch.records import Request

GOALS = {"12b": 0.55, "3b": 0.40}  # shares of the floor
_WARM_ROWS = 384
_RUN_SHARE, _PADDED_SHARE = 0.5, 0.75  # of a model's time, by when our run and the padded one have to be over
_STARTED = time.monotonic()


def main() -> int:
    """Check, or time the models one after the other."""
    given = arguments()
    logging.basicConfig(level=logging.WARNING)  # why an engine falls back on something slower
    device = torch.device("cuda:0" if given.device == "cuda" else given.device)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            say("torch sees no GPU; --device cpu --models smoke tries this without one")
            return 1
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = False
    say(f"torch {torch.__version__}, {_describe(device)}")
    if given.check is not None:
        return checks.main(device, say, given.check)
    deadline = _STARTED + 60 * given.minutes
    results: dict[str, Any] = {}
    table = []
    for number, name in enumerate(given.models):
        ends = time.monotonic() + (deadline - time.monotonic()) / (len(given.models) - number)
        results[name] = time_model(name, given, device, ends, table)
    print(
        "\n| model | numbers | rows | answer tokens/s | rows/s | floor s | measured s | share | all, min | peak GiB |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    print("\n".join(table))
    print(json.dumps({"device": _describe(device), "torch": torch.__version__, "models": results}), flush=True)
    return 0


def time_model(
    name: str, given: argparse.Namespace, device: torch.device, ends: float, table: list[str]
) -> dict[str, Any]:
    """Everything about one model, within its time; what is not reached is said and left out."""
    shape, dtype = SHAPES[name], getattr(torch, given.dtype)
    began = time.monotonic()
    work = Work.whole_table().part(given.rows)
    requests = work.requests(shape.vocab_size, sampled=not given.greedy, ending=given.ending)
    loaded = random_model(shape, device, dtype)
    say(f"{name}: made in {time.monotonic() - began:.0f} s; {len(requests):,} rows, {work.answer_tokens:,} to answer")
    result: dict[str, Any] = {}
    if given.products:
        result["products"] = products.time_products(shape, device, dtype, ends, say)
        return result
    eight_bits = "fp8" if given.fp8 else "int8"
    for quantization in ("none", *([eight_bits] if given.int8 or given.fp8 else [])):
        kind = given.dtype if quantization == "none" else quantization
        if quantization != "none":
            if time.monotonic() > ends:
                say(f"{name}: no time left for {quantization}")
                break
            quantize(loaded.model, device, dtype, quantization=quantization)
            _free(device)
        elif given.only_8_bits:
            continue
        run_ends = began + (ends - began) * (_RUN_SHARE if quantization == "none" else 0.95)
        result[kind] = _time_engine(name, kind, loaded, shape, work, requests, given, run_ends, table)
        if quantization == "none" and not given.no_padded and not given.ending:
            padded_ends = began + (ends - began) * _PADDED_SHARE
            result.update(_time_padded(name, loaded, shape, work, given, padded_ends, result[kind]["tokens_per_s"]))
    return result


def _time_engine(
    name: str,
    kind: str,
    loaded: LoadedModel,
    shape: Shape,
    work: Work,
    requests: list[Request],
    given: argparse.Namespace,
    ends: float,
    table: list[str],
) -> dict[str, Any]:
    """Our engine: its rates, its run, its share of the floor."""
    device, int8 = loaded.device, kind in ("int8", "fp8")
    device_rates = rates.measure(shape, device, loaded.dtype, kind)
    say(
        f"{name} {kind}: copy {device_rates.copy_bytes_s / 1e12:.2f} TB/s, "
        f"products {device_rates.flops_s / 1e12:.0f} T/s"
    )
    _free(device)
    free_bytes = _free_bytes(device)
    settings: dict[str, Any] = {"kv_dtype": given.kv_dtype}
    if given.memory_fraction is not None:
        settings["memory_fraction"] = given.memory_fraction
    engine = make_engine(loaded, kv_bytes=None if _is_cuda(device) else free_bytes, **settings)
    # Where an engine does not say what it has for keys and values, it is taken to have nine tenths.
    kv_bytes = stats_of(engine).get("kv_bytes", 0.9 * free_bytes)
    _warm_up(engine, work, shape, given, device)
    if given.ending:
        end_by_themselves(engine, work)
    say(f"{name} {kind}: {type(engine).__name__} is warm, at {time.monotonic() - _STARTED:.0f} s")
    if _is_cuda(device):
        torch.cuda.reset_peak_memory_stats(device)
    run = drive(engine, requests, device, say, ends)
    done = work if not run.is_cut else finished(run, work)
    item_bytes = loaded.dtype.itemsize
    least = rates.floor(shape, done, device_rates, 1 if int8 else item_bytes, item_bytes, kv_bytes)
    everything = Work.whole_table()
    least_of_all = rates.floor(shape, everything, device_rates, 1 if int8 else item_bytes, item_bytes, kv_bytes)
    share = least.total_s / run.seconds
    all_rows_s = least_of_all.total_s / share
    table.append(
        f"| {name} | {kind} | {run.num_rows:,}{' (cut)' if run.is_cut else ''} | {run.tokens_s:,.0f} "
        f"| {run.num_rows / run.seconds:.1f} | {least.total_s:.1f} | {run.seconds:.1f} | {share:.1%} "
        f"| {all_rows_s / 60:.1f} | {run.peak_bytes / 2**30:.1f} |"
    )
    say(table[-1])
    say(
        f"{name} {kind}: floor {least.prefill_s:.1f} s of prompts + {least.decode_s:.1f} s of answers with "
        f"{least.rows_in_flight} rows in flight ({least.overlapped_s:.1f} s if they overlapped, "
        f"{least.serial_s:.1f} s if bytes and arithmetic did not); stats {run.stats}"
    )
    for part, floor_s in (("prefill_s", least.prefill_s), ("decode_s", least.decode_s)):
        if run.stats.get(part):
            say(f"{name} {kind}: {part} {run.stats[part]:.1f} by the engine's clock, the floor {floor_s:.1f}")
    if name in GOALS and not int8:
        say(f"{name} {kind}: share {share:.1%}, the goal is {GOALS[name]:.0%}")
    if name == "12b":
        say(f"{name} {kind}: all {len(everything.lengths):,} rows in {all_rows_s / 60:.1f} min, the goal is 5.5")
    if run.num_failed:
        say(f"{name} {kind}: {run.num_failed} rows FAILED")
    if given.profile:
        rows = work.part(min(given.rows, 1000)).requests(shape.vocab_size, sampled=not given.greedy, seed=2)
        top_kernels.print_kernels(engine, rows, device, say)
    return {
        **asdict(run),
        "tokens_per_s": run.tokens_s,
        "rates": asdict(device_rates),
        "floor": asdict(least),
        "share": share,
        "all_rows_s": all_rows_s,
        "num_all_rows": len(everything.lengths),
        "engine": type(engine).__name__,
    }


def _warm_up(engine: Engine, work: Work, shape: Shape, given: argparse.Namespace, device: torch.device) -> None:
    """Some rows with short answers: kernels are built, graphs recorded, the allocator has its blocks."""
    rows = work.part(min(_WARM_ROWS, given.rows))
    short = Work(tuple((prompt, min(answer, 12)) for prompt, answer in rows.lengths))
    drive(engine, short.requests(shape.vocab_size, sampled=not given.greedy, seed=1), device, say)


def _time_padded(
    name: str, loaded: LoadedModel, shape: Shape, work: Work, given: argparse.Namespace, ends: float, ours: float
) -> dict[str, Any]:
    """Padded `generate` on a part of the rows; the engine, and its memory, are gone by now."""
    _free(loaded.device)
    part = work.part(given.padded_rows).requests(shape.vocab_size, sampled=not given.greedy)
    token_bytes = shape.token_bytes(loaded.dtype.itemsize)
    try:
        best = padded.run_padded(loaded, part, token_bytes, ends, say)
    except Exception as error:  # the peer's failure must not take our numbers with it
        say(f"{name}: padded generate failed: {error!r}")
        return {"padded": {"error": repr(error)}}
    if best is None:
        return {}
    say(f"{name}: ours is {ours / best.tokens_s:.1f} x padded generate (the goal is 5)")
    return {"padded": {**asdict(best), "tokens_per_s": best.tokens_s}, "ratio": ours / best.tokens_s}


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command's arguments, or these words'."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["12b"], choices=sorted(SHAPES))
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--minutes", type=float, default=9.0, help="of the whole command; models share them")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--memory-fraction", type=float, help="of the free memory, for keys and values")
    parser.add_argument(
        "--kv-dtype", default="auto", choices=["auto", *EIGHT_BITS], help="the floor stays that of the model's own"
    )
    parser.add_argument("--padded-rows", type=int, default=512)
    parser.add_argument("--no-padded", action="store_true", help="without Hugging Face's generate")
    parser.add_argument("--int8", action="store_true", help="the same rows with the model in int8, last")
    parser.add_argument("--fp8", action="store_true", help="the same in fp8, instead")
    parser.add_argument("--only-8-bits", action="store_true", help="with --int8 or --fp8: nothing else")
    parser.add_argument(
        "--ending", action="store_true", help="rows may have 256 tokens and end by themselves, as a job's do"
    )
    parser.add_argument("--greedy", action="store_true", help="greedy instead of sampled")
    parser.add_argument("--profile", action="store_true", help="print the kernels that take longest")
    parser.add_argument("--products", action="store_true", help="time single products instead of the engine")
    parser.add_argument("--check", nargs="*", metavar="WORD", help="check that answers are right: all, or those named")
    return parser.parse_args(words)


def say(text: str) -> None:
    """Print at once, with the seconds since the start."""
    print(f"[{time.monotonic() - _STARTED:5.0f} s] {text}", flush=True)


def _describe(device: torch.device) -> str:
    if not _is_cuda(device):
        return "CPU"
    found = torch.cuda.get_device_properties(device)
    return f"{found.name}, {found.total_memory / 2**30:.0f} GiB, compute capability {found.major}.{found.minor}"


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if _is_cuda(device) else 2**28


def _is_cuda(device: torch.device) -> bool:
    return device.type == "cuda"


def _free(device: torch.device) -> None:
    gc.collect()
    if _is_cuda(device):
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
