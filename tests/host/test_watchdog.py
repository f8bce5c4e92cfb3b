import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from dolly_batch.errors import EngineError
from dolly_batch.host.address import HostAddress
from dolly_batch.host.client import EngineClient
from dolly_batch.records import EngineSpec, PromptRow

Prompts = Callable[..., Iterator[PromptRow]]


def test_a_step_that_hangs_ends_the_host_with_its_stack_in_the_log(
    echo: EngineSpec, address: HostAddress, prompts: Prompts
):
    spec = replace(echo, echo_delay_s=60.0, step_timeout_s=1.0)
    with EngineClient.connect(spec, address) as client:
        began = time.monotonic()
        with pytest.raises(EngineError, match=r"Timeout \(0:00:01") as raised:
            list(client.generate(prompts(3)))
        assert 1.0 <= time.monotonic() - began < 1.0 + 30
    log = (address.make_folder(spec) / "host.log").read_text()
    assert " in step" in log
    assert " in step" in str(raised.value)
    assert "row 0" not in log
    with EngineClient.connect(spec, address) as client:
        assert client.incarnation == 2


def test_a_slow_trickle_lives(echo: EngineSpec, address: HostAddress, prompts: Prompts):
    spec = replace(echo, echo_delay_s=0.5, step_timeout_s=1.0)
    with EngineClient.connect(spec, address) as client:
        assert len(list(client.generate(prompts(6)))) == 6  # Three times the time-out in all.
        assert client.incarnation == 1


def test_a_host_with_nothing_to_do_is_not_hung(
    echo: EngineSpec, address: HostAddress, prompts: Prompts, ends: Callable[[int], bool]
):
    spec = replace(echo, step_timeout_s=0.5)
    with EngineClient.connect(spec, address) as client:
        for _ in range(2):
            assert len(list(client.generate(prompts(10)))) == 10
            time.sleep(1.5)
        assert client.incarnation == 1
