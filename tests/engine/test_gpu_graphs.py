"""Recorded decode steps, without a GPU: what is recorded, in which order, what replays, and recordings that fail.

In place of CUDA's graphs: a recording keeps which step it was made of, and its replay runs that step again.
"""

from typing import Any

import pytest
import torch

from dolly_batch.engine.continuous.cache import CacheShape
from dolly_batch.engine.continuous.gpu.engine import GpuEngine
from dolly_batch.engine.continuous.gpu.graphs import Decoder, bucket_sizes
from dolly_batch.engine.continuous.gpu.pages import Pages
from dolly_batch.engine.plain.engine import PlainEngine
from dolly_batch.engine.weights.loading import LoadedModel
from tests.engine.engines import answer
from tests.engine.questions import dolly, mixed_requests

MAX_SEQUENCES = 20


class FakeCuda:
    """`torch.cuda`, as far as recording uses it. `fails` names the errors of recordings to come, None for none."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stream = "default"
        self.recording: Any = None
        self.fails: list[Exception | None] = []
        self.pools: list[str] = []
        self.num_replayed = 0
        self.sizes: list[int] = []
        fake = self

        class Graph:
            closure: Any = None

            def replay(self) -> None:
                fake.num_replayed += 1
                self.closure()

        class Recording:
            def __init__(self, graph: Any, pool: str, capture_error_mode: str) -> None:
                self.graph = graph
                fake.pools.append(pool)

            def __enter__(self) -> None:
                fake.stream, fake.recording = "recording", self.graph

            def __exit__(self, *error: object) -> None:
                fake.recording = None
                failure = fake.fails.pop(0) if fake.fails else None
                if failure is not None:
                    raise failure  # as `capture_end`, and with the stream left as it is
                fake.stream = "default"

        def set_stream(stream: str) -> None:
            self.stream = stream

        for name, value in {
            "CUDAGraph": Graph,
            "graph": Recording,
            "graph_pool_handle": lambda: f"pool {len({*self.pools})}",
            "current_stream": lambda: self.stream,
            "set_stream": set_stream,
            "synchronize": lambda: None,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        forward = Decoder._forward

        def run(decoder: Decoder, size: int, reach: int) -> None:
            assert self.stream == ("recording" if self.recording else "default")
            if self.recording:
                self.recording.closure = lambda: forward(decoder, size, reach)
                self.sizes.append(size)
            forward(decoder, size, reach)

        monkeypatch.setattr(Decoder, "_forward", run)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


def recording_engine(loaded: LoadedModel) -> GpuEngine:
    pages = Pages(CacheShape.of(loaded), 2**24, max_sequences=MAX_SEQUENCES, max_positions=2048)
    engine = GpuEngine(loaded, pages, max_sequences=MAX_SEQUENCES, use_graphs=True)
    engine.record_graphs()
    return engine


def test_all_sizes_are_recorded_at_load_the_largest_first_and_answers_are_the_plain_engines(
    double: LoadedModel, cuda: FakeCuda
) -> None:
    engine = recording_engine(double)
    assert cuda.sizes == bucket_sizes(MAX_SEQUENCES) == [20, 16, 8, 4, 3, 2, 1]
    assert len({*cuda.pools}) == 1
    requests = mixed_requests(dolly(double), 30, do_sample=True)
    assert answer(engine, requests) == answer(PlainEngine(double), requests)
    assert engine.stats()["num_graphs"] == len(cuda.sizes)
    assert cuda.num_replayed > 10


# What a full GPU says at the end of a recording, and what a broken recording says.
FAILURES = [
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA error: operation failed due to a previous error during capture"),
    torch.OutOfMemoryError("CUDA out of memory"),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_a_recording_that_fails_leaves_its_size_unrecorded_and_the_stream_as_it_was(
    double: LoadedModel, cuda: FakeCuda, failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    cuda.fails = [failure, None, failure]
    engine = recording_engine(double)
    assert cuda.stream == "default"
    assert engine.stats()["num_graphs"] == len(bucket_sizes(MAX_SEQUENCES)) - 2
    assert str(failure) in caplog.text
    assert cuda.pools[0] != cuda.pools[1]  # nothing goes into the memory of a recording that failed
    requests = mixed_requests(dolly(double), 30, do_sample=True)
    num_recorded = len(cuda.sizes)
    assert answer(engine, requests) == answer(PlainEngine(double), requests)
    assert len(cuda.sizes) == num_recorded  # and it is not tried again
