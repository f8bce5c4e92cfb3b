"""The random models of the engine's tests."""

from tests.engine.conftest import gptj_folder, neox_folder

__all__ = ["gptj_folder", "neox_folder"]
