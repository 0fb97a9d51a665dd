"""Time that only goes forward, at its own pace, whatever is done to the machine's clock."""

from __future__ import annotations

import time


class Clock:
    """Seconds since 1970, as the machine says when this begins, or later where the database has seen later."""

    def __init__(self, seen: float = 0.0) -> None:
        self._start = max(time.time(), seen) - time.monotonic()

    def __call__(self) -> float:
        return self._start + time.monotonic()
