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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias


class Meter:
    """Answers on the stdout that the process began with; whatever else writes there goes to stderr from now on."""

    def __init__(self) -> None:
        sys.stdout.flush()
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def say(self, **answer: float) -> None:
        print(json.dumps(answer), file=self.out, flush=True)

    def asked(self) -> str:
        """Wait for the parent to ask for a step, by a word; "" when it has no more to ask."""
        return sys.stdin.readline().strip()


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


def timed(step: Callable[[], Mapping[str, float]]) -> dict[str, float]:
    """What the step returns (`units` of work, and what else it knows) and the seconds that it took."""
    began = time.perf_counter()
    done = step()
    settle()
    return {**done, "seconds": time.perf_counter() - began}


def serve(answer: Callable[[str], Mapping[str, float]], meter: Meter) -> None:
    """Answer each time the parent asks."""
    meter.say(ready=1)
    while word := meter.asked():
        meter.say(**answer(word), peak_mb=peak_mb())


Decode: TypeAlias = Callable[[list[list[int]], int, int], float]  # prompts, answers to each, new tokens -> tokens


def serve_decoding(decode: Decode, inputs: "Inputs", meter: Meter) -> None:
    """Decode the shape that the parent asks for, with all new tokens and with one: what that one takes is what reading
    the prompts costs."""

    def answer(word: str) -> dict[str, float]:
        prompts, group = inputs.shapes[word]
        whole = timed(lambda: {"units": decode(prompts, group, inputs.options["new_tokens"])})
        first = timed(lambda: {"units": decode(prompts, group, 1)})
        return whole | {f"first_{name}": value for name, value in first.items()}

    serve(answer, meter)


@dataclass(frozen=True)
class Inputs:
    """A decoding job's command line: decode MODEL SHAPES OPTIONS. Shapes are prompts as tokens and the number of
    answers to each, by name."""

    model: str
    shapes: dict[str, tuple[list[list[int]], int]]
    options: dict[str, Any]

    @classmethod
    def read(cls) -> "Inputs":
        _, model, shapes, options = sys.argv[1:5]
        return cls(model, json.loads(Path(shapes).read_text(encoding="utf-8")), json.loads(options))
