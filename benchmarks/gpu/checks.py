"""`benchmarks/gpu/main.py --check`: is what the device answers right? For the first minutes on a GPU.

Every check runs, whatever became of the one before; each prints OK or FAILED, with the traceback. The references are
Hugging Face's own modules on the same device in the same dtype, one row at a time. Near ties may fall either way: a
token that differs must have been almost as good in the reference (`answers.compare`).
"""

import dataclasses
import gc
import itertools
import json
import random
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from benchmarks.gpu.answers import (
    answers,
    compare,
    generate_alone,
    mixed,
    next_logits,
    require,
    save,
    stats_of,
)
from benchmarks.gpu.eight_bits_checks import EIGHT_BITS_CHECKS
from benchmarks.gpu.int8_checks import INT8_CHECKS
from benchmarks.gpu.work import Shape, make_engine, random_model
from dolly_batch.engine.load import load_engine
from dolly_batch.engine.protocol import answer
from dolly_batch.records import EngineSpec, GenerationParams, Request, ScoreRequest, Scores
from dolly_batch.tiny import MODEL_FOLDER

SMALL = Shape(160, 2, 2, vocab_size=1200)  # heads of 80, as dolly-v2-3b has
WIDE = Shape(256, 2, 2, vocab_size=1200)  # heads of 128, as the others have
_SPREAD = 0.2  # of the weights: wide enough that answers differ from row to row
_ROOMY = 2**28


def main(device: torch.device, say: Callable[[str], None], words: Sequence[str] = ()) -> int:
    """Run the checks whose names hold one of the words, or all; 1 when one failed. The last line is JSON."""
    failed = []
    everything = {**CHECKS, **EIGHT_BITS_CHECKS, **INT8_CHECKS}
    checks = {name: check for name, check in everything.items() if not words or any(word in name for word in words)}
    for name, check in checks.items():
        started = time.monotonic()
        try:
            told = check(device)
        except Exception:
            failed.append(name)
            say(f"FAILED {name}")
            print(traceback.format_exc(), flush=True)
        else:
            say(f"OK     {name} ({time.monotonic() - started:.1f} s): {told}")
        gc.collect()
        if device.type == "cuda":
            try:
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
            except RuntimeError as error:
                say(f"the device is lost after {name}, nothing more can be checked: {error}")
                failed.append("device")
                break
    print(json.dumps({"checks": len(checks), "failed": failed}), flush=True)
    return 1 if failed else 0


def fast_engine_runs(device: torch.device) -> str:
    """The fast engine runs here: where it does not, a job goes on with the plain one, and so do the other checks."""
    names = set()
    for shape, dtype in itertools.product((SMALL, WIDE), (torch.float32, torch.bfloat16)):
        engine = make_engine(random_model(shape, device, dtype, _SPREAD), kind="fast", kv_bytes=_ROOMY)
        found = answers(engine, mixed(device, shape, 8))
        require(all(completion.failure is None for completion in found.values()), "rows failed")
        names.add(type(engine).__name__)
    return ", ".join(names)


def greedy(device: torch.device, shape: Shape, dtype: torch.dtype) -> str:
    """Greedy answers equal `generate`'s, row by row, but for near ties."""
    loaded = random_model(shape, device, dtype, _SPREAD)
    requests = mixed(device, shape, 24)
    reference = {request.key: generate_alone(loaded, request) for request in requests}
    return compare(loaded, requests, reference, answers(make_engine(loaded, kv_bytes=_ROOMY), requests))


def alone(device: torch.device, dtype: torch.dtype) -> str:
    """Rows get the same answers alone and among others, but for near ties."""
    loaded = random_model(SMALL, device, dtype, _SPREAD)
    requests = mixed(device, SMALL, 40)
    among = answers(make_engine(loaded, kv_bytes=_ROOMY), requests)
    by_itself = {}
    engine = make_engine(loaded, kv_bytes=_ROOMY)
    for request in requests[::5]:
        by_itself[request.key] = answers(engine, [request])[request.key].token_ids
    return compare(loaded, requests[::5], by_itself, among)


def shared_prefixes(device: torch.device) -> str:
    """Rows that begin alike answer as without sharing what they have in common."""
    loaded = random_model(SMALL, device, torch.float32, _SPREAD)
    draw = random.Random(3)
    common = draw.choices(range(SMALL.vocab_size), k=333)
    prompts = [(*common[: draw.choice([333, 200, 64])], *draw.choices(range(1200), k=20)) for _ in range(12)]
    params = GenerationParams(max_new_tokens=12, do_sample=False)
    requests = [Request(str(row), prompt, params) for row, prompt in enumerate(prompts)]
    apart = answers(make_engine(loaded, kv_bytes=_ROOMY, prefix_sharing=False), requests)
    engine = make_engine(loaded, kv_bytes=_ROOMY)
    told = compare(loaded, requests, {key: found.token_ids for key, found in apart.items()}, answers(engine, requests))
    return f"{told}; {stats_of(engine).get('num_shared_tokens', 0):.0f} tokens shared"


