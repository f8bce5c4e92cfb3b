"""llama.cpp's server with continuous batching: a slot for each request at work, further ones wait at its door.

Prompts go in as token ids over HTTP, and ids come out. A slot keeps its last prompt, and a new one that begins alike,
as all of a chat do, is computed from where they part. Each slot's keys and values lie apart, for one buffer of all
would be read whole for every token. Longest first leaves the shortest tail: its queue is first in, first out.
"""

import atexit
import http.client
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

from benchmarks.contest.work import Row

_SLOT_TOKENS = 2_048
_WAITING = 8  # requests beyond the slots: one that ends finds the next one there
_START_S = 120


def load(setup: dict[str, Any]) -> Callable[[list[Row]], Any]:
    """`setup`: server, gguf, parallel (slots), flash_attention, threads, index and of (which process of how many)."""
    port = _free_port()
    cores = sorted(os.sched_getaffinity(0))[setup["index"] * setup["threads"] :][: setup["threads"]]
    command = [setup["server"], "--model", setup["gguf"], "--host", "127.0.0.1", "--port", str(port), "--offline"]
    command += ["--parallel", str(setup["parallel"]), "--ctx-size", str(setup["parallel"] * _SLOT_TOKENS)]
    command += ["--threads", str(setup["threads"]), "--threads-http", str(setup["parallel"] + _WAITING)]
    command += ["--no-kv-unified", "--cache-ram", "0", "--ctx-checkpoints", "0", "--no-ui"]
    command += ["--flash-attn", setup["flash_attention"]]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=lambda: os.sched_setaffinity(0, cores))
    atexit.register(server.kill)
    _wait_for(server, port)
    return ask_with(ThreadPoolExecutor(setup["parallel"] + _WAITING), port, setup["stop_ids"])


def ask_with(threads: ThreadPoolExecutor, port: int, stop_ids: list[int]) -> Callable[[list[Row]], Any]:
    """Return what answers rows, with as many requests at once as there are threads."""

    def ask(row: Row) -> tuple[str, list[int]]:
        # A connection for each: between two runs the server closes those that are idle.
        with closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
            connection.request("POST", "/completion", json.dumps(_question(row, stop_ids)))
            reply = connection.getresponse()
            said = json.loads(reply.read())
        if reply.status != http.HTTPStatus.OK:
            raise RuntimeError(f"{row.key}: {said}")
        return row.key, said["tokens"]

    def answer(rows: list[Row]) -> Any:
        ordered = sorted(rows, key=lambda row: -(len(row.prompt_ids) + row.num_new_tokens))
        return [*threads.map(ask, ordered)], {}

    return answer


def _question(row: Row, stop_ids: list[int]) -> dict[str, Any]:
    return {
        "prompt": row.prompt_ids,
        "n_predict": row.num_new_tokens,
        "temperature": 0.0,
        "samplers": ["temperature"],
        "ignore_eos": not stop_ids,
        "cache_prompt": True,
        "return_tokens": True,
        "response_fields": ["tokens"],
    }


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _wait_for(server: subprocess.Popen[bytes], port: int) -> None:
    """Until it has loaded its model."""
    ends = time.monotonic() + _START_S
    while time.monotonic() < ends:
        if server.poll() is not None:
            raise RuntimeError(f"llama-server ended with {server.returncode}")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.2)
    raise RuntimeError(f"llama-server did not start in {_START_S} s")
