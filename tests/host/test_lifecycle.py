"""The life of a host: started once, found again, gone with its owner. Real processes, real kills."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from dolly_batch.errors import EngineError, ModelError
from dolly_batch.host.address import HostAddress
from dolly_batch.host.client import EngineClient
from dolly_batch.host.launch import join_or_start
from dolly_batch.host.runtime_dir import HostRecord, RuntimeDir
from dolly_batch.records import EngineSpec, PromptRow
from dolly_batch.system import ipc
from dolly_batch.system.process import ProcessId

Prompts = Callable[..., Iterator[PromptRow]]

CLIENT = """
import json, sys
from pathlib import Path
from dolly_batch.host.client import EngineClient
from dolly_batch.system.process import ProcessId
from dolly_batch.host.runtime_dir import RuntimeDir, HostRecord
from dolly_batch.host.launch import join_or_start
from dolly_batch.host.address import HostAddress
from dolly_batch.records import EngineSpec, GenerationParams, PromptRow
spec, owner, root = json.loads(sys.argv[1])
with EngineClient.connect(EngineSpec(**spec), HostAddress(ProcessId(**owner), None, Path(root))) as client:
    rows = (PromptRow(str(i), f"{sys.argv[2]} {i}", None, GenerationParams(), i) for i in range(100))
    answers = {c.key: c.text for c in client.generate(rows)}
    assert answers == {str(i): f"{sys.argv[2]} {i}" for i in range(100)}, answers
    print(client.incarnation, client.host_pid)
"""


def test_sixteen_first_clients_start_one_host(echo: EngineSpec, address: HostAddress):
    wanted = json.dumps([asdict(echo), asdict(address.owner), str(address.root)])
    clients = [
        subprocess.Popen([sys.executable, "-c", CLIENT, wanted, f"task-{n}"], stdout=subprocess.PIPE, text=True)
        for n in range(16)
    ]
    answers = {client.communicate()[0] for client in clients}
    assert [client.returncode for client in clients] == [0] * 16
    assert len(answers) == 1
    assert answers.pop().startswith("1 ")


def test_a_host_outlives_the_process_that_started_it(echo: EngineSpec, address: HostAddress):
    wanted = json.dumps([asdict(echo), asdict(address.owner), str(address.root)])
    first = subprocess.run([sys.executable, "-c", CLIENT, wanted, "a"], stdout=subprocess.PIPE, text=True, check=True)
    with EngineClient.connect(echo, address) as client:
        assert first.stdout.split() == ["1", str(client.host_pid)]


def test_a_killed_host_is_an_error_by_name_and_the_next_task_has_a_new_one(
    echo: EngineSpec, address: HostAddress, prompts: Prompts
):
    slow = replace(echo, echo_delay_s=0.02)
    with EngineClient.connect(slow, address) as client:
        answers = client.generate(prompts(500))
        next(answers)
        os.kill(client.host_pid, signal.SIGKILL)
        with pytest.raises(EngineError, match=r"ended without a word, with \d+ rows .* unanswered; .*host\.log"):
            list(answers)
        engine_id = client.engine_id
        assert client.incarnation == 1
    with EngineClient.connect(slow, address) as client:
        assert (client.engine_id, client.incarnation) == (engine_id, 2)
        assert len(list(client.generate(prompts(5)))) == 5


def test_a_host_killed_between_two_tasks_is_replaced(
    echo: EngineSpec, address: HostAddress, ends: Callable[[int], bool]
):
    for incarnation in (1, 2, 3):
        with EngineClient.connect(echo, address) as client:
            assert client.incarnation == incarnation
        os.kill(client.host_pid, signal.SIGKILL)
        assert ends(client.host_pid)


def test_a_host_goes_with_its_owner_and_leaves_nothing(
    echo: EngineSpec, address: HostAddress, owner_process: subprocess.Popen[bytes], ends: Callable[[int], bool]
):
    with EngineClient.connect(echo, address) as client:
        owner_process.kill()
        began = time.monotonic()
        assert ends(client.host_pid)
        assert time.monotonic() - began < 5
    assert list(address.root.iterdir()) == []


def test_an_idle_host_ends_and_a_connected_client_keeps_it(
    echo: EngineSpec, address: HostAddress, ends: Callable[[int], bool], prompts: Prompts
):
    spec = replace(echo, idle_timeout_s=0.5)
    with EngineClient.connect(spec, address) as client:
        time.sleep(2.5)  # Longer than the time-out, and a few of the acceptor's checks.
        assert len(list(client.generate(prompts(3)))) == 3
    assert ends(client.host_pid)
    assert not (address.make_folder(spec) / "s").exists()
    with EngineClient.connect(spec, address) as client:
        assert client.incarnation == 2


def test_connecting_never_meets_a_host_that_exits(echo: EngineSpec, address: HostAddress, prompts: Prompts):
    spec = replace(echo, idle_timeout_s=0.0)  # Leaves at the acceptor's first check without a client.
    began = time.monotonic()
    loads: set[int] = set()
    # For three seconds, and on a machine so slow that no host left in them, until one has.
    while time.monotonic() < began + 3 or (len(loads) < 2 and time.monotonic() < began + 60):
        with EngineClient.connect(spec, address) as client:
            assert len(list(client.generate(prompts(2)))) == 2
            loads.add(client.incarnation)
        time.sleep(0.07)
    assert len(loads) > 1, "no host left, so nothing was tried"
    assert loads == set(range(1, len(loads) + 1))


def test_a_host_does_not_exit_while_a_client_holds_the_lock(echo: EngineSpec, address: HostAddress, prompts: Prompts):
    spec = replace(echo, idle_timeout_s=0.0)
    with EngineClient.connect(spec, address) as client:
        folder = RuntimeDir(address.make_folder(spec))
    with folder.locked(5):
        time.sleep(2.5)  # Some of the acceptor's checks.
        assert (folder.path / "s").exists()
        sock, record = join_or_start(folder, spec, address)
        sock.close()
    assert record.incarnation == client.incarnation == 1


LEAVE = """
import socket, sys
from pathlib import Path
from queue import SimpleQueue
from dolly_batch.host.acceptor import Acceptor
from dolly_batch.host.runtime_dir import RuntimeDir
folder = RuntimeDir(Path(sys.argv[1]))
listener = socket.socket(socket.AF_UNIX)
listener.bind(str(folder.socket))
listener.listen()
waiting = [socket.socket(socket.AF_UNIX) for _ in range(int(sys.argv[2]))]
for client in waiting:
    client.connect(str(folder.socket))
