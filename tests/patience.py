"""Waiting for what comes by itself, and not for what takes for ever."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def until(true: Callable[[], object], seconds: float = 240) -> None:
    """Wait until it holds."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


@contextmanager
def cpu_under(seconds: float) -> Iterator[None]:
    """Inside takes less of this process's CPU time. What other tests left is not collected meanwhile: in a large
    process that takes a second."""
    gc.disable()
    before = time.process_time()
    try:
        yield
        assert time.process_time() - before < seconds
    finally:
        gc.enable()
