import subprocess
import sys
from pathlib import Path

import pytest

from dolly_batch.host.runtime_dir import HostFailure, HostFolder
from dolly_batch.host.server import EXIT_FAULT

END = """
import logging, sys
from pathlib import Path
from dolly_batch.errors import EngineError
from dolly_batch.host.runtime_dir import HostFolder
from dolly_batch.host.server import end_by
logging.basicConfig()
try:
    raise {error}
except BaseException as error:
    end_by(error, HostFolder(Path(sys.argv[1])), 3)
"""


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        ("EngineError('a fault of ours')", HostFailure("EngineError", "a fault of ours")),
        ("RuntimeError('CUDA error')", HostFailure("RuntimeError", "CUDA error")),
        ("KeyError('the text of a row')", HostFailure("KeyError", "")),
        ("ValueError('the text of a row')", HostFailure("ValueError", "")),
    ],
)
def test_a_host_leaves_word_of_its_end_without_quoting_rows(tmp_path: Path, error: str, failure: HostFailure):
    ended = subprocess.run(
        [sys.executable, "-c", END.format(error=error), str(tmp_path)], stderr=subprocess.PIPE, text=True, check=False
    )
    assert ended.returncode == EXIT_FAULT
    assert HostFolder(tmp_path).read_failure(3) == failure
    assert failure.error in ended.stderr
    assert ", in <module>" in ended.stderr
    assert "the text of a row" not in ended.stderr