Acceptor(folder, folder.read_record(), listener, SimpleQueue())._exit_if_idle()
print("stays")
"""


@pytest.mark.parametrize(("num_waiting", "output"), [(1, "stays\n"), (0, "")])
def test_a_host_does_not_exit_while_a_client_waits_to_be_accepted(address: HostAddress, num_waiting: int, output: str):
    spec = EngineSpec(kind="echo", model_folder="")
    folder = RuntimeDir(address.make_folder(spec))
    folder.write_record(HostRecord(spec, address.owner, None, address.engine_id(spec), 1))
    left = subprocess.run(
        [sys.executable, "-c", LEAVE, str(folder.path), str(num_waiting)], stdout=subprocess.PIPE, text=True, check=True
    )
    assert left.stdout == output
    assert (folder.path / "s").exists() == bool(num_waiting)


def test_strangers_at_the_socket_are_turned_away_and_the_host_lives(
    echo: EngineSpec, address: HostAddress, prompts: Prompts
):
    with EngineClient.connect(echo, address) as client:
        for first_words in (ipc.pack({"protocol": 0, "spec": {}}), ipc.pack([0, "a row"])):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(address.make_folder(echo) / "s"))
                sock.sendall(first_words)
                channel = ipc.Channel(sock)
                assert "refused" in channel.receive()[0]
                assert channel.receive() == []
        for noise in (b"\xff" * 4, b"\x00\x00\x00\x01{", b"\x00"):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(address.make_folder(echo) / "s"))
                sock.sendall(noise)
        assert len(list(client.generate(prompts(3)))) == 3


def test_unequal_specs_have_hosts_of_their_own(echo: EngineSpec, address: HostAddress):
    with (
        EngineClient.connect(echo, address) as one,
        EngineClient.connect(replace(echo, num_threads=1), address) as other,
        EngineClient.connect(replace(echo), address) as same,
    ):
        assert one.host_pid == same.host_pid != other.host_pid
        assert one.engine_id == same.engine_id != other.engine_id
        assert other.incarnation == 1


def test_a_host_without_clients_makes_room_for_the_next_jobs_host(
    echo: EngineSpec, address: HostAddress, ends: Callable[[int], bool]
):
    with (
        EngineClient.connect(replace(echo, num_threads=1), address) as kept,
        EngineClient.connect(replace(echo, num_threads=2), replace(address, device="cpu")) as elsewhere,
        EngineClient.connect(echo, address) as first,
    ):
        elsewhere.close()
        first.close()
        with EngineClient.connect(replace(echo, num_threads=3), address) as second:
            assert ends(first.host_pid)
            assert [ProcessId.of(other.host_pid).is_alive() for other in (kept, second, elsewhere)] == [True] * 3


def test_a_model_that_cannot_be_loaded_is_the_engines_own_error(echo: EngineSpec, address: HostAddress, tmp_path: Path):
    spec = replace(echo, model_folder=str(tmp_path / "nowhere"))
    for _ in range(2):
        with pytest.raises(ModelError, match="nowhere"):
            EngineClient.connect(spec, address)


def test_a_python_that_cannot_start_the_host_is_told_with_its_log(
    echo: EngineSpec, address: HostAddress, tmp_path: Path
):
    wanted = json.dumps([asdict(echo), asdict(address.owner), str(address.root)])
    broken = tmp_path / "dolly_batch"  # A package of the same name, first on the import path of the host alone.
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ImportError('this is not the package')")
    program = f"import sys\nimport dolly_batch\nsys.path.insert(0, {str(tmp_path)!r})\n{CLIENT}"
    client = subprocess.run(
        [sys.executable, "-c", program, wanted, "a"], stderr=subprocess.PIPE, text=True, check=False
    )
    assert client.returncode != 0
    assert "EngineError: the engine host could not be started" in client.stderr
    assert "this is not the package" in client.stderr
