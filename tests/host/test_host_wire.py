import json
import socket
import subprocess
import sys
import threading

import pytest

from dolly_batch.errors import EngineError
from dolly_batch.host import wire
from dolly_batch.host.wire import FrameReader, PromptRow
from dolly_batch.records import Completion, EngineSpec, Failure, GenerationParams

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
def test_rows_and_completions_arrive_as_they_were_sent(text: str):
    row = PromptRow("7:3", text, text, GenerationParams(5, True, 0.7, 0.9, 40), 2**64 - 1)
    answer = Completion("7:3", text, (1, 50_279), "stop", 12)
    failed = Completion("7:4", "", (), None, 0, Failure("too_long", text))
    sent = (wire.row_to_json(3, row), wire.completion_to_json(3, answer), wire.completion_to_json(4, failed))
    first, second, third = through_a_socket(*sent)
    assert wire.row_from_json(first, "7:3") == row
    assert wire.completion_from_json(second, "7:3") == answer
    assert wire.completion_from_json(third, "7:4") == failed


def test_no_context_and_an_empty_context_stay_apart():
    rows = [PromptRow("k", "i", context, GenerationParams(), 0) for context in (None, "")]
    assert [wire.row_from_json(m, "k") for m in through_a_socket(*(wire.row_to_json(0, r) for r in rows))] == rows


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
