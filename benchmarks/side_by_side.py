"""Jobs in processes of their own that take their steps in turn (jobs/protocol.py is their side)."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

JOBS = Path(__file__).parent / "jobs"
PAUSE = 0.3  # seconds before a step, in which the threads of the job before it stop spinning


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


@dataclass(frozen=True, slots=True)
class Outcome:
    """Figures by job, and why jobs that ended early have none."""

    found: dict[str, Measured]
    failed: dict[str, str]


class EndedError(Exception):
    """A job's process ended before it was told to; the last that it said."""


@dataclass(slots=True)
class Job:
    """A process that takes a step when it is asked to (jobs/protocol.py)."""

    process: "subprocess.Popen[str]"
    errors: IO[str]

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

    def step(self, asked: str) -> dict[str, float]:
        time.sleep(PAUSE)
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{asked}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer says why
        return self.answer()


def measured(steps: Sequence[Mapping[str, float]]) -> Measured:
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
        max(s["peak_mb"] for s in steps),
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
    commands: Mapping[str, Sequence[str]], asked: Sequence[str], warm: int, counted: int
) -> Iterator[tuple[str, Outcome]]:
    """Start all jobs, and of each thing asked for take their steps in turn."""
    failed: dict[str, str] = {}
    with ExitStack() as stack:
        jobs: dict[str, Job] = {}
        for name, command in commands.items():
            with noting(failed, name):
                jobs[name] = stack.enter_context(started(*command))
        for name, job in jobs.items():  # they load at the same time
            with noting(failed, name):
                job.answer()
        for word in asked:
            steps: dict[str, list[dict[str, float]]] = {name: [] for name in jobs}
            for _ in range(warm + counted):
                for name in [name for name in jobs if name not in failed]:
                    with noting(failed, name):
                        steps[name].append(jobs[name].step(word))
            done = {name: measured(each[warm:]) for name, each in steps.items() if name not in failed}
            yield word, Outcome(done, dict(failed))


@contextmanager
def noting(failed: dict[str, str], name: str) -> Iterator[None]:
    try:
        yield
    except EndedError as error:
        failed[name] = str(error)
