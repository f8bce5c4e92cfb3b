"""A disk that is full: exit 5 with what the disk says and where, nothing half visible, and the same command goes on."""

import random
import string
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dolly_batch.errors import Stopped
from tests.spark.desk import Desk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a disk of a size, or gives the mounted one another size."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def resize(size: str) -> Path:
        again = "remount," if disk.is_mount() else ""
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"{again}size={size}", "none", disk], capture_output=True
        )
        if mounted.returncode:
            pytest.skip("this user may not mount a file system")
        return disk

    yield resize
    subprocess.run(["umount", "--lazy", disk], check=False)


@pytest.mark.parametrize(
    ("folder", "size"),
    [
        pytest.param("work", "900k", marks=pytest.mark.long),
        pytest.param("work", "2500k", marks=pytest.mark.chaos),
        ("out", "300k"),
    ],
)
def test_a_full_disk_is_named_and_the_same_command_goes_on(
    desk: Desk, small_disk: Callable[[str], Path], folder: str, size: str
) -> None:
    draw = random.Random(1)
    texts = ("".join(draw.choices(string.ascii_lowercase, k=700)) for _ in range(2000))
    desk.put([{"id": f"{i:04d}", "instruction": text} for i, text in enumerate(texts)])
    place = small_disk(size) / folder
    job = {"work_dir": str(place)} if folder == "work" else {"output": {"path": str(place)}}
    error = desk.refused(input={"context": None}, **job)
    assert isinstance(error, Stopped)
    assert "No space left on device" in str(error)
    assert str(place) in str(error)
    answers = place if folder == "out" else desk.out
    assert not answers.exists()
    small_disk("200m")
    report = desk.run(input={"context": None}, **job)
    assert report.outcome == "complete"
    ids = desk.spark.read.parquet(str(answers)).select("id").collect()
    assert sorted(row.id for row in ids) == [f"{i:04d}" for i in range(2000)]
