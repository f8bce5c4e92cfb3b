"""The model that ships, loaded once for the tests of this folder."""

from collections.abc import Iterator

import pytest
import torch
from tokenizers import Tokenizer
from transformers import GPTNeoXForCausalLM

from dolly_batch.tiny import MODEL_FOLDER


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads gain this small model nothing, and crawl where other work keeps them waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL_FOLDER / "tokenizer.json"))


@pytest.fixture(scope="session")
def model() -> GPTNeoXForCausalLM:
    return GPTNeoXForCausalLM.from_pretrained(MODEL_FOLDER, dtype=torch.float32).eval()
