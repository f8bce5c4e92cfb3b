"""What the engine should reach on GPUs that are not here: the real scheduler's steps, and a model of a step's time.

    python -m benchmarks.gpu.calculator                          all models and devices, some minutes
    python -m benchmarks.gpu.calculator --models 12b --devices H200 --parts      and where the time goes

Work is the whole of databricks-dolly-15k's lengths, `max_new_tokens` 256, answers that end by themselves. Rows in
flight, steps and prompts come from `simulation.py`. Everything else is arithmetic with the constants below: bytes,
operations, launches and instructions were counted, shares of a peak are guesses. Nothing here was measured on a GPU; it
is for holding the first real run against.

A share is the floor of `rates.py` (bf16) over the estimated time: numbers of 8 bits can come to 100 % and more.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

from benchmarks.gpu.between import LAUNCHES
from benchmarks.gpu.devices import DEVICES, MODELS, Device, Model
from benchmarks.gpu.simulation import SimulatedStep, Simulation, simulate
from benchmarks.gpu.work import NUM_PREFIX, SHAPES, Work

_CARRIER = SHAPES["smoke"]  # rows in flight depend on the number of pages, not on what is in them
# Shares of what a device can do, as kernels of their kind reach them.
_COPY_SHARE, _PRODUCT_SHARE = 0.9, 0.71  # of the data sheet: what a copy and a large product measure
_GEMM_SHARE, _WEIGHTS_SHARE = 0.87, 0.9  # of those: tiles that do not fill waves; weights that are read
_KEYS_SHARE = 0.775  # of a copy: nothing is fetched ahead
# Of prompts' products: attention, and tiles that do not fill waves. An earlier estimate had a sixth for all that is no
# product: this is what it leaves for 12b on an H200 when bytes and launches are counted.
_PROMPT_REST = 0.09
_INSTRUCTIONS_A_CYCLE = 2.5  # of four
# Of the decode kernel's loop for 32 keys and values, all warps' (`builds.py`, at 9.0): by the heads' size, `kv_dtype`,
# and whether a program serves all heads of a group. Before heads were read in pieces, any was padded to 128.
LOOP_INSTRUCTIONS = {
    (64, "auto", False): 4 * 158, (64, "int8", False): 4 * 182, (64, "auto", True): 606, (64, "int8", True): 1_180,
    (80, "auto", False): 4 * 197, (80, "int8", False): 4 * 213,
    (128, "auto", False): 4 * 318, (128, "int8", False): 4 * 292, (128, "auto", True): 820, (128, "int8", True): 1_900,
}  # fmt: skip
_WHOLE_LOOP_INSTRUCTIONS = {"auto": 4 * 371, "int8": 4 * 330}
_EMPTY_PROGRAM_S, _ENDED_PROGRAM_S = 2.6e-9, 0.3e-9  # on 132 multiprocessors, with 430 instructions or 20
_LAUNCH_S = 1.25e-6  # one after the other
_DOUBLE_INSTRUCTIONS, _FEW_DOUBLE_INSTRUCTIONS, _SAMPLER_PASSES = 35, 3, 3.3  # of an element and pass
_STEP_S = 0.25e-3  # uploads, index kernels, the first launch
_COPIES_S, _COPIES_AT_ONCE_S = 0.2e-3, 0.01e-3  # of an admitted row's partial page: a launch a layer, or one
_RECORDING_S, _NUM_RECORDED = 0.2, 38
_FP8_PRODUCTS, _STEP_BYTES = 1.75, 3_500_000_000
_ROWS_A_LAYER, _INPUTS_A_LAYER = 4, 7  # products whose rows are quantized to fp8, and their inputs in hidden sizes


@dataclass(frozen=True, slots=True)
class Engine:
    """What the engine does about the costs; the defaults are those of the first version."""

    ends_empty_parts: bool = False
    records_at_load: bool = False
    copies_at_once: bool = False
    samples_in_float32: bool = False
    mixes_steps: bool = False
    kv_dtype: str = "auto"
    joins_groups: bool = False
    is_fused: bool = False
    reads_pieces: bool = False  # heads in pieces, and the parts behind a row's first by one program
    fp8_weights: bool = False


_ONE = Engine(ends_empty_parts=True, records_at_load=True)
_TWO = replace(_ONE, copies_at_once=True, samples_in_float32=True)
_THREE = replace(_TWO, mixes_steps=True, joins_groups=True)
_FOUR = replace(_THREE, is_fused=True, reads_pieces=True)
STAGES = {
    "as first written": Engine(),
    "no empty parts, recorded at load": _ONE,
    "+ copies at once, sampler in float32": _TWO,
    "+ mixed steps": replace(_TWO, mixes_steps=True),
    "+ a program for a group": _THREE,
    "+ fused layers, heads in pieces": _FOUR,
    "+ int8 keys and values": replace(_FOUR, kv_dtype="int8"),
    "+ fp8 weights": replace(_FOUR, kv_dtype="int8", fp8_weights=True),
}


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds by part, for the whole table."""

    seconds: dict[str, float]
    floor_s: float
    mean_rows: float
    num_steps: int

    @property
    def total_s(self) -> float:
        return sum(self.seconds.values())

    @property
    def share(self) -> float:
        return self.floor_s / self.total_s


