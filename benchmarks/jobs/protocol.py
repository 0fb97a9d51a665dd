"""How a benchmark's parent drives a job in a process of its own: a line on stdin for each step, a JSON line back.

Standard library only: it also runs in the environments of other programs.
"""

import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class Meter:
    """Answers on the stdout that the process began with; whatever else writes there goes to stderr from now on."""

    def __init__(self) -> None:
        sys.stdout.flush()
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def say(self, **answer: float) -> None:
        print(json.dumps(answer), file=self.out, flush=True)

    def wanted(self) -> bool:
        """Wait for the parent; False when it has no more steps."""
        return bool(sys.stdin.readline())

    def finish(self) -> None:
        self.say(peak_mb=peak_mb())


def _gpu() -> Any:
    """torch.cuda where this process computes on a GPU."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def peak_mb() -> float:
    """The most memory that this process has held, on the GPU if it uses one. Linux counts the parent's into the child's
    ru_maxrss."""
    if gpu := _gpu():
        return gpu.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s*(\d+)", status.read_text())):
        return int(found[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 2**20)


def settle() -> None:
    """Wait for what the GPU still has to do, if this process uses one."""
    if gpu := _gpu():
        gpu.synchronize()


def _timed(step: Callable[[], Mapping[str, float]]) -> dict[str, float]:
    began = time.perf_counter()
    done = step()
    settle()
    return {**done, "seconds": time.perf_counter() - began}


def serve(
    step: Callable[[], Mapping[str, float]],
    meter: Meter,
    first: Callable[[], Mapping[str, float]] | None = None,
) -> None:
    """Run `step` whenever the parent asks; it returns the `units` of work that it did, and what else it knows. `first`:
    the part of a step before its last units, such as reading the prompts, timed after each step."""
    meter.say(ready=1)
    while meter.wanted():
        done = _timed(step)
        part = {} if first is None else {f"first_{name}": value for name, value in _timed(first).items()}
        meter.say(**done, **part)
    meter.finish()


def serve_decoding(decode: Callable[[int], float], options: Mapping[str, Any], meter: Meter) -> None:
    """Steps of `decode(new tokens a row)`, which returns how many it wrote; alone, the first token of each row tells
    what reading the prompts costs."""
    serve(lambda: {"units": decode(options["new_tokens"])}, meter, lambda: {"units": decode(1)})


def decoding_inputs() -> tuple[str, list[list[int]], dict[str, Any]]:
    """Model, prompts as tokens, and options of a decoding job, from its command line: decode MODEL PROMPTS OPTIONS."""
    _, model, data, options = sys.argv[1:5]
    return model, json.loads(Path(data).read_text(encoding="utf-8")), json.loads(options)
