"""Loading the continuous engine on a GPU: its backend, and how the memory is shared out."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from dolly_batch.engine.continuous.cache import CacheShape
from dolly_batch.engine.continuous.engine import SCORED_TOKENS
from dolly_batch.engine.continuous.gpu.engine import GPU_LIMITS, MAX_SEQUENCES, STEP_TOKENS, GpuEngine
from dolly_batch.engine.continuous.gpu.graphs import bucket_sizes
from dolly_batch.engine.continuous.gpu.pages import GATHERED_KEYS, Pages, shortest_reach
from dolly_batch.engine.continuous.gpu.self_test import Backend, choose_backend
from dolly_batch.engine.continuous.gpu.trial import Unsupported
from dolly_batch.engine.kernels.gpu import SPLIT_KEYS
from dolly_batch.engine.plain.engine import PlainEngine
from dolly_batch.engine.protocol import Engine
from dolly_batch.engine.weights.loading import LoadedModel
from dolly_batch.errors import ConfigError
from dolly_batch.models.sizing import FP8_FROM, lacks_fp8
from dolly_batch.records import EngineSpec

log = logging.getLogger("dolly_batch.engine")

_MIN_SEQUENCES = 64
MEMORY_FRACTION = 0.95  # of what is left after weights and activations; those are counted amply
_LIBRARY_BYTES = 512 << 20  # work space of cuBLAS, and what falls between the allocator's blocks
# Of one packed token, in hidden sizes, at the widest place of a layer: its inputs, queries, keys and values before and
# after the rotation, the attended values; then the inner layer of four times the size, twice.
_HIDDEN_SIZES = 16
_GRAPH_BYTES = 8 << 20  # of a recorded step's own, beside the memory that all of them share
_LEAST_SCORED_TOKENS = 256


def gpu_engine(spec: EngineSpec, loaded: LoadedModel, heartbeat: Callable[[], None]) -> Engine:
    """The continuous engine over a model on a GPU; the plain one, with a warning, where a part fails its self test.

    Raises ConfigError instead when `engine.kind` is fast, or `engine.kv_dtype` is not auto: the plain engine's answers
    would be those of another job.
    """
    if spec.kv_dtype == "fp8":
        check_fp8("engine.kv_dtype", loaded.device)
    try:
        backend = choose_backend(loaded, spec.kv_dtype)
    except Unsupported as unsupported:
        if spec.kv_dtype != "auto":
            raise ConfigError(
                f"engine.kv_dtype is {spec.kv_dtype!r}, which cannot run on this GPU with this model: {unsupported}; "
                "use auto"
            ) from unsupported
        if spec.kind == "fast":
            raise ConfigError(
                f"engine.kind is 'fast', which cannot run on this GPU: {unsupported}; use auto or plain"
            ) from unsupported
        log.warning("the fast engine cannot run on this GPU, the plain one runs instead: %s", unsupported)
        return PlainEngine(loaded, max_batch_tokens=spec.max_batch_tokens, heartbeat=heartbeat)
    if backend.why_not_varlen is not None:
        log.warning("prompts run one by one through torch's SDPA: %s", backend.why_not_varlen)
    if backend.why_not_fused is not None:
        log.warning("layers run without kernels between their products: %s", backend.why_not_fused)
    torch.cuda.empty_cache()
    free_bytes, _ = torch.cuda.mem_get_info(loaded.device)
    size = StepSize.within(free_bytes, loaded)
    num_bytes = kv_bytes(spec, CacheShape.of(loaded, spec.kv_dtype), free_bytes - size.working_bytes(loaded))
    return engine_over_pages(spec, loaded, backend, num_bytes, size, heartbeat)


def check_fp8(key: str, device: torch.device) -> None:
    """Raise ConfigError for a GPU that has no fp8, which the job's `key` asks for."""
    capability = torch.cuda.get_device_capability(device)
    if capability < FP8_FROM:
        raise ConfigError(lacks_fp8(key, torch.cuda.get_device_name(device), capability))


