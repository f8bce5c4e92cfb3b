import json
import socket
import subprocess
import sys
import threading
from typing import Any

import pytest

from dolly_batch.errors import EngineError
from dolly_batch.host import wire
from dolly_batch.host.wire import FrameReader, RowReader, RowWriter
from dolly_batch.records import (
    Completion,
    EngineSpec,
    Failure,
    GenerationParams,
    PartialAnswer,
    PromptRow,
    ScoreRow,
    Scores,
)

TEXTS = ["", "plain", "a\x00b", "\ud800 alone", "👩‍👩‍👧‍👦 \u202eflip", "line\r\n\u2028\u2029\t", '"}],{\\', "### End"]


def through_a_socket(*messages: object) -> list[object]:
    left, right = socket.socketpair()
    with left, right:
        sender = threading.Thread(target=lambda: (left.sendall(b"".join(map(wire.pack, messages))), left.close()))
        sender.start()
        reader, received = FrameReader(right), []
        while more := reader.read():
            received += more
        sender.join()
    return received


@pytest.mark.parametrize("text", TEXTS)
def test_rows_and_answers_arrive_as_they_were_sent(text: str):
    rows = [
        PromptRow("0", text, text, GenerationParams(5, True, 0.7, 0.9, 40), 2**64 - 1),
        ScoreRow("1", text, None, (text, "b"), with_end=False, format="plain"),
        ScoreRow("2", "other", text, (text, "b"), with_end=False, format="plain"),
        PromptRow("3", "again", None, GenerationParams(5, True, 0.7, 0.9, 40), 3),
        PromptRow("4", text, None, GenerationParams(6), 3, "plain", text),
        ScoreRow("5", text, None, ("b", text)),
        PromptRow("6", text, None, GenerationParams(9), 3, partial=PartialAnswer(text, 7)),
    ]
    answers = [
        Completion("7", text, (1, 50_279), "stop", 12),
        Completion("8", text, (1, 50_279), "length", 12, num_partial_tokens=1),
        Completion("9", "", (), None, 0, Failure("too_long", text)),
        Scores("10", (-1.5, -1e-17, float("-inf")), None, 3),
        Scores("11", (), Failure("model_error", text), 3),
    ]
    writer, reader = RowWriter(), RowReader()
    sent = [writer.write(number, row) for number, row in enumerate(rows)]
    sent += [wire.answer_to_json(int(answer.key), answer) for answer in answers]
    received: list[Any] = through_a_socket(*sent)
    assert [reader.read(message, str(message[0])) for message in received[: len(rows)]] == rows
    assert [wire.answer_from_json(message, str(message[0])) for message in received[len(rows) :]] == answers


def test_labels_are_sent_once_not_per_row():
    labels = tuple(f"label number {number}" for number in range(77))
    writer, reader = RowWriter(), RowReader()
    messages = [writer.write(n, ScoreRow(str(n), f"text {n}", None, labels)) for n in range(100)]
    assert [message[3] is None for message in messages] == [False] + [True] * 99
    read = [reader.read(message, "k") for message in messages]
    assert len({id(row.continuations) for row in read if isinstance(row, ScoreRow)}) == 1


def test_no_context_and_an_empty_context_stay_apart():
    rows = [PromptRow("k", "i", context, GenerationParams(), 0) for context in (None, "")]
    writer, reader = RowWriter(), RowReader()
    received: list[Any] = through_a_socket(*(writer.write(0, row) for row in rows))
    assert [reader.read(message, "k") for message in received] == rows


def test_a_frame_larger_than_any_receive_buffer_arrives_whole():
    messages = ["x" * 3_000_000, ["y"], "z" * 3_000_000]
    assert through_a_socket(*messages) == messages


def test_a_spec_survives_json():
    spec = EngineSpec("plain", "/models/dolly", "ab" * 32, num_threads=1, step_timeout_s=0.5)
    assert wire.spec_from_json(json.loads(json.dumps(wire.spec_to_json(spec)))) == spec


def test_a_frame_cut_short_by_a_dying_peer_is_the_end_not_a_message():
    left, right = socket.socketpair()
    with left, right:
        left.sendall(wire.pack("whole") + wire.pack("cut")[:-1])
        left.close()
        reader = FrameReader(right)
        assert reader.read() == ["whole"]
        assert reader.read() == []


def test_a_length_beyond_the_limit_is_refused_by_name():
    left, right = socket.socketpair()
    with left, right:
        left.sendall(b"\xff\xff\xff\xff")
        with pytest.raises(EngineError, match="frame of 4,294,967,295 bytes"):
            FrameReader(right).read()


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
    found = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["dolly_batch"]
