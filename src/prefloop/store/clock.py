"""Time that only goes forward, at its own pace, whatever is done to the machine's clock, and while it sleeps."""

from __future__ import annotations

import time

_BOOTTIME: int | None = getattr(time, "CLOCK_BOOTTIME", None)  # Linux: `monotonic` stands still during a suspend there


class Clock:
    """Seconds since 1970, as the machine says when this begins, or later where the database has seen later."""

    def __init__(self, seen: float = 0.0) -> None:
        self._start = max(time.time(), seen) - _running()

    def __call__(self) -> float:
        return self._start + _running()


def _running() -> float:
    """Seconds since some moment, by a clock that nobody sets."""
    return time.monotonic() if _BOOTTIME is None else time.clock_gettime(_BOOTTIME)
