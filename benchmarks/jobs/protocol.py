"""How a benchmark's parent drives a job in a process of its own: a line on stdin for each step, a JSON line back.

Standard library only: it also runs in the environments of other programs.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import TextIO


class Meter:
    """Answers on the stdout that the process began with; whatever else writes there goes to stderr from now on."""

    def __init__(self) -> None:
        self.out: TextIO = sys.stdout
        sys.stdout = sys.stderr

    def say(self, **answer: float) -> None:
        print(json.dumps(answer), file=self.out, flush=True)

    def wanted(self) -> bool:
        """Wait for the parent; False when it has no more steps."""
        return bool(sys.stdin.readline())

    def finish(self) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.say(peak_mb=peak / (1024 if sys.platform == "linux" else 2**20))


def serve(step: Callable[[], float]) -> None:
    """Run `step` whenever the parent asks; it returns the units of work that it did."""
    meter = Meter()
    meter.say(ready=1)
    while meter.wanted():
        began = time.perf_counter()
        units = step()
        meter.say(units=units, seconds=time.perf_counter() - began)
    meter.finish()
