"""The work folder's rights."""

import stat
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from dolly_batch.errors import ConfigError
from dolly_batch.spark.files import files_for
from dolly_batch.spark.work_dir import prepare_work_dir


def mode_of(folder: Path) -> int:
    return stat.S_IMODE(folder.stat().st_mode)


def test_a_new_folder_is_its_owners_alone_and_an_open_one_is_named(
    spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, work = files_for(spark, str(tmp_path / "of" / "mine"))
    prepare_work_dir(spark, files, work)
    assert mode_of(tmp_path / "of" / "mine") == 0o700
    assert capsys.readouterr().err == ""
    for mode, told in ((0o750, ""), (0o1777, "can be written by every user")):
        (tmp_path / "of" / "mine").chmod(mode)
        prepare_work_dir(spark, files, work)
        assert mode_of(tmp_path / "of" / "mine") == mode
        assert told in capsys.readouterr().err
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"work_dir .*file cannot be written: File exists"):
        prepare_work_dir(spark, files, str(tmp_path / "file"))
