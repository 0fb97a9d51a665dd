"""How a benchmark's parent drives a job in a process of its own: a line on stdin for each step, a JSON line back.

Standard library only: it also runs in the environments of other programs.
"""

import json
import re
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO


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
        self.say(peak_mb=peak_mb())


def peak_mb() -> float:
    """The most memory that this process has held. Linux counts the parent's into the child's ru_maxrss."""
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s*(\d+)", status.read_text())):
        return int(found[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 2**20)


def serve(step: Callable[[], Mapping[str, float]], meter: Meter | None = None) -> None:
    """Run `step` whenever the parent asks; it returns the `units` of work that it did, and what else it knows."""
    meter = meter or Meter()
    meter.say(ready=1)
    while meter.wanted():
        began = time.perf_counter()
        done = step()
        meter.say(**done, seconds=time.perf_counter() - began)
    meter.finish()


def prompts_of(data: str, tokenizer: Any, options: Mapping[str, Any]) -> list[list[int]]:
    """`rows` prompts of `prompt_tokens` tokens each, cut from what the rows of a data file say."""
    rows = [json.loads(line) for line in Path(data).read_text(encoding="utf-8").split("\n") if line]
    texts = [message["content"] for row in rows for message in [*row["prompt"], *row["chosen"]]]
    flat = [token for text in texts for token in tokenizer(text)["input_ids"]]
    size = options["prompt_tokens"]
    if len(flat) < size * options["rows"]:
        raise SystemExit(f"{data}: its {len(flat)} tokens are too few for {options['rows']} prompts of {size}.")
    return [flat[i * size : (i + 1) * size] for i in range(options["rows"])]