def little_memory(device: torch.device) -> str:
    """With room for three rows' keys and values all rows come out, with the same answers."""
    loaded = random_model(SMALL, device, torch.float32, _SPREAD)
    requests = mixed(device, SMALL, 40)
    roomy = answers(make_engine(loaded, kv_bytes=_ROOMY), requests)
    largest = max(len(request.prompt_ids) + request.params.max_new_tokens for request in requests)
    engine = make_engine(loaded, kv_bytes=3 * (largest + 256) * SMALL.token_bytes(4))
    found = answers(engine, requests)
    failures = [completion.failure for completion in found.values() if completion.failure]
    require(not failures, f"{len(failures)} rows failed, the first with {failures[:1]}")
    told = compare(loaded, requests, {key: completion.token_ids for key, completion in roomy.items()}, found)
    return f"{told}; stats {stats_of(engine)}"


def memory_runs_out(device: torch.device) -> str:
    """With all memory of the device taken, rows are answered or fail one by one; given back, all are answered."""
    if device.type != "cuda":
        return "only on a GPU"
    shape = dataclasses.replace(WIDE, vocab_size=50_280)
    loaded = random_model(shape, device, torch.bfloat16, _SPREAD)
    engine = make_engine(loaded, kv_bytes=2**30)
    requests = mixed(device, shape, 200)
    answers(engine, requests[:8])
    torch.cuda.empty_cache()
    hogs = []
    for size in (2**30, 2**26, 2**23):
        while torch.cuda.mem_get_info(device)[0] > size + 2**25:
            try:
                hogs.append(torch.empty(size, dtype=torch.uint8, device=device))
            except torch.OutOfMemoryError:
                break
    tight = answers(engine, requests)
    statuses = Counter(found.failure.status if found.failure else "ok" for found in tight.values())
    require(set(statuses) <= {"ok", "out_of_memory"}, f"statuses {statuses}")
    hogs.clear()
    torch.cuda.empty_cache()
    found = answers(engine, requests)
    require(all(completion.failure is None for completion in found.values()), "rows fail with memory given back")
    return f"{dict(statuses)} with no memory left; stats {stats_of(engine)}"


def spoilt_rows(device: torch.device) -> str:
    """A token whose embedding is NaN fails the rows that hold it and leaves nothing behind for others."""
    loaded = random_model(SMALL, device, torch.float32, _SPREAD)
    requests = [request for request in mixed(device, SMALL, 40) if 7 not in request.prompt_ids]
    clean = answers(make_engine(loaded, kv_bytes=_ROOMY), requests)
    clean = {key: found for key, found in clean.items() if 7 not in found.token_ids}
    requests = [request for request in requests if request.key in clean]
    loaded.model.gpt_neox.embed_in.weight.data[7] = float("nan")
    bad = [dataclasses.replace(request, key=f"bad {request.key}") for request in requests[::3]]
    bad = [dataclasses.replace(request, prompt_ids=(*request.prompt_ids, 7)) for request in bad]
    engine = make_engine(loaded, kv_bytes=_ROOMY)
    for _ in range(2):  # the second time in places that the spoilt rows left
        found = answers(engine, [*requests, *bad])
        for request in bad:
            failure = found[request.key].failure
            require(failure is not None and failure.status == "model_error", f"a spoilt row gave {failure}")
        told = compare(loaded, requests, {key: one.token_ids for key, one in clean.items()}, found)
    return f"{len(bad)} spoilt rows failed, the others: {told}"


def sampled(device: torch.device, params: GenerationParams) -> str:
    """First tokens are distributed as Hugging Face's warpers have it (chi-squared), and come again the same."""
    loaded = random_model(dataclasses.replace(SMALL, vocab_size=300), device, torch.float32, 0.05)
    prompt = tuple(range(12))
    params = dataclasses.replace(params, max_new_tokens=1)
    requests = [
        Request(str(seed), prompt, params, seed=seed * 7919) for seed in range(6000 if device.type == "cuda" else 200)
    ]
    engine = make_engine(loaded, kv_bytes=_ROOMY)
    first, second = answers(engine, requests), answers(engine, requests)
    same = sum(first[key].token_ids == second[key].token_ids for key in first)
    require(same >= 0.999 * len(requests), f"only {same} of {len(requests)} rows came again the same")
    scores = next_logits(loaded, prompt)[None].float()
    ids = torch.tensor([prompt], device=device)
    for warper in (
        TemperatureLogitsWarper(params.temperature),
        *([TopKLogitsWarper(params.top_k)] if params.top_k else []),
        *([TopPLogitsWarper(params.top_p)] if params.top_p < 1 else []),
    ):
        scores = warper(ids, scores)
    expected = (scores[0].double().softmax(dim=-1) * len(requests)).cpu()
    counts = torch.zeros(len(expected), dtype=torch.float64)
    for completion in first.values():
        counts[completion.token_ids[0]] += 1
    # A draw on the very edge of top-p may fall on the other side of it.
    outside = counts[expected == 0].sum().item()
    require(outside <= 3, f"{outside:.0f} draws of tokens that the warpers strike out")
    often = expected >= 5
    chi = ((counts - expected)[often] ** 2 / expected[often]).sum().item()
    degrees = int(often.sum()) - 1
    limit = degrees + 5 * (2 * max(1, degrees)) ** 0.5
    require(chi <= limit, f"chi-squared {chi:.0f} with {degrees} degrees of freedom, at most {limit:.0f}")
    return f"chi-squared {chi:.0f} with {degrees} degrees of freedom; {same} of {len(requests)} the same again"