def estimate(model: Model, device: Device, engine: Engine, work: Work) -> Estimate | None:
    """The time of the work; None where the model does not fit the device, or its numbers are not the device's."""
    kv_bytes = _kv_bytes(model, device)
    if kv_bytes < 2_048 * model.token_bytes() or (engine.fp8_weights and not device.has_fp8):
        return None
    num_tokens = int(kv_bytes / model.token_bytes(engine.kv_dtype)) // 512 * 512
    run = _simulated(work, num_tokens, 2 if engine.mixes_steps else 4)
    seconds: dict[str, float] = {}
    for step in run.steps:
        for part, taken in _step_seconds(model, device, engine, step):
            seconds[part] = seconds.get(part, 0.0) + taken
    if not engine.records_at_load:
        seconds["recording"] = _RECORDING_S * _NUM_RECORDED
    return Estimate(seconds, floor(model, device, work, kv_bytes), run.mean_rows, len(run.steps))


def floor(model: Model, device: Device, work: Work, kv_bytes: float) -> float:
    """As `rates.floor`, in bf16, for models with grouped keys too."""
    copy, flops = _COPY_SHARE * device.bytes_s, _PRODUCT_SHARE * device.flops_s
    head = model.vocab_size * model.hidden_size
    context = max(1.0, work.decoded_context)
    rows = max(1, min(len(work.lengths), int(kv_bytes / (context * model.token_bytes()))))
    pairs = sum(prompt**2 for prompt, _ in work.lengths)
    prefill = 2 * model.layer_weights * work.prefilled_tokens + 2 * model.hidden_size * model.num_layers * pairs
    prefill += 2 * head * len(work.lengths)
    step_bytes = 2 * (model.layer_weights + head) + rows * context * model.token_bytes()
    step_flops = 2 * rows * (model.layer_weights + head + 2 * model.hidden_size * model.num_layers * context)
    return prefill / flops + work.decoded_tokens / rows * max(step_bytes / copy, step_flops / flops)


def _kv_bytes(model: Model, device: Device) -> float:
    free = 0.97 * device.memory - model.weight_bytes
    return 0.95 * (free - min(_STEP_BYTES, free / 4))


@cache
def _simulated(work: Work, num_tokens: int, admit_every: int) -> Simulation:
    return simulate(_CARRIER, work, num_tokens * _CARRIER.token_bytes(2), admit_every=admit_every)


def _step_seconds(model: Model, device: Device, engine: Engine, step: SimulatedStep) -> Iterator[tuple[str, float]]:
    """The parts of a step, in seconds."""
    copy = _COPY_SHARE * device.bytes_s
    products = _PRODUCT_SHARE * device.flops_s * (_FP8_PRODUCTS if engine.fp8_weights else 1.0)
    if step.num_prompt_tokens:
        yield from _prompt_seconds(model, device, engine, step, products)
    rows = step.num_rows
    head = model.vocab_size * model.hidden_size
    if rows:
        in_bf16 = _PRODUCT_SHARE * device.flops_s  # the output layer, always
        products_s = 2 * rows * (model.layer_weights / products + head / in_bf16) / _GEMM_SHARE
        num_bytes = model.layer_weights * (1 if engine.fp8_weights else 2) + 2 * head
        is_mixed = engine.mixes_steps and step.num_prompt_tokens > 0
        yield "products", max(products_s, 0.0 if is_mixed else num_bytes / (_WEIGHTS_SHARE * copy))
        yield from _attention_seconds(model, device, engine, step, copy)
        yield (
            "elementwise",
            _moved_seconds(model, device, rows * model.between(engine.is_fused, engine.kv_dtype).decoding),
        )
        yield "elementwise", _quantizing_seconds(model, device, engine, rows)
    launches = LAUNCHES[model.is_llama, engine.is_fused]
    in_step = launches.decoding
    if step.num_prompt_tokens:
        apart = (launches.decoding if rows else 0) + launches.prompts
        in_step = launches.both if rows and engine.mixes_steps else apart
    in_step += _ROWS_A_LAYER if engine.fp8_weights else 0
    yield "elementwise", _LAUNCH_S * in_step * model.num_layers
    chosen = rows + step.num_prompts
    doubles = _FEW_DOUBLE_INSTRUCTIONS if engine.samples_in_float32 else _DOUBLE_INSTRUCTIONS
    passes = chosen * model.vocab_size * _SAMPLER_PASSES
    yield "sampler", passes * doubles / device.doubles_s + 2 * 2 * passes / copy
    yield "per step", _STEP_S


