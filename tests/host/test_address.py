import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from dolly_batch.errors import EngineError
from dolly_batch.host import address as address_module
from dolly_batch.host.address import HostAddress, default_root
from dolly_batch.host.launch import host_environment
from dolly_batch.host.runtime_dir import HostRecord, RuntimeDir, sweep
from dolly_batch.records import EngineSpec
from dolly_batch.system.private_folder import make_private

SPEC = EngineSpec(kind="echo", model_folder="")


def record_for(address: HostAddress, spec: EngineSpec = SPEC) -> HostRecord:
    return HostRecord(spec, address.owner, address.device, address.engine_id(spec), 1)


def test_every_difference_makes_another_address(address: HostAddress):
    others = [
        address.name(SPEC),
        address.name(replace(SPEC, echo_delay_s=1.0)),
        replace(address, device="cuda:0").name(SPEC),
        replace(address, device="cuda:1").name(SPEC),
        replace(address, owner=replace(address.owner, started="later")).name(SPEC),
    ]
    assert len(set(others)) == len(others)
    assert address.name(SPEC) == replace(address).name(replace(SPEC))


def test_folders_are_private(address: HostAddress):
    folder = address.make_folder(SPEC)
    assert address.make_folder(SPEC) == folder
    assert [path.stat().st_mode & 0o777 for path in (folder, address.root)] == [0o700, 0o700]


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_folder_that_others_can_enter_is_refused(tmp_path: Path, mode: int):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(mode)
    with pytest.raises(EngineError, match="expected a folder drwx------"):
        make_private(tmp_path / "open")


def test_a_link_or_a_file_instead_of_the_folder_is_refused(tmp_path: Path):
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").touch(0o600)
    for path in (tmp_path / "link", tmp_path / "file"):
        with pytest.raises(EngineError, match=path.name):
            make_private(path)


def test_a_root_too_long_for_a_socket_is_refused_and_the_default_is_short(address: HostAddress, tmp_path: Path):
    with pytest.raises(EngineError, match="too long to hold a Unix socket"):
        replace(address, root=tmp_path / ("x" * 100)).make_folder(SPEC)
    assert len(os.fsencode(default_root())) <= 82


def test_a_name_that_somebody_else_has_taken_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    temporary, run = tmp_path / "tmp", tmp_path / "run"
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(run))
    monkeypatch.setattr(address_module, "_MAX_ROOT_BYTES", 200)
    me = 4_000_000 + os.getpid()  # a user who has taken nothing on this machine yet
    name = f"dolly-batch-{me}"
    monkeypatch.setattr(os, "geteuid", lambda: me)
    assert default_root() == temporary / name
    (temporary / name).mkdir(parents=True)  # of another user, as all that this test makes
    assert default_root() == Path("/tmp") / name
    monkeypatch.setattr(address_module, "_is_anothers", lambda path: path.parent != run)
    assert default_root() == run / name
    monkeypatch.setattr(address_module, "_is_anothers", lambda path: True)
    assert default_root() == temporary / name, "refused by name when it is made"


def test_sweep_removes_dead_owners_folders_only(address: HostAddress):
    dead = replace(address, owner=replace(address.owner, started="earlier"))
    foreign = replace(address, owner=replace(address.owner, started="earlier", namespace="another container"))
    folders = {
        kind: RuntimeDir(p.make_folder(SPEC)) for kind, p in (("live", address), ("dead", dead), ("foreign", foreign))
    }
    for kind, owner in (("live", address), ("dead", dead), ("foreign", foreign)):
        folders[kind].write_record(record_for(owner))
    unknown = address.root / "no-record"
    unknown.mkdir()
    (unknown / "host.json").write_text("{")
    with folders["dead"].locked(0):
        sweep(address.root, keep=folders["live"].path)
    assert folders["dead"].path.exists(), "its lock was held"
    sweep(address.root, keep=folders["live"].path)
    assert sorted(address.root.iterdir()) == sorted([folders["live"].path, folders["foreign"].path, unknown])


@pytest.mark.parametrize(
    ("device", "visible"),
    [("cuda:3", "3"), ("cuda:GPU-1f2e", "GPU-1f2e"), ("cpu", ""), (None, os.environ.get("CUDA_VISIBLE_DEVICES"))],
)
def test_a_host_sees_its_own_gpu_alone(address: HostAddress, device: str | None, visible: str | None):
    record = record_for(replace(address, device=device), replace(SPEC, num_threads=3))
    environment = host_environment(record, address.root)
    assert environment.get("CUDA_VISIBLE_DEVICES") == visible
    assert environment.get("CUDA_DEVICE_ORDER") == (device and "PCI_BUS_ID")
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["TOKENIZERS_PARALLELISM"] == "false"


def test_a_gpus_host_has_a_folder_for_kernels_and_an_allocator_that_does_not_fragment(
    address: HostAddress, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    record = record_for(replace(address, device="cuda:0"), SPEC)
    for name in ("TRITON_CACHE_DIR", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = host_environment(record, address.root)
    assert Path(found["TRITON_CACHE_DIR"]).is_relative_to(tmp_path)
    assert found["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")  # as a home that cannot be written to
    assert host_environment(record, address.root)["TRITON_CACHE_DIR"] == str(address.root / "triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", "mine")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "backend:native")
    found = host_environment(record, address.root)
    assert found["TRITON_CACHE_DIR"] == "mine"
    assert "PYTORCH_ALLOC_CONF" not in found
    assert "TRITON_CACHE_DIR" not in os.environ or "PYTORCH_ALLOC_CONF" not in host_environment(
        record_for(replace(address, device="cpu"), SPEC), address.root
    )
