"""Memory that the engine takes and gives back by itself."""

import sys
from pathlib import Path

import pytest
import torch

from dolly_batch.engine.memory import OUT_OF_MEMORY, map_zeros

BLOCK = 2**22  # bytes: small enough for the C library to keep a freed block in its heap


def resident_bytes() -> int:
    """This process's own resident memory."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(fields["RssAnon"].split()[0])


def test_mapped_memory_holds_zeros() -> None:
    zeros = map_zeros(3_000, torch.bfloat16)
    assert zeros.dtype == torch.bfloat16
    assert zeros.shape == (3_000,)
    assert not zeros.any()
    zeros[7] = 1.5
    assert zeros.sum() == 1.5


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_mapped_memory_is_taken_when_written_to_and_given_back_at_once() -> None:
    before = resident_bytes()
    blocks = [map_zeros(BLOCK, torch.int8) for _ in range(40)]
    assert resident_bytes() - before < 40 * BLOCK / 4
    for block in blocks:
        block.fill_(1)
    assert resident_bytes() - before > 40 * BLOCK * 3 / 4
    del block, blocks[::2]
    assert 20 * BLOCK / 2 < resident_bytes() - before < 20 * BLOCK * 3 / 2


def test_no_memory_is_the_error_that_the_engine_knows() -> None:
    with pytest.raises(OUT_OF_MEMORY, match="no memory for 4,611,686,018,427,387,904 bytes of keys and values"):
        map_zeros(2**60, torch.float32)