def _prompt_seconds(
    model: Model, device: Device, engine: Engine, step: SimulatedStep, products: float
) -> Iterator[tuple[str, float]]:
    flops = 2 * model.layer_weights * step.num_prompt_tokens + 4 * model.hidden_size * model.num_layers * step.num_pairs
    flops += 2 * model.vocab_size * model.hidden_size * step.num_prompts
    if engine.is_fused:
        flops -= 2 * model.spared_weights * (step.num_prompt_tokens - step.num_prompts)
    rest = flops / (_PRODUCT_SHARE * device.flops_s) * _PROMPT_REST  # no faster with fp8 products
    yield "prompts", flops / products + rest + _quantizing_seconds(model, device, engine, step.num_prompt_tokens)
    between, num_tokens = model.between(engine.is_fused, engine.kv_dtype), step.num_prompt_tokens
    moved = num_tokens * between.prompts + between.gathered(num_tokens, NUM_PREFIX * step.num_prompts)
    if engine.mixes_steps:
        moved += 2 * (num_tokens + step.num_rows)  # both parts' attended values, joined
    yield "prompts", _moved_seconds(model, device, moved)
    copies = _COPIES_AT_ONCE_S if engine.copies_at_once else _COPIES_S * model.num_layers / 36
    yield "page copies", copies * step.num_prompts


def _moved_seconds(model: Model, device: Device, hidden_sizes: float) -> float:
    """So many in each layer."""
    return hidden_sizes * 2 * model.hidden_size * model.num_layers / (_COPY_SHARE * device.bytes_s)


def _quantizing_seconds(model: Model, device: Device, engine: Engine, num_tokens: int) -> float:
    """Of the inputs of a layer's products, read in two bytes and written in one."""
    num_bytes = 3 * _INPUTS_A_LAYER * model.hidden_size * model.num_layers * num_tokens
    return num_bytes / (_COPY_SHARE * device.bytes_s) if engine.fp8_weights else 0.0


def _attention_seconds(
    model: Model, device: Device, engine: Engine, step: SimulatedStep, copy: float
) -> Iterator[tuple[str, float]]:
    """Keys and values once from memory, and once for each program that reads them through its registers."""
    read = step.num_keys * model.token_bytes(engine.kv_dtype)
    group = model.num_heads / model.num_kv_heads
    joint = engine.joins_groups and group > 1
    loops = step.num_keys / 32 * model.num_layers * model.num_kv_heads * (1 if joint else group)
    instructions = _WHOLE_LOOP_INSTRUCTIONS[engine.kv_dtype]
    if joint or engine.reads_pieces:
        instructions = LOOP_INSTRUCTIONS[model.head_size, engine.kv_dtype, joint]
    issued = loops * instructions / (device.cycles_s * _INSTRUCTIONS_A_CYCLE)
    yield "keys and values", max(read / (_KEYS_SHARE * copy), issued)
    programs_a_row = (model.num_kv_heads if joint else model.num_heads) * model.num_layers
    empty = (step.num_rows * (1 if engine.reads_pieces and not joint else 3) - step.num_long) * programs_a_row
    each = _ENDED_PROGRAM_S if engine.ends_empty_parts else _EMPTY_PROGRAM_S
    yield "empty parts", max(0, empty) * each * 132 * 1.75e9 / device.cycles_s
    parts = 1 if engine.ends_empty_parts else 4
    joined = step.num_rows * model.num_heads * model.num_layers
    yield "joining parts", joined * parts * model.head_size * 4 * 2 / copy


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--devices", nargs="+", default=list(DEVICES), choices=DEVICES)
    parser.add_argument("--rows", type=int, default=14_968)
    parser.add_argument("--parts", action="store_true", help="and the seconds of each part")
    given = parser.parse_args()
    work = Work.whole_table().part(given.rows)
    print("Estimates: nothing of this was measured on a GPU.\n")
    print("| model | device | rows in flight | steps | floor s | " + " | ".join(STAGES) + " |")
    print("|---" * (5 + len(STAGES)) + "|")
    for name in given.models:
        for device in given.devices:
            print(_line(MODELS[name], DEVICES[device], work, given.parts), flush=True)


def _line(model: Model, device: Device, work: Work, parts: bool) -> str:
    found = {stage: estimate(model, device, engine, work) for stage, engine in STAGES.items()}
    first = found["as first written"]
    if first is None:
        return f"| {model.name} | {device.name} | does not fit |" + " |" * (2 + len(STAGES))
    shares = [f"{each.share:.0%}, {each.total_s:.0f} s" if each else "" for each in found.values()]
    head = f"| {model.name} | {device.name} | {first.mean_rows:.0f} | {first.num_steps} | {first.floor_s:.0f} | "
    lines = [head + " | ".join(shares) + " |"]
    if parts:
        lines += [f"    {stage}: {_seconds(each)}" for stage, each in found.items() if each]
    return "\n".join(lines)


def _seconds(found: Estimate) -> str:
    listed: Sequence[tuple[str, float]] = sorted(found.seconds.items(), key=lambda part: -part[1])
    rows = f"{found.mean_rows:.0f} rows, {found.num_steps} steps; "
    return rows + ", ".join(f"{part} {taken:.1f}" for part, taken in listed)


if __name__ == "__main__":
    main()
