"""What the engine takes of its machine: limits of containers as the kernel writes them, a share of the cores."""

from pathlib import Path

import pytest

from dolly_batch.engine.processes import cgroup, machine
from dolly_batch.engine.processes.machine import PROCESS_BYTES, fit_to_machine, usable_cores
from dolly_batch.models.folder import read_config
from dolly_batch.records import EngineSpec

GIB = 2**30


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def version_2(limit: str, used: int, inactive: int) -> dict[str, str]:
    stat = f"anon {used - inactive}\nfile {inactive}\nkernel 4096\ninactive_anon 7\ninactive_file {inactive}\n"
    return {"memory.max": f"{limit}\n", "memory.current": f"{used}\n", "memory.stat": stat}


def version_1(limit: int, used: int, inactive: int) -> dict[str, str]:
    # The group's own numbers come first, those with its children's later.
    stat = f"cache {inactive}\nrss 5\ninactive_file 3\ntotal_cache {inactive}\ntotal_inactive_file {inactive}\n"
    files = {"memory.limit_in_bytes": f"{limit}\n", "memory.usage_in_bytes": f"{used}\n", "memory.stat": stat}
    return {f"memory/{name}": text for name, text in files.items()}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (version_2(str(8 * GIB), 7 * GIB, 6 * GIB), 7 * GIB),
        (version_2(str(8 * GIB), 7 * GIB, 0), GIB),
        (version_2(str(8 * GIB), 9 * GIB, 0), 0),
        (version_2("max", 7 * GIB, 6 * GIB), None),
        ({"memory.max": f"{8 * GIB}\n", "memory.current": f"{GIB}\n"}, 7 * GIB),
        ({"memory.max": f"{8 * GIB}\n"}, None),
        (version_1(8 * GIB, 7 * GIB, 6 * GIB), 7 * GIB),
        (version_1(8 * GIB, 7 * GIB, 0), GIB),
        (version_1(9223372036854771712, 7 * GIB, 6 * GIB), None),
        ({"memory/memory.limit_in_bytes": "\n", "memory/memory.usage_in_bytes": "odd\n"}, None),
        ({}, None),
    ],
)
def test_free_memory_of_a_container_counts_its_page_cache_as_free(
    tmp_path: Path, files: dict[str, str], expected: int | None
) -> None:
    assert cgroup.free_bytes(write(tmp_path, files)) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "250000 100000\n"}, 2.5),
        ({"cpu.max": "50000 100000\n"}, 0.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu,cpuacct/cpu.cfs_quota_us": "400000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n"}, None),
        ({}, None),
    ],
)
def test_a_containers_quota_of_cores(tmp_path: Path, files: dict[str, str], expected: float | None) -> None:
    assert cgroup.num_cores(write(tmp_path, files)) == expected


@pytest.mark.parametrize(
    ("max_cores", "num_threads", "processes", "room_for", "expected"),
    [
        (None, None, None, 99, (16, 1)),
        (2, None, None, 99, (2, 1)),
        (64, None, None, 99, (16, 1)),
        (None, 4, None, 99, (4, 4)),
        (2, 4, None, 99, (1, 4)),
        (None, None, None, 3, (3, 5)),  # memory for fewer processes than cores: they have more threads
        (8, None, None, 3, (3, 2)),
        (None, 2, None, 3, (3, 2)),
        (None, None, None, 0, (1, 16)),
        (2, None, 3, 0, (3, 1)),  # as asked
        (2, 2, 3, 0, (3, 2)),
    ],
)
def test_processes_and_threads_stay_within_the_cores_and_the_memory(
    neox_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    max_cores: int | None,
    num_threads: int | None,
    processes: int | None,
    room_for: int,
    expected: tuple[int, int],
) -> None:
    config = read_config(neox_folder)
    row_bytes = 4 * config.num_layers * config.hidden_size * config.max_positions
    weight_bytes = (neox_folder / "model.safetensors").stat().st_size
    monkeypatch.setattr(machine, "available_cores", lambda: 16)
    monkeypatch.setattr(
        machine, "available_bytes", lambda: weight_bytes + room_for * (PROCESS_BYTES + 4 * row_bytes) + GIB // 4
    )
    spec = EngineSpec("auto", str(neox_folder), max_cores=max_cores, num_threads=num_threads, processes=processes)
    fitted = fit_to_machine(spec, config)
    assert (fitted.processes, fitted.num_threads) == expected


def test_this_machine_has_memory_and_cores(neox_folder: Path) -> None:
    assert machine.available_bytes() > 0
    assert machine.available_cores() >= usable_cores(EngineSpec("auto", str(neox_folder), max_cores=1)) == 1


@pytest.mark.parametrize(
    ("master", "executor_cores", "expected"),
    [
        ("local[2]", None, 2),
        ("local[2,4]", "8", 2),
        ("local[ 3 , 4 ]", None, 3),
        ("local", None, 1),
        ("local[*]", None, None),
        ("local[*,4]", "8", None),
        ("spark://head:7077", "4", 4),
        ("spark://head:7077", None, None),
        ("k8s://https://head:443", "2", 2),
        ("k8s://https://head:443", None, 1),
        ("yarn", "", 1),
        ("yarn", "6", 6),
        ("local-cluster[2, 3, 1024]", None, 3),
        ("local-cluster[2,4,1024]", "2", 2),
    ],
)
def test_an_executors_share_of_its_machine(master: str, executor_cores: str | None, expected: int | None) -> None:
    pytest.importorskip("pyspark")
    from dolly_batch.spark.model import cores_of

    assert cores_of(master, executor_cores) == expected
