"""Functions that numba compiles, on the threads that torch computes with.

Each is a function of whole numbers, most of them addresses. Of its rows each thread takes the next by a ticket until
none is left. What is put off can run together later (see together.py).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryFile
from typing import Any

import torch
from numba import cfunc, types
from numba.core import config
from numba.extending import intrinsic

FAST = {"reassoc", "contract", "arcp", "nsz"}  # what floats may be taken for: numbers in any order, but infinities stay
Function = Callable[[Any], None]
Call = tuple[Function, Any, Any]
_SOURCES = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))))
_waiting: ContextVar[list[Call] | None] = ContextVar("_waiting", default=None)


@intrinsic
def ticket(_: Any, numbers: Any) -> Any:
    """The first of the numbers, which goes up by one: no two threads get the same."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        one = arguments[0].type.pointee(1)
        return builder.atomic_rmw("add", arguments[0], one, "monotonic")

    return types.int64(types.CPointer(types.int64)), generate


@intrinsic
def pointer(_: Any, address: Any, kind: Any) -> Any:
    """An address as a pointer to numbers of a kind."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(kind.instance_type)(address, kind), generate


def _folder() -> str:
    """Where what was compiled from these sources is kept; nothing where no file can be made there. Numba would look
    elsewhere then, and its key is one file, not what that calls."""
    try:
        home = config.CACHE_DIR or Path(os.environ.get("PREFLOOP_HOME") or "~/.cache/prefloop").expanduser() / "kernels"
        folder = Path(home) / _SOURCES.hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except (RuntimeError, OSError):  # the first where no home is known
        return ""
    return str(folder)


@cache
def _compiled(function: Function) -> Any:
    """As a C function, compiled once on this machine; where nothing can be kept, once a process."""
    compiler = partial(cfunc, types.void(types.CPointer(types.int64)), fastmath=FAST, error_model="numpy")
    folder, before = _folder(), config.CACHE_DIR
    try:
        config.CACHE_DIR = folder or before
        return compiler(cache=bool(folder))(function)
    except Exception:  # what is kept there was cut off, or has no room; what cannot be compiled fails again
        rmtree(folder, ignore_errors=True)
        return compiler()(function)
    finally:
        config.CACHE_DIR = before


@cache
def omp(name: str) -> Any:
    """A function of the OpenMP library that torch brings: another's threads would fight its own for the cores. None
    where it brings none that we know."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("lib*omp[.5-]*")):
        if hasattr(library := ctypes.CDLL(str(path)), name):
            return getattr(library, name)
    return None


def shared_out(function: Function, numbers: Any, rows: int, held: Any = None) -> None:
    """Call a function of numbers on as many threads as torch computes with, never fewer: libgomp would end the others.
    The first number is their ticket. `held`: what the numbers are addresses of."""
    if (waiting := _waiting.get()) is not None:
        waiting.append((function, numbers, held))
        return
    kernel, parallel = _compiled(function), omp("GOMP_parallel")
    address = ctypes.c_void_p(numbers.ctypes.data)
    if parallel is None or rows == 1:
        kernel.ctypes(ctypes.cast(address, ctypes.POINTER(ctypes.c_int64)))
    else:
        parallel(ctypes.c_void_p(kernel.address), address, torch.get_num_threads(), 0)


@contextmanager
def put_off() -> Iterator[list[Call]]:
    """Inside, what is shared out is not run but listed."""
    waiting: list[Call] = []
    token = _waiting.set(waiting)
    try:
        yield waiting
    finally:
        _waiting.reset(token)
