"""Fast engines for tests, and answers by key."""

from collections.abc import Sequence

from dolly_batch.engine.continuous.cache import CacheShape
from dolly_batch.engine.continuous.cpu.pools import Pools
from dolly_batch.engine.continuous.engine import FastEngine
from dolly_batch.engine.kernels.cpu.compiled import find_pool_kernels
from dolly_batch.engine.protocol import Engine, generate
from dolly_batch.engine.weights.loading import LoadedModel
from dolly_batch.records import Completion, Request

ROOMY = 2**30


def fast_engine(
    loaded: LoadedModel, kind: type[FastEngine] = FastEngine, *, kv_bytes: int = ROOMY, **settings: int
) -> FastEngine:
    shape = CacheShape.of(loaded)
    pools = Pools(shape, kv_bytes, find_pool_kernels(shape.num_heads, shape.head_size, shape.dtype))
    return kind(loaded, pools, **settings)  # type: ignore[arg-type]


def answer(engine: Engine, requests: Sequence[Request]) -> dict[str, Completion]:
    completions = list(generate(engine, requests))
    assert len(completions) == len(requests)
    return {completion.key: completion for completion in completions}
