"""Compiled kernels, kept on disk: what one process compiled in some twenty seconds, later ones load in one.

numba's own cache cannot hold kernels that are made for a shape by functions, as these are. Here a file holds one kernel
for one signature, in a folder named by a hash of all that its machine code comes from: the sources of the kernels, the
versions of Python, numba and llvmlite, numba's settings, and the CPU with its features. So no file is ever stale. A
file that cannot be read or loaded is as if it were not there. Loaded kernels are compared with torch as new ones are.
"""

import functools
import hashlib
import logging
import os
import pickle
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core import compiler, serialize
from numba.core.caching import NullCache
from numba.core.registry import cpu_target

from dolly_batch.system.user_cache import private_cache

log = logging.getLogger("dolly_batch.engine")

OFF = "DOLLY_BATCH_KERNEL_CACHE"
_MAX_AGE_S = 60 * 86_400
_SOURCES = Path(__file__).parent


def kept(compile_kernel: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """The kernel that `compile_kernel` returns for these arguments, taken from the disk where it is there."""
    kernel = compile_kernel(*args, **options)
    named = repr((compile_kernel.__module__, compile_kernel.__qualname__, args, sorted(options.items())))
    _give_names(kernel, hashlib.sha256(named.encode()).hexdigest()[:16])
    folder = _folder()
    if folder is not None:
        kernel._cache = KernelFiles(folder, named)
    return kernel


def _give_names(kernel: Any, name: str) -> None:
    """Name a kernel and the functions that were made with it, and so their symbols, by what they are made for.

    numba tells functions of one name apart by a number that each process counts anew. Of two symbols of one name in
    one process the linker takes the first, so a kernel that another process compiled could call this one's helpers.
    """
    function = kernel.py_func
    if "<locals>" not in function.__qualname__ or function.__qualname__.endswith(name):
        return
    function.__qualname__ += f".{name}"
    for cell in function.__closure__ or ():
        if hasattr(cell.cell_contents, "py_func"):
            _give_names(cell.cell_contents, name)


class KernelFiles(NullCache):
    """What numba asks for machine code before it compiles a kernel, and gives it to afterwards."""

    def __init__(self, folder: Path, named: str) -> None:
        self._folder, self._named = folder, named

    @property
    def cache_path(self) -> str:
        """The folder."""
        return str(self._folder)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled kernel for a signature, None where it is not there."""
        target_context.refresh()
        try:
            text = self._file(sig).read_bytes()
            digest, payload = text[:32], text[32:]
            if hashlib.sha256(payload).digest() != digest:
                return None
            # No pickle from elsewhere: the folder is this user's alone, and holds machine code anyway.
            return compiler.CompileResult._rebuild(target_context, *pickle.loads(payload))  # noqa: S301
        except Exception as error:  # whatever a pickle of another origin raises: it is compiled anew
            if not isinstance(error, FileNotFoundError):
                log.info("a kept kernel was not loaded: %s", type(error).__name__)
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep what was compiled; where the disk does not take it, it is compiled again the next time."""
        if data.lifted or data.library.has_dynamic_globals:
            return
        try:
            payload = serialize.dumps(data._reduce())
            with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as draft:
                draft.write(hashlib.sha256(payload).digest() + payload)
            os.replace(draft.name, self._file(sig))
        except OSError as error:
            log.info("a kernel was not kept: %s", error)

    def _file(self, sig: Any) -> Path:
        return self._folder / hashlib.sha256(f"{self._named} {sig!r}".encode()).hexdigest()[:32]


@functools.cache
def _folder() -> Path | None:
    """The folder for kernels of these sources on this CPU; those that were last used long ago are deleted."""
    if os.environ.get(OFF) == "off":
        return None
    parent = private_cache("kernels")
    folder = None if parent is None else private_cache(f"kernels/{_origin()}")
    if parent is None or folder is None:
        return None
    os.utime(folder)
    for other in parent.iterdir():
        if other.stat().st_mtime < time.time() - _MAX_AGE_S:
            shutil.rmtree(other, ignore_errors=True)
    return folder


def _origin() -> str:
    """A hash of all that the machine code comes from."""
    settings = {name: value for name, value in os.environ.items() if name.startswith("NUMBA_")}
    versions = (platform.python_version(), platform.python_implementation(), numba.__version__, llvmlite.__version__)
    cpu = cpu_target.target_context.codegen().magic_tuple()
    digest = hashlib.sha256(repr((versions, cpu, sorted(settings.items()))).encode())
    for source in sorted(_SOURCES.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:32]
