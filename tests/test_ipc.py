"""Records pass between processes unharmed, whatever they hold, and frames are whole or refused."""

import socket
import subprocess
import sys
import threading
import time
from dataclasses import fields
from typing import Any

import pytest

from dolly_batch.errors import EngineError
from dolly_batch.records import (
    Completion,
    Failure,
    GenerationParams,
    PartialAnswer,
    PromptRow,
    Request,
    ScoreRequest,
    ScoreRow,
    Scores,
)
from dolly_batch.system import ipc
from dolly_batch.system.ipc import Channel, RecordReader, RecordWriter

TEXTS = ["", "plain", "a\x00b", "\ud800 alone", "👩‍👩‍👧‍👦 \u202eflip", "line\r\n\u2028\u2029\t", '"}],{\\', "### End"]


def through_a_socket(*messages: object) -> list[object]:
    left, right = socket.socketpair()
    with left, right:
        sender = threading.Thread(target=lambda: (Channel(left).send(*messages), left.close()))
        sender.start()
        channel, received = Channel(right), []
        while more := channel.receive():
            received += more
        sender.join()
        assert channel.is_closed
    return received


def written_and_read(*records: Any) -> list[Any]:
    writer, reader = RecordWriter(), RecordReader[Any]()
    received: list[Any] = through_a_socket(*map(writer.write, records))
    return [reader.read(message) for message in received]


@pytest.mark.parametrize("text", TEXTS)
def test_records_arrive_as_they_were_sent(text: str):
    records = [
        PromptRow("0", text, text, GenerationParams(5, True, 0.7, 0.9, 40), 2**64 - 1),
        ScoreRow("1", text, None, (text, "b"), with_end=False, format="plain"),
        ScoreRow("2", "other", text, (text, "b"), with_end=False, format="plain"),
        PromptRow("3", "again", None, GenerationParams(5, True, 0.7, 0.9, 40), 3),
        PromptRow("4", text, None, GenerationParams(6), 3, "plain", text),
        ScoreRow("5", text, None, ("b", text)),
        PromptRow("6", text, None, GenerationParams(9), 3, partial=PartialAnswer(text, 7)),
        Request("7", (5, 50_279), GenerationParams(5, True, 0.7, 0.9, 40, 1.1), 2**64 - 1, text, (1, 2)),
        Request("8", (), GenerationParams(5, True, 0.7, 0.9, 40, 1.1), 3, text),
        ScoreRequest("9", (5, 6), ((), (7, 8))),
        ScoreRequest("10", (5, 6), ((7,), ())),
        ScoreRequest("11", (5, 6), ()),
        Completion("12", text, (1, 50_279), "stop", 12),
        Completion("13", text, (1, 50_279), "length", 12, num_partial_tokens=1),
        Completion("14", "", (), None, 0, Failure("too_long", text)),
        Scores("15", (-1.5, -1e-17, float("-inf")), None, 3),
        Scores("16", (), Failure("model_error", text), 3),
    ]
    assert written_and_read(*records) == records


def test_each_parameter_arrives_under_its_own_name():
    params = GenerationParams(**{field.name: 10 + number for number, field in enumerate(fields(GenerationParams))})  # type: ignore[arg-type]
    request = Request("k", (5,), params)
    assert written_and_read(request) == [request]


def test_labels_are_sent_once_not_per_row():
    labels = tuple(f"label number {number}" for number in range(77))
    writer, reader = RecordWriter(), RecordReader[ScoreRow]()
    messages = [writer.write(ScoreRow(str(n), f"text {n}", None, labels)) for n in range(100)]
    assert [message[3] is None for message in messages] == [False] + [True] * 99
    assert len({id(reader.read(message).continuations) for message in messages}) == 1


def test_a_key_of_the_connection_stands_in_for_that_of_the_record():
    message = RecordWriter().write(Scores("the row's", (-1.0,)), 7)
    assert message[0] == 7
    assert "the row's" not in str(message)
    assert RecordReader[Scores]().read(message, "the reader's") == Scores("the reader's", (-1.0,))


def test_no_context_and_an_empty_context_stay_apart():
    rows = [PromptRow("k", "i", context, GenerationParams(), 0) for context in (None, "")]
    assert written_and_read(*rows) == rows


def test_a_frame_larger_than_any_receive_buffer_arrives_whole():
    messages = ["x" * 3_000_000, ["y"], "z" * 3_000_000]
    assert through_a_socket(*messages) == messages


def test_a_frame_cut_short_by_a_dying_peer_is_the_end_not_a_message():
    left, right = socket.socketpair()
    with left, right:
        left.sendall(ipc.pack("whole", "cut")[:-1])
        left.close()
        channel = Channel(right)
        assert channel.receive() == ["whole"]
        assert channel.receive() == []
        assert channel.is_closed


def test_nothing_to_receive_in_time_is_not_the_end():
    left, right = socket.socketpair()
    with left, right:
        channel, began = Channel(right), time.monotonic()
        assert channel.receive(timeout_s=0.1) == []
        assert time.monotonic() - began >= 0.09
        assert not channel.is_closed


def test_a_length_beyond_the_limit_is_refused_by_name(monkeypatch: pytest.MonkeyPatch):
    left, right = socket.socketpair()
    with left, right:
        left.sendall(b"\xff\xff\xff\xff")
        with pytest.raises(EngineError, match="frame of 4,294,967,295 bytes"):
            Channel(right).receive()
    monkeypatch.setattr(ipc, "MAX_FRAME_BYTES", 10)
    with pytest.raises(EngineError, match="a message of 13 bytes: at most 10"):
        ipc.pack("too long by", "x")


def test_queueing_never_blocks_and_flush_sends_the_rest():
    left, right = socket.socketpair()
    with left, right:
        sender, receiver = Channel(left), Channel(right)
        sender.queue("x" * 3_000_000, "end")
        assert sender.has_unsent
        received: list[object] = []
        while len(received) < 2:
            received += receiver.receive(timeout_s=0)
            sender.flush()
        assert received == ["x" * 3_000_000, "end"]
        assert not sender.has_unsent


IMPORTS = """
import sys
startup = set(sys.modules)
import importlib, pkgutil
import dolly_batch.host
for module in pkgutil.iter_modules(dolly_batch.host.__path__):
    importlib.import_module(f"dolly_batch.host.{module.name}")
names = {name.partition(".")[0] for name in set(sys.modules) - startup}
print(*sorted(names - sys.stdlib_module_names))
"""


def test_the_host_imports_nothing_but_the_standard_library():
    imported = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    assert imported.stdout.split() == ["dolly_batch"]