def scores(device: torch.device) -> str:
    """Log-probabilities of continuations equal those of a forward for each."""
    loaded = random_model(SMALL, device, torch.float32, _SPREAD)
    draw = random.Random(5)
    requests = []
    for row in range(12 if device.type == "cuda" else 4):
        prompt = tuple(draw.choices(range(1200), k=draw.randint(1, 300)))
        continuations = tuple(tuple(draw.choices(range(1200), k=draw.randint(1, 6))) for _ in range(5))
        requests.append(ScoreRequest(str(row), prompt, continuations))
    worst = 0.0
    found = {one.key: one for one in answer(make_engine(loaded, kv_bytes=_ROOMY), requests) if isinstance(one, Scores)}
    for request in requests:
        for continuation, log_prob in zip(request.continuations, found[request.key].log_probs, strict=True):
            ids = torch.tensor([[*request.prompt_ids, *continuation]], device=device)
            with torch.inference_mode():
                logits = loaded.model(input_ids=ids, use_cache=False).logits[0, -len(continuation) - 1 : -1]
            wanted = logits.double().log_softmax(-1).gather(-1, ids[0, -len(continuation) :, None]).sum().item()
            worst = max(worst, abs(wanted - log_prob))
    require(worst <= 5e-3, f"differs by {worst:.1e}")
    return f"at most {worst:.1e} off"


def through_the_door(device: torch.device) -> str:
    """The small model of the package, loaded from its folder as a job loads it, answers as the same on the CPU."""
    engines = [
        load_engine(EngineSpec("auto", str(MODEL_FOLDER), dtype="float32", processes=1, kv_bytes=_ROOMY), where)
        for where in (str(device), "cpu")
    ]
    encoder: Any = engines[0].encoder
    texts = ["Name three colours.", "Is this review good or bad?", "Who is Anna?", "Write a short letter."]
    params = GenerationParams(max_new_tokens=40, do_sample=False)
    requests = [Request(text, tuple(encoder.encode(text, None)), params) for text in texts]
    found, wanted = (answers(engine, requests) for engine in engines)
    same = sum(found[key].text == wanted[key].text for key in wanted)
    require(same >= len(texts) - 1, f"only {same} of {len(texts)} answers are those of the CPU")
    return f"{same} of {len(texts)} answers are those of the CPU, for example {found[texts[0]].text[:60]!r}"


def loads_from_a_folder(device: torch.device) -> str:
    """A model of some size goes from its files onto the device in the dtype that `auto` means there."""
    shape = dataclasses.replace(WIDE, vocab_size=1600)
    with tempfile.TemporaryDirectory() as name:
        folder = save(random_model(shape, torch.device("cpu"), torch.bfloat16), Path(name))
        engine = load_engine(EngineSpec("auto", str(folder), processes=1, kv_bytes=_ROOMY), str(device))
        found = answers(engine, mixed(device, shape, 8))
    require(all(completion.failure is None for completion in found.values()), "rows failed")
    return f"{type(engine).__name__}, {len(found)} rows"


_TOP_P = GenerationParams(temperature=0.9, top_p=0.8)
_SMALL_TOP_P = GenerationParams(temperature=1.0, top_p=0.05)  # refuses most draws, and ends in the search
_TOP_K = GenerationParams(temperature=1.2, top_p=0.95, top_k=40)
CHECKS: dict[str, Callable[[torch.device], str]] = (
    {"the fast engine": fast_engine_runs}
    | {
        f"greedy, heads of {shape.hidden_size // shape.num_heads}, {str(dtype).removeprefix('torch.')}": (
            lambda device, shape=shape, dtype=dtype: greedy(device, shape, dtype)  # type: ignore[misc]
        )
        for shape, dtype in itertools.product((SMALL, WIDE), (torch.float32, torch.bfloat16))
    }
    | {
        "alone and among others, float32": lambda device: alone(device, torch.float32),
        "alone and among others, bfloat16": lambda device: alone(device, torch.bfloat16),
        "prefixes in common": shared_prefixes,
        "little memory": little_memory,
        "memory runs out": memory_runs_out,
        "spoilt rows": spoilt_rows,
        "sampled, top-p": lambda device: sampled(device, _TOP_P),
        "sampled, small top-p": lambda device: sampled(device, _SMALL_TOP_P),
        "sampled, top-k": lambda device: sampled(device, _TOP_K),
        "scores": scores,
        "the small model": through_the_door,
        "a model's folder": loads_from_a_folder,
    }
)
