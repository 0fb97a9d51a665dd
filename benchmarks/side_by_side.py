"""Jobs in processes of their own that take their steps in turn (jobs/protocol.py is their side)."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

JOBS = Path(__file__).parent / "jobs"


def quick() -> bool:
    """Whether QUICK=1 asks for less of everything."""
    return os.environ.get("QUICK", "0") not in ("", "0")


@dataclass(frozen=True, slots=True)
class Measured:
    """Units and GFLOP of products a second at the median step (None where not counted), units a second after the first
    token of each row (of decoding), and peak memory in MB."""

    rate: float
    gflops: float | None
    peak_mb: float
    decode_rate: float | None = None


class EndedError(Exception):
    """A job's process ended before it was told to; the last that it said."""


@dataclass(slots=True)
class Job:
    """A process that takes a step when it is asked to (jobs/protocol.py)."""

    process: "subprocess.Popen[str]"
    errors: IO[str]
    steps: list[dict[str, float]] = field(default_factory=list)

    def answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            said = [part.strip() for part in self.errors if part.strip()]
            print("\n".join(said[-15:]), file=sys.stderr)
            raise EndedError(said[-1] if said else f"it ended with {self.process.wait()} and said nothing")
        found: dict[str, float] = json.loads(line)
        return found

    def step(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        self.steps.append(self.answer())

    def finish(self, warm: int) -> Measured:
        assert self.process.stdin is not None
        self.process.stdin.close()
        peak = self.answer()["peak_mb"]
        self.process.wait()
        return measured(self.steps[warm:], peak)


def measured(steps: Sequence[Mapping[str, float]], peak_mb: float) -> Measured:
    """Medians over steps."""
    products = [s["gflop"] / s["seconds"] for s in steps if "gflop" in s]
    further = [
        (s["units"] - s["first_units"]) / (s["seconds"] - s["first_seconds"])
        for s in steps
        if "first_seconds" in s and s["seconds"] > s["first_seconds"]
    ]
    return Measured(
        statistics.median(s["units"] / s["seconds"] for s in steps),
        statistics.median(products) if products else None,
        peak_mb,
        statistics.median(further) if further else None,
    )


@contextmanager
def started(python: str, script: str, *words: str) -> Iterator[Job]:
    environment = dict(os.environ) | {"PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    if python == sys.executable:
        environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    command = [python, str(JOBS / script), *words]
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
            )
        except OSError as error:
            raise EndedError(f"{python} does not start ({error.strerror})") from error
        with process:
            try:
                yield Job(process, errors)
            finally:
                process.kill()


def side_by_side(
    commands: Mapping[str, Sequence[str]], warm: int, counted: int
) -> tuple[dict[str, Measured], dict[str, str]]:
    """Every job's figures, their steps in turn; and why jobs that ended early have none."""
    failed: dict[str, str] = {}
    with ExitStack() as stack:
        jobs: dict[str, Job] = {}
        for name, command in commands.items():
            try:
                jobs[name] = stack.enter_context(started(*command))
            except EndedError as error:
                failed[name] = str(error)
        for name, job in jobs.items():  # they load at the same time
            try:
                job.answer()
            except EndedError as error:
                failed[name] = str(error)
        for _ in range(warm + counted):
            for name, job in jobs.items():
                if name not in failed:
                    try:
                        job.step()
                    except (EndedError, OSError) as error:
                        failed[name] = str(error)
        return {name: job.finish(warm) for name, job in jobs.items() if name not in failed}, failed
