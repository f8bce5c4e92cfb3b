"""Two starts that fetch packages wait for each other; one that cannot make a lock does not."""

import select
import subprocess
import sys
from pathlib import Path

import pytest

from dolly_batch.spark.session.packages import fetching_alone

PROGRAM = """
import sys
from dolly_batch.spark.session.packages import fetching_alone
with fetching_alone({"XDG_CACHE_HOME": sys.argv[1]}):
    print("alone", flush=True)
    sys.stdin.readline()
"""


def start(cache: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(cache)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def says_something(process: "subprocess.Popen[str]", seconds: float) -> bool:
    return bool(select.select([process.stdout], [], [], seconds)[0])


@pytest.mark.parametrize("is_killed", [False, True])
def test_the_second_waits_until_the_first_is_done_or_gone(tmp_path: Path, is_killed: bool) -> None:
    with start(tmp_path) as first:
        assert says_something(first, 20)
        with start(tmp_path) as second:
            assert not says_something(second, 2)
            if is_killed:
                first.kill()
            else:
                first.communicate("\n")
            assert says_something(second, 20)
            assert second.communicate("\n")[0] == "alone\n"


def test_where_no_lock_can_be_made_it_goes_on(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    with fetching_alone({"XDG_CACHE_HOME": str(in_the_way)}):
        pass


def test_what_goes_wrong_meanwhile_is_told_and_the_lock_is_free_again(tmp_path: Path) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    with pytest.raises(OSError, match="no Java"), fetching_alone(environ):
        raise OSError("no Java")
    with start(tmp_path) as process:
        assert process.communicate("\n", timeout=10)[0] == "alone\n"