@dataclass(frozen=True, slots=True)
class StepSize:
    """The largest step: so many sequences, and so many tokens of prompts."""

    max_sequences: int = MAX_SEQUENCES
    step_tokens: int = STEP_TOKENS

    @classmethod
    def within(cls, free_bytes: int, loaded: LoadedModel) -> "StepSize":
        """The largest that takes no more than a quarter of what the weights leave free, or a small one."""
        size = cls()
        while size.max_sequences > _MIN_SEQUENCES and size.working_bytes(loaded) > free_bytes // 4:
            size = cls(size.max_sequences // 2, size.step_tokens // 2)
        return size

    def working_bytes(self, loaded: LoadedModel) -> int:
        """Bytes that such a step needs in addition to weights, keys and values."""
        config, item_bytes = loaded.folder.config, loaded.dtype.itemsize
        num_tokens = self.step_tokens + config.max_positions
        recorded = 2 * _HIDDEN_SIZES * self.max_sequences * config.hidden_size * item_bytes
        num_parts = self.max_sequences * config.num_heads * shortest_reach(config.max_positions) // SPLIT_KEYS
        recorded += 4 * num_parts * (config.head_size + 1) + _GRAPH_BYTES * len(bucket_sizes(self.max_sequences))
        # Logits as they come and in float32, whether they are finite, and their best.
        logits = (self.max_sequences + num_tokens // 64) * config.vocab_size * (item_bytes + 4 + 1 + 4)
        return self._prompt_bytes(loaded) + recorded + logits + _LIBRARY_BYTES

    def scored_tokens(self, loaded: LoadedModel) -> int:
        """Tokens that may be scored at once: scoring keeps all layers' keys and values in what prompts else take.

        Twice, since those of a prompt stay while its continuations run; at most as many as on a CPU.
        """
        config, item_bytes = loaded.folder.config, loaded.dtype.itemsize
        token_bytes = 2 * CacheShape.of(loaded).token_bytes + _HIDDEN_SIZES * config.hidden_size * item_bytes
        return max(_LEAST_SCORED_TOKENS, min(SCORED_TOKENS, self._prompt_bytes(loaded) // token_bytes))

    def _prompt_bytes(self, loaded: LoadedModel) -> int:
        """Activations of a step's prompts, and the keys and values that are gathered for them."""
        config = loaded.folder.config
        # The last prompt of a step is run whole, and decoding sequences with it.
        num_tokens = self.max_sequences + self.step_tokens + config.max_positions
        num_keys = GATHERED_KEYS + config.max_positions
        items = _HIDDEN_SIZES * num_tokens * config.hidden_size + 2 * num_keys * config.kv_size
        return items * loaded.dtype.itemsize


def engine_over_pages(
    spec: EngineSpec,
    loaded: LoadedModel,
    backend: Backend,
    num_bytes: int,
    size: StepSize,
    heartbeat: Callable[[], None],
) -> GpuEngine:
    """The engine with so many bytes of keys and values."""
    pages = Pages(
        CacheShape.of(loaded, spec.kv_dtype),
        num_bytes,
        max_sequences=size.max_sequences,
        max_positions=loaded.folder.max_positions,
        prefill=backend.prefill,
        use_kernel=backend.use_kernels,
    )
    engine = GpuEngine(
        loaded,
        pages,
        max_sequences=size.max_sequences,
        prefix_sharing=spec.prefix_sharing,
        limits=replace(GPU_LIMITS, step_tokens=size.step_tokens),
        use_kernels=backend.use_kernels,
        is_fused=backend.is_fused,
        use_graphs=backend.use_graphs,
        max_scored_tokens=size.scored_tokens(loaded),
        heartbeat=heartbeat,
    )
    engine.record_graphs()
    return engine


def kv_bytes(spec: EngineSpec, shape: CacheShape, spare_bytes: int) -> int:
    """Bytes for keys and values, of so many that weights and steps leave free: no more, whatever the job says."""
    fraction = MEMORY_FRACTION if spec.memory_fraction is None else spec.memory_fraction
    num_bytes = spec.kv_bytes or int(max(0, spare_bytes) * fraction)
    if num_bytes > max(0, spare_bytes):
        log.warning("engine.kv_bytes is %d, and this GPU has %d for keys and values", num_bytes, spare_bytes)
        num_bytes = max(0, spare_bytes)
    if spec.max_batch_tokens is not None:
        num_bytes = min(num_bytes, spec.max_batch_tokens * shape.token_bytes)
    return num_bytes
