"""Rows through a host: every one answered once, under its own key, whatever it holds and whoever else is there."""

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from dolly_batch.errors import EngineError
from dolly_batch.host.address import HostAddress
from dolly_batch.host.client import EngineClient
from dolly_batch.records import EngineSpec, GenerationParams, PromptRow

Prompts = Callable[..., Iterator[PromptRow]]
PARAMS = GenerationParams(max_new_tokens=256, do_sample=False)


def test_twenty_thousand_rows_with_a_bounded_number_outstanding(
    echo: EngineSpec, address: HostAddress, prompts: Prompts
):
    num_read = num_answered = most = 0

    def counted() -> Iterator[PromptRow]:
        nonlocal num_read
        for row in prompts(20_000):
            num_read += 1
            yield row

    seen: Counter[str] = Counter()
    with EngineClient.connect(echo, address) as client:
        began = time.perf_counter()
        for completion in client.generate(counted()):
            most = max(most, num_read - num_answered)
            num_answered += 1
            seen[completion.key] += 1
            assert completion.text == f"row {completion.key.removeprefix('key-')}"
        seconds = time.perf_counter() - began
    print(f"{20_000 / seconds:,.0f} rows/s through the host", file=sys.stderr)
    assert seen == Counter(f"key-{i}" for i in range(20_000))
    assert 100 < most <= client.window


TEXTS = [
    "a\x00b",
    "👩‍👩‍👧‍👦 flags 🇩🇪",
    "\u202eright to left\u202c",
    "{}, %s, \\",
    "### End and ### Response:",
    "x" * 500,
]


def test_texts_come_back_byte_for_byte(echo: EngineSpec, address: HostAddress):
    with EngineClient.connect(echo, address) as client:
        rows = [PromptRow(str(n), text, None, PARAMS) for n, text in enumerate(TEXTS)]
        wide = GenerationParams(max_new_tokens=1_000, do_sample=False)
        answers = {c.key: c for c in client.generate(replace(row, params=wide) for row in rows)}
    assert not any(c.failure for c in answers.values())
    assert {key: c.text for key, c in answers.items()} == {row.key: row.instruction for row in rows}
    assert {c.finish_reason for c in answers.values()} == {"stop"}


def test_a_row_that_cannot_be_encoded_fails_alone(echo: EngineSpec, address: HostAddress):
    texts = ["before", "lone \ud800 surrogate", "after"]
    with EngineClient.connect(echo, address) as client:
        answers = {c.key: c for c in client.generate(PromptRow(t, t, None, PARAMS) for t in texts)}
        assert set(answers) == set(texts)
        assert [answers[t].text for t in ("before", "after")] == ["before", "after"]
        assert len(list(client.generate(PromptRow(t, t, None, PARAMS) for t in texts))) == 3
        assert client.incarnation == 1
    assert "surrogate" not in (address.make_folder(echo) / "host.log").read_text()


def test_equal_keys_of_two_tasks_do_not_meet(echo: EngineSpec, address: HostAddress):
    answers: dict[str, set[str]] = {}

    def task(name: str) -> None:
        with EngineClient.connect(echo, address) as client:
            rows = (PromptRow("the same key", f"{name} {i}", None, PARAMS) for i in range(2_000))
            answers[name] = {c.text for c in client.generate(rows)}

    tasks = [threading.Thread(target=task, args=(f"task-{n}",)) for n in range(4)]
    for thread in tasks:
        thread.start()
    for thread in tasks:
        thread.join()
    assert answers == {f"task-{n}": {f"task-{n} {i}" for i in range(2_000)} for n in range(4)}


def test_one_client_serves_several_partitions(echo: EngineSpec, address: HostAddress, prompts: Prompts):
    with EngineClient.connect(echo, address) as client:
        for num_rows in (3, 0, 70):
            assert len(list(client.generate(prompts(num_rows)))) == num_rows


def test_an_error_in_the_rows_passes_through(echo: EngineSpec, address: HostAddress, prompts: Prompts):
    def failing() -> Iterator[PromptRow]:
        yield from prompts(40)
        raise ZeroDivisionError("in the table")

    with EngineClient.connect(echo, address) as client:
        with pytest.raises(ZeroDivisionError, match="in the table"):
            list(client.generate(failing()))
        with pytest.raises(EngineError, match="closed"):
            list(client.generate(prompts(1)))


def test_a_task_that_leaves_early_does_not_end_the_others(echo: EngineSpec, address: HostAddress, prompts: Prompts):
    spec = replace(echo, echo_delay_s=0.001)
    with EngineClient.connect(spec, address) as stays, EngineClient.connect(spec, address) as leaves:
        early = leaves.generate(prompts(1_000_000))
        next(early)
        early.close()
        assert len(list(stays.generate(prompts(20)))) == 20
        with pytest.raises(EngineError, match="closed"):
            list(leaves.generate(prompts(1)))
    with EngineClient.connect(spec, address) as client:
        assert client.incarnation == 1


def test_rows_of_a_task_that_has_left_are_not_worked_on(echo: EngineSpec, address: HostAddress, prompts: Prompts):
    def leaving() -> Iterator[PromptRow]:
        yield from prompts(200)
        raise KeyboardInterrupt

    spec = replace(echo, echo_delay_s=0.5)
    with EngineClient.connect(spec, address) as stays, EngineClient.connect(spec, address) as leaves:
        answers = stays.generate(prompts(2))
        next(answers)  # The engine is in its next step, so that the rows that come now wait.
        with pytest.raises(KeyboardInterrupt):
            list(leaves.generate(leaving()))
        began = time.monotonic()
        assert len(list(answers)) == 1
        assert len(list(stays.generate(prompts(1)))) == 1
        assert time.monotonic() - began < 25, "200 rows of half a second each take 100 s"


def test_a_task_that_reads_slowly_does_not_hold_up_the_others(echo: EngineSpec, address: HostAddress, prompts: Prompts):
    wide = replace(PARAMS, max_new_tokens=1_000)
    long = [PromptRow(str(n), "every word " * 80, None, wide) for n in range(900)]
    with EngineClient.connect(echo, address) as slow, EngineClient.connect(echo, address) as quick:
        answers = slow.generate(iter(long))  # Some MB of answers: more than the socket takes.
        next(answers)
        assert len(list(quick.generate(prompts(2_000)))) == 2_000
        assert len(list(answers)) == 899
