"""Self test of the continuous engine on a GPU: each part is compared with torch's own attention before it is used.

Kernels are compiled on the user's machine, by what is installed there, for the GPU and the model at hand: so they are
tested there, with the model's shape and dtype, once when it is loaded. Where one part fails, `Unsupported` names it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

import torch
from torch import Tensor

from dolly_batch.engine.continuous.cache import CacheShape, install
from dolly_batch.engine.continuous.gpu.attention import (
    Packing,
    Prefiller,
    decode_by_sdpa,
    prefill_by_sdpa,
    round_up_keys,
    varlen_prefill,
)
from dolly_batch.engine.continuous.gpu.graphs import Decoder
from dolly_batch.engine.continuous.gpu.layer_checks import check_gate, check_norms, check_rotation, check_storage
from dolly_batch.engine.continuous.gpu.layer_pages import as_bytes
from dolly_batch.engine.continuous.gpu.layers import forward_of
from dolly_batch.engine.continuous.gpu.pages import PAGE_TOKENS, Pages, shortest_reach
from dolly_batch.engine.continuous.gpu.trial import Unsupported, assert_close, random_heads
from dolly_batch.engine.continuous.sequence import CachedSequence, Chunk, Step
from dolly_batch.engine.eight_bits import quantize
from dolly_batch.engine.sampling import MAX_ATTEMPTS, choose_tokens, uniform
from dolly_batch.engine.weights.loading import LoadedModel
from dolly_batch.records import GenerationParams, Request

Result = TypeVar("Result")

# Relative distance that one attention may have from the same in float64, and a whole model, in int8 perhaps, from
# itself through another attention. A hidden state of another row or position is off by about 1.
_ATTENTION_ERROR = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}
_MODEL_ERROR = {torch.float32: 2e-2, torch.float16: 0.2, torch.bfloat16: 0.2}
_EIGHT_BITS_ERROR = 0.2  # the same with keys and values in 8 bits
_ROUNDED_WEIGHTS_ERROR = 1e-2  # of attention to values of 8 bits: its weights may be in bfloat16, for any dtype
# Rows at and around the borders of pages, of blocks of keys and of parts.
_POSITIONS = (0, 1, 15, 16, 17, 31, 32, 33, 100, 511, 512, 513, 1_100, 2_100)


@dataclass(frozen=True, slots=True)
class Backend:
    """What attends for prompts, and whether kernels, those between a layer's products too, and recorded steps are used;
    why not, where the plain way runs instead.
    """

    prefill: Prefiller = prefill_by_sdpa
    why_not_varlen: str | None = None
    use_kernels: bool = False
    is_fused: bool = False
    why_not_fused: str | None = None
    use_graphs: bool = False


def choose_backend(loaded: LoadedModel, kv_dtype: str = "auto") -> Backend:
    """Test every part with a model on its GPU, its keys and values stored as the job says (`engine.kv_dtype`).

    Raises Unsupported where the continuous engine cannot run there.
    """
    shape = CacheShape.of(loaded, kv_dtype)
    if shape.dtype not in _ATTENTION_ERROR:
        raise Unsupported(f"the decode kernel does not compute in {str(shape.dtype).removeprefix('torch.')}")
    if loaded.device.index is not None:
        torch.cuda.set_device(loaded.device)  # kernels, events and graphs are launched on the current one
    max_positions = loaded.folder.max_positions
    _run_check("the decode kernel", lambda: check_decode(shape, max_positions))
    _run_check("the kernel that copies pages", lambda: check_copies(shape))
    _run_check("the kernels that store and gather keys and values", lambda: check_storage(shape))
    _run_check("the sampling kernel", lambda: check_choice(loaded.folder.vocab_size, loaded.dtype, loaded.device))
    prefill: Prefiller = prefill_by_sdpa
    why_not_varlen = why_not_fused = None
    try:
        found = _run_check("varlen_attn", varlen_prefill)
        _run_check("varlen_attn", lambda: check_prefill(found, shape))
        prefill = found
    except Unsupported as unsupported:
        why_not_varlen = str(unsupported)
    try:
        _run_check("a layer's kernels", lambda: check_layers(loaded, shape))
        _run_check("fused layers", lambda: check_model(loaded, prefill, kv_dtype, is_fused=True, use_graphs=True))
    except Unsupported as unsupported:
        why_not_fused = str(unsupported)
        _run_check("a recorded decode step", lambda: check_model(loaded, prefill, kv_dtype, use_graphs=True))
    is_fused = why_not_fused is None
    return Backend(prefill, why_not_varlen, True, is_fused, why_not_fused, use_graphs=True)


def check_layers(loaded: LoadedModel, shape: CacheShape) -> None:
    """Compare what runs between the products of this model's layers with torch's own operations."""
    base, config, is_llama = loaded.model.base_model, loaded.folder.config, loaded.folder.architecture.llama_layers
    has_norms = is_llama and hasattr(base.layers[0].self_attn, "q_norm")
    check_rotation(shape, 2 * len(base.rotary_emb.inv_freq), has_norms=has_norms)
    check_norms(config.hidden_size, shape.dtype, shape.device, centers=not is_llama)
    if is_llama:
        check_gate(config.inner_size, shape.dtype, shape.device)


def check_decode(shape: CacheShape, max_positions: int, tried: Sequence[int] = _POSITIONS) -> None:
    """Compare the decode kernel with attention in float64, over scattered pages; all others hold NaN."""
    from dolly_batch.engine.kernels.gpu import SPLIT_KEYS
    from dolly_batch.engine.kernels.gpu.decode import paged_decode

    numbers = torch.Generator(shape.device).manual_seed(1)
    positions = [position for position in tried if position < max_positions]
    tables, pages, scales = _scattered_pages(shape, positions, numbers)
    query = random_heads(shape, (len(positions), shape.num_heads), numbers)
    slots = torch.arange(len(positions), device=shape.device)
    at = torch.tensor(positions, device=shape.device)
    scaling = shape.head_size**-0.5
    wide = pages.double() if scales is None else pages
    expected = decode_by_sdpa(query.double(), wide, tables, slots, at, scaling, 1, scales)

    def decode(rows: Sequence[int], num_splits: int, parts_a_program: int = 1) -> Tensor:
        index = torch.tensor(rows, device=shape.device)
        own = (slots[index], at[index], scaling, num_splits, scales, parts_a_program)
        return paged_decode(query[index], pages, tables, *own)

    num_splits = round_up_keys(max(positions) + 1) // SPLIT_KEYS
    found = decode(range(len(positions)), num_splits)
    error = _ATTENTION_ERROR[shape.dtype]
    if scales is not None and shape.dtype != torch.float32:
        error = max(error, _ROUNDED_WEIGHTS_ERROR)
    for row, position in enumerate(positions):
        assert_close(found[row], expected[row], error, f"with {position + 1} keys")
    if not torch.equal(decode(range(len(positions)), num_splits, 3), found):
        raise Unsupported("a sequence's numbers change with the parts that a program takes")
    # A sequence that one part holds: the same bits alone and among all, whether others need more parts or none does.
    short = [row for row, position in enumerate(positions) if position < SPLIT_KEYS]
    together = decode(short, 1)
    for number, row in enumerate(short):
        others = (together[number], decode([row], 1)[0], decode([row], max(2, num_splits))[0])
        if not all(torch.equal(other, found[row]) for other in others):
            raise Unsupported(f"a sequence's numbers change with its neighbours, with {positions[row] + 1} keys")


def check_copies(shape: CacheShape) -> None:
    """Compare copied pages with what torch copies, and see that no other page changes."""
    from dolly_batch.engine.kernels.gpu.copy_pages import copy_pages

    numbers = torch.Generator(shape.device).manual_seed(4)
    pages = random_heads(shape, (2, 2, 9, shape.num_kv_heads, PAGE_TOKENS), numbers)
    if shape.eight_bits is not None:
        pages = as_bytes(quantize(pages, shape.eight_bits)[0])
    expected = pages.clone()
    sources, targets = (torch.tensor(each, device=shape.device) for each in ([4, 1, 4], [2, 7, 8]))
    expected[:, :, targets] = expected[:, :, sources]
    copy_pages(pages, sources, targets)
    if not torch.equal(pages, expected):
        raise Unsupported("pages differ from what was copied")


def check_prefill(prefill: Prefiller, shape: CacheShape) -> None:
    """Compare attention over packed prompts, some of them with cached keys, with attention in float64."""
    numbers = torch.Generator(shape.device).manual_seed(2)
    num_queries, num_before = (1, 7, 64, 129, 300, 20), (0, 0, 0, 0, 0, 0)
    for before in (num_before, (0, 9, 16, 0, 23, 200)):
        num_keys = [own + known for own, known in zip(num_queries, before, strict=True)]
        packing = Packing.of(num_queries, num_keys, shape.device)
        # Head by head, as the modules give them.
        query = random_heads(shape, (shape.num_heads, sum(num_queries)), numbers).transpose(0, 1)
        key, value = (
            random_heads(shape, (shape.num_kv_heads, sum(num_keys)), numbers).transpose(0, 1) for _ in range(2)
        )
        scaling = shape.head_size**-0.5
        expected = prefill_by_sdpa(query.double(), key.double(), value.double(), packing, scaling)
        found = prefill(query, key, value, packing, scaling)
        start = 0
        for own, keys in zip(num_queries, num_keys, strict=True):
            rows = slice(start, start + own)
            error = _ATTENTION_ERROR[shape.dtype]
            assert_close(found[rows], expected[rows], error, f"with {own} tokens after {keys - own}")
            start += own


def check_choice(vocab_size: int, dtype: torch.dtype, device: torch.device, num_rows: int = 32) -> None:
    """Compare the sampling kernel with `choose_tokens`."""
    from dolly_batch.engine.kernels.gpu.sample import choose

    numbers = torch.Generator(device).manual_seed(3)
    top_ps = (1.0, 0.92, 0.5, 0.02)  # the last refuses most draws, and ends in the search
    params = [
        GenerationParams(do_sample=row % 5 > 0, temperature=0.7, top_p=top_ps[row % 4]) for row in range(num_rows)
    ]
    # Flat enough that hundreds of tokens are likely, and that the smallest top_p keeps more than one.
    logits = torch.randn((len(params), vocab_size), generator=numbers, device=device).to(dtype)
    seeds = torch.arange(len(params), device=device)
    expected = choose_tokens(logits, params, seeds.tolist(), seeds.tolist())
    found = choose(
        logits,
        torch.tensor([row.temperature * row.do_sample for row in params], dtype=torch.float64, device=device),
        torch.tensor([row.top_p for row in params], dtype=torch.float64, device=device),
        torch.full((len(params),), -torch.inf, device=device),
        uniform(seeds[:, None], seeds[:, None], torch.arange(MAX_ATTEMPTS + 1, device=device)),
    )
    num_other = int((found != expected).sum())
    if num_other > 1:  # one, where a number falls within rounding of a border
        raise Unsupported(f"{num_other} of {len(params)} tokens are others than they should be")


def check_model(
    loaded: LoadedModel,
    prefill: Prefiller,
    kv_dtype: str = "auto",
    *,
    use_graphs: bool,
    use_kernels: bool = True,
    is_fused: bool = False,
) -> None:
    """Compare the whole model over pages, of 8 bits perhaps, with Hugging Face's own: prompts, then two tokens."""
    max_positions = min(256, loaded.folder.max_positions)
    install(loaded.model)
    pages = Pages(
        CacheShape.of(loaded, kv_dtype),
        0,
        max_sequences=4,
        max_positions=max_positions,
        prefill=prefill,
        use_kernel=use_kernels,
        reach=shortest_reach(loaded.folder.max_positions),
    )
    last_ids = torch.zeros(len(pages.block_tables), dtype=torch.int64, device=loaded.device)
    forward = forward_of(loaded, is_fused=is_fused)
    hidden_size = loaded.folder.config.hidden_size
    decoder = Decoder(forward, hidden_size, pages, last_ids, 4, record_at=1 if use_graphs else None)
    texts = [[7 * (at + length) % loaded.folder.vocab_size for at in range(length)] for length in (5, 18, 33)]
    rows = [CachedSequence(Request(str(row), tuple(text[:-2]), GenerationParams(3))) for row, text in enumerate(texts)]
    step = Step()
    for row in rows:
        pages.allocate(row, row.max_tokens)
        step.chunks.append(Chunk(row, 0, row.num_tokens))
    with torch.inference_mode():
        ids = [token for text in texts for token in text[:-2]]
        positions = [position for text in texts for position in range(len(text) - 2)]
        _, attention = pages.plan(step)
        last = [end - 1 for end in accumulate(len(text) - 2 for text in texts)]
        found = [forward(pages.upload(ids), pages.upload(positions), attention, pages.upload(last))]
        for number in (2, 1):  # the first run is recorded, the second one replayed
            slots = [row.location.slot for row in rows]
            last_ids[pages.upload(slots)] = pages.upload([text[-number] for text in texts])
            found.append(decoder.run(slots, [len(text) - number for text in texts]).clone())
        if use_graphs and not decoder.num_graphs:
            raise Unsupported(f"not recorded: {decoder.why_not}")
        for number, text in enumerate(texts):
            expected = loaded.model.base_model(input_ids=pages.upload(text)[None], use_cache=False).last_hidden_state[0]
            for back, part in zip((3, 2, 1), found, strict=True):
                error = _MODEL_ERROR[loaded.dtype] if kv_dtype == "auto" else _EIGHT_BITS_ERROR
                stored = "" if kv_dtype == "auto" else f", with keys and values in {kv_dtype}"
                assert_close(part[number], expected[-back], error, f"at token {len(text) - back} of a prompt{stored}")


