"""A real model behind the host: the package's small one, on the plain engine."""

import os
import re
import signal
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from dolly_batch.engine.load import load_engine
from dolly_batch.engine.protocol import answer, generate
from dolly_batch.errors import EngineError
from dolly_batch.host.address import HostAddress
from dolly_batch.host.client import EngineClient
from dolly_batch.host.runtime_dir import RuntimeDir
from dolly_batch.prompt import PromptEncoder
from dolly_batch.records import Completion, EngineSpec, GenerationParams, PromptRow, Request, ScoreRequest, ScoreRow

GREEDY = GenerationParams(max_new_tokens=12, do_sample=False)
SAMPLED = GenerationParams(max_new_tokens=12)
ROWS = [
    PromptRow("a", "Is this review positive or negative?", "A wonderful little book.", GREEDY),
    PromptRow("b", "Name the city.", "Ada lives in Paris.", GREEDY),
    PromptRow("c", "Say anything.", None, SAMPLED, seed=7),
    PromptRow("d", "word " * 3_000, None, GREEDY),
]


@pytest.fixture
def plain(echo: EngineSpec) -> EngineSpec:
    """The small model in float32, on one thread."""
    pytest.importorskip("torch")
    return replace(echo, kind="plain", dtype="float32", num_threads=1, max_batch_tokens=4_096)


def answers_without_host(spec: EngineSpec) -> dict[str, Completion]:
    engine = load_engine(spec, "cpu")
    assert isinstance(engine.encoder, PromptEncoder)
    requests = [Request(r.key, tuple(engine.encoder.encode(r.instruction, r.context)), r.params, r.seed) for r in ROWS]
    return {completion.key: completion for completion in generate(engine, requests)}


def test_a_host_killed_while_loading_is_replaced_and_answers_as_its_engine_does(
    plain: EngineSpec, address: HostAddress, eventually: Callable[[Callable[[], bool]], bool]
):
    on_cpu = replace(address, device="cpu")
    log = RuntimeDir(on_cpu.make_folder(plain)).log

    def kill_first() -> None:
        assert eventually(lambda: log.exists() and "1. time" in log.read_text())
        os.kill(int(re.findall(r"(\d+) \S+: loading", log.read_text())[0]), signal.SIGKILL)

    killer = threading.Thread(target=kill_first)
    killer.start()
    with EngineClient.connect(plain, on_cpu) as client, EngineClient.connect(plain, on_cpu) as other:
        killer.join()
        assert (client.incarnation, other.host_pid) == (2, client.host_pid)
        answers = {completion.key: completion for completion in client.generate(iter(ROWS))}
        assert {completion.key: completion for completion in other.generate(iter(ROWS))} == answers
    assert answers == answers_without_host(plain)
    assert [answers[key].failure is None for key in "abcd"] == [True, True, True, False]
    assert "Paris" not in log.read_text()


def test_scores_over_the_wire_are_those_of_the_engine(plain: EngineSpec, address: HostAddress):
    labels = ("positive", "negative")
    rows = [
        ScoreRow("dolly", "Is this review positive or negative?", "A wonderful little book.", labels),
        ScoreRow("again", "Is this review positive or negative?", "It was a waste of money.", labels),
        ScoreRow("bare", "Is this review positive or negative?", "It was a waste of money.", labels, with_end=False),
        ScoreRow("plain", "word " * 1_000 + "The sky is", None, (" blue", " green today"), False, "plain"),
        ScoreRow("none", "", None, (" blue",), with_end=False, format="plain"),
        ScoreRow("surrogate", "\ud800", None, labels),
        ScoreRow("long", "word " * 3_000, None, labels),
    ]
    with EngineClient.connect(plain, replace(address, device="cpu")) as client:
        found = {scores.key: scores for scores in client.score(iter(rows))}
        mixed = [ROWS[0], rows[0], ROWS[1], rows[1]]
        assert len(list(client.answer(lambda count: [mixed.pop() for _ in range(min(1, len(mixed)))]))) == 4
    engine = load_engine(plain, "cpu")
    encoder = engine.encoder
    assert isinstance(encoder, PromptEncoder)
    ids = {
        "dolly": tuple((*encoder.encode_text(f"{label}\n\n"), encoder.end_id) for label in labels),
        "bare": tuple(tuple(encoder.encode_text(label)) for label in labels),
        "plain": tuple(tuple(encoder.encode_text(text)) for text in (" blue", " green today")),
    }
    ids["again"] = ids["dolly"]
    room = engine.max_positions - max(map(len, ids["plain"]))
    prompts = {row.key: encoder.encode(row.instruction, row.context) for row in rows[:3]}
    prompts["plain"] = encoder.encode_text(rows[3].instruction)[-room:]
    asked = [ScoreRequest(key, tuple(prompts[key]), continuations) for key, continuations in ids.items()]
    for scores in answer(engine, asked):
        assert found[scores.key].log_probs == pytest.approx(scores.log_probs, abs=1e-4)  # type: ignore[union-attr]
    best = {key: max(range(2), key=found[key].log_probs.__getitem__) for key in ("dolly", "again")}
    assert best == {"dolly": 0, "again": 1}
    failures = {key: found[key].failure for key in found if found[key].failure}
    assert {key: failure.status for key, failure in failures.items() if failure} == {
        "none": "model_error", "surrogate": "model_error", "long": "too_long",
    }  # fmt: skip


def test_a_load_beyond_its_time_is_an_error_that_shows_where_it_was(plain: EngineSpec, address: HostAddress):
    with pytest.raises(EngineError, match=r"(?s)Timeout \(0:00:00\.2.* in _load"):
        EngineClient.connect(replace(plain, load_timeout_s=0.2), address)
