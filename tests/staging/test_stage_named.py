"""Sources that are neither a folder nor on the hub: the packaged `tiny`, and ModelScope."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dolly_batch.errors import ModelError
from dolly_batch.models.folder import inspect_folder
from dolly_batch.staging import stage_to, stage_under
from tests.staging.small_repository import PROJECT

PACKAGE = PROJECT / "dolly_batch"


@pytest.mark.parametrize("packed", [False, True])
def test_tiny_comes_out_of_the_package_even_zipped(plain, tmp_path, packed):
    tree = tmp_path / "site"
    shutil.copytree(PACKAGE, tree / "dolly_batch", ignore=shutil.ignore_patterns("__pycache__", "model"))
    shutil.copytree(plain, tree / "dolly_batch" / "tiny" / "model")
    where = shutil.make_archive(str(tmp_path / "wheel"), "zip", tree) if packed else str(tree)
    script = (
        f"import sys; sys.path.insert(0, {where!r})\n"
        "from dolly_batch.staging import stage, stage_under\n"
        f"assert stage.__file__.startswith({where!r})\n"
        "done = [stage_under('tiny', sys.argv[1]) for _ in range(2)]\n"
        "print(done[0].folder, done[0].identity, done[0].already_there, done[1].already_there)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "models")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    folder, identity, *already_there = done.stdout.split()
    assert already_there == ["False", "True"]
    assert Path(folder).name.startswith("tiny-")
    staged = inspect_folder(folder)
    assert (staged.source, staged.sha256) == ("tiny", identity)
    assert identity == stage_to(str(plain), tmp_path / "same").identity


@pytest.mark.skipif(
    not (PACKAGE / "tiny" / "model" / "config.json").is_file(), reason="the packaged model has not been trained yet"
)
def test_the_packaged_tiny_keeps_its_identity(tmp_path):
    staged = stage_under("tiny", tmp_path)
    assert staged.identity == inspect_folder(PACKAGE / "tiny" / "model").sha256


def test_modelscope_needs_a_revision(tmp_path):
    with pytest.raises(ModelError, match=r"name its revision too, for example v1\.0\.2"):
        stage_under("modelscope:AI-ModelScope/dolly-v2-12b", tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("modelscope") is not None, reason="modelscope is installed here")
def test_modelscope_without_its_package_says_what_to_install(tmp_path):
    with pytest.raises(ModelError, match=r"pip install dolly-batch\[modelscope\]"):
        stage_under("modelscope:AI-ModelScope/dolly-v2-12b", tmp_path / "models", "v1.0.2")
    assert list((tmp_path / "models").iterdir()) == []