def _scattered_pages(
    shape: CacheShape, positions: list[int], numbers: torch.Generator
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Block tables and pages of sequences that have keys up to these positions, and scales; all else is NaN."""
    widths = [position // PAGE_TOKENS + 1 for position in positions]
    num_pages = sum(widths) + 3
    order = (torch.randperm(num_pages - 1, generator=torch.Generator().manual_seed(5)) + 1).tolist()
    tables = torch.zeros((len(positions), max(widths)), dtype=torch.int32)
    pages = torch.full(
        (2, num_pages, shape.num_kv_heads, PAGE_TOKENS, shape.head_size),
        torch.nan,
        dtype=shape.dtype,
        device=shape.device,
    )
    for row, (width, position) in enumerate(zip(widths, positions, strict=True)):
        own = [order.pop() for _ in range(width)]
        tables[row, :width] = torch.tensor(own)
        for number, page in enumerate(own):
            filled = min(PAGE_TOKENS, position + 1 - number * PAGE_TOKENS)
            pages[:, page, :, :filled] = random_heads(shape, (2, shape.num_kv_heads, filled), numbers)
    scales = None
    if shape.eight_bits is not None:
        pages, scales = quantize(pages, shape.eight_bits)
    return tables.to(shape.device), pages, scales


def _run_check(name: str, check: Callable[[], Result]) -> Result:
    """Run a check; put whatever goes wrong in one sentence. Compilers raise many kinds of errors."""
    try:
        return check()
    except Unsupported as unsupported:
        raise Unsupported(f"{name}: {unsupported}") from unsupported
    except Exception as error:
        text = str(error).strip().partition("\n")[0][:300]
        raise Unsupported(f"{name}: {type(error).__name__}: {text}") from error
