"""Code and text that nobody vouches for, run behind walls: no network, nothing of ours to read, change or delete, and
limits of time, memory, processes, disk and output. jail.py builds the walls, jailed.py works behind them."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from prefloop.types import Json, PrefloopError

Wall = Literal["namespaces", "uid", "limits"]
Reply = dict[str, Any]

SAFE: tuple[Wall, ...] = ("namespaces", "uid")
"""Walls that keep hostile code in, the strongest first."""
ANY: tuple[Wall, ...] = (*SAFE, "limits")
"""Also without a wall, for tasks that run no code of the answer."""
UNSAFE: tuple[Wall, ...] = SAFE if os.geteuid() == 0 else ANY
"""Code without walls, for people who ask for it; never as root, for whom no limit bounds the number of processes."""

PATIENCE = 5
"""A task may take so many times its processor time by the clock: others are at work beside it."""
_GRACE = 5.0
_MOST_REPLY = 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """`memory`: bytes of address space a process; `processes`: processes and threads at once; `file_size`: bytes a
    file, standard output among them; `disk`: bytes of the temporary folder, which is memory (namespaces only)."""

    memory: int = 1 << 30
    processes: int = 16
    file_size: int = 8 << 20
    disk: int = 64 << 20


class SandboxLostError(Exception):
    """The sandbox ended, or did not answer in time."""


class Sandbox:
    """A process behind the strongest of `walls` that this system can build, to be used as a context. Where a task takes
    it down, the next one finds a new one. `libraries` are imported before any task. `note`: what the wall lacks, empty
    for nothing.

    Raises PrefloopError where no wall can be built or a library is missing."""

    def __init__(
        self, walls: Sequence[Wall] = SAFE, libraries: Sequence[str] = (), limits: Limits | None = None
    ) -> None:
        self.libraries, self.limits = tuple(libraries), limits or Limits()
        self.wall = strongest(tuple(walls))
        self.note = ""
        self._jail: _Jail | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()

    def ask(self, task: Json, seconds: float, wall: float | None = None) -> Reply:
        """The reply to a task, or `why` there is none. It has `seconds` of processor time and `wall` of the clock
        (PATIENCE times as many where not given), and the sandbox a few more to say so. Where one that had others before
        is lost or full, that may be their doing: the task is asked again in a new one."""
        wall = PATIENCE * seconds if wall is None else wall
        fresh = self._jail is None
        try:
            reply = self._built().ask({**task, "seconds": seconds, "wall": wall}, wall + _GRACE)
        except SandboxLostError as error:
            reply = {"why": str(error), "lost": True}
        if "lost" not in reply and "full" not in reply:
            return reply
        self._close()
        if not fresh:
            return self.ask(task, seconds, wall)
        if why := reply.get("full"):
            raise PrefloopError(
                f"A new sandbox has no room for a task ({why}): free space in {tempfile.gettempdir()} or end other "
                "programs of this user."
            )
        return reply

    def _built(self) -> _Jail:
        if self._jail is None:
            try:
                self._jail = _Jail(self.wall, self.limits, self.libraries)
            except SandboxLostError as error:
                raise PrefloopError(f"The sandbox could not be built again ({error}).") from None
            self.note = _note(self.wall, self._jail.offline)
        return self._jail

    def _close(self) -> None:
        if self._jail:
            self._jail.close()
            self._jail = None


def _note(wall: Wall, offline: bool) -> str:
    lacks = {
        "namespaces": "",
        "uid": "Run as another user without namespaces: it could read files open to all. ",
        "limits": "Run without walls: it could read, change and delete files. ",
    }[wall]
    return lacks if offline else f"{lacks}It could use the network. "


@functools.cache
def strongest(walls: tuple[Wall, ...]) -> Wall:
    """The first of these walls that can be built here. Raises PrefloopError with every reason where none can."""
    reasons = []
    for wall in walls:
        try:
            jail = _Jail(wall, Limits())
        except SandboxLostError as error:
            reasons.append(str(error))
        else:
            jail.close()
            if jail.offline or wall == "limits":
                return wall
            reasons.append(f"{wall}: the network cannot be closed on this machine")
    raise PrefloopError(
        f"No sandbox can be built here ({'; '.join(reasons)}): allow user namespaces, or run as root in a container "
        "of its own; for a plain user, the reward 'unit_tests_unsafe' runs code without walls."
    )


class _Jail:
    """One process of jail.py and its folder. Raises SandboxLostError where the wall cannot be built."""

    def __init__(self, wall: Wall, limits: Limits, libraries: Sequence[str] = ()) -> None:
        self.folder = tempfile.mkdtemp(prefix="prefloop-sandbox-")
        plan = {**asdict(limits), "wall": wall, "libraries": libraries, "folder": self.folder, "parent": os.getpid()}
        self.process = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__).with_name("jail.py")), json.dumps(plan)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd="/",
            env={},
            start_new_session=True,
        )
        try:
            greeting = self._exchange(b"", 10 * _GRACE)
            if missing := greeting.get("missing"):
                raise PrefloopError(f'{missing} is missing: pip install "prefloop[verifiers]".')
            if greeting.get("built") is not True:
                raise SandboxLostError(str(greeting.get("why")))
        except BaseException:
            self.close()
            raise
        self.offline = greeting.get("offline") is True

    def ask(self, task: Json, seconds: float) -> Reply:
        return self._exchange(json.dumps(task).encode() + b"\n", seconds)

    def _exchange(self, message: bytes, seconds: float) -> Reply:
        """Sends a message while one line is awaited: neither side waits for the other to read."""
        assert self.process.stdin and self.process.stdout
        into, out, until, line = (
            self.process.stdin.fileno(),
            self.process.stdout.fileno(),
            time.monotonic() + seconds,
            b"",
        )
        os.set_blocking(into, False)
        with selectors.DefaultSelector() as waiting:
            waiting.register(out, selectors.EVENT_READ)
            if message:
                waiting.register(into, selectors.EVENT_WRITE)
            while not line.endswith(b"\n"):
                ready = waiting.select(max(0.0, until - time.monotonic()))
                if not ready:
                    raise SandboxLostError("time is up")
                for key, _ in ready:
                    if key.fd == into:
                        message = message[self._write(into, message) :]
                        if not message:
                            waiting.unregister(into)
                    else:
                        line += (piece := os.read(out, 1 << 16))
                        if not piece or len(line) > _MOST_REPLY:
                            raise SandboxLostError("the sandbox ended")
        try:
            reply = json.loads(line)
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict):
            raise SandboxLostError("the sandbox said nonsense")
        return reply

    def _write(self, into: int, message: bytes) -> int:
        try:
            return os.write(into, message[: 1 << 16])
        except BlockingIOError:
            return 0
        except BrokenPipeError:
            raise SandboxLostError("the sandbox ended") from None

    def close(self) -> None:
        """Ends it with everything that was started in it."""
        self.process.terminate()
        try:
            self.process.wait(2 * _GRACE)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()
        shutil.rmtree(self.folder, ignore_errors=True)
