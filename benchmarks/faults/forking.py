"""Processes that begin with the program imported: forked from one that has done nothing else, where a start of Python
takes seconds to import torch and transformers. Each is a process of its own, to be watched and killed like any."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

_SERVER = """if True:
    import json, os, runpy, socket, sys
    import prefloop.stages.pipeline
    line = socket.socket(fileno=int(sys.argv[1]))
    while True:
        data, files, _, _ = socket.recv_fds(line, 2**20, 3)
        if not data:
            break
        asked = json.loads(data)
        if "wait" in asked:
            answer = os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1])
        elif not (answer := os.fork()):
            line.close()
            for number, file in enumerate(files):
                os.dup2(file, number)
                os.close(file)
            os.chdir(asked["folder"])
            os.environ.clear()
            os.environ.update(asked["environment"])
            sys.stdin, sys.stdout, sys.stderr = (open(k, "rw"[k > 0], buffering=1) for k in range(3))
            sys.argv = asked["words"]
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
            raise SystemExit
        for file in files:
            os.close(file)
        line.send(str(answer).encode())
"""


class Forks:
    """Starts them, one at a time. Ends with the process that made it."""

    def __init__(self) -> None:
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        command = [sys.executable, "-c", _SERVER, str(theirs.fileno())]
        self._server = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()])
        theirs.close()

    def start(
        self,
        *words: str,
        folder: Path,
        environment: Mapping[str, str] = os.environ,
        stdin: int | IO[Any] = subprocess.DEVNULL,
        stdout: int | IO[Any] = subprocess.DEVNULL,
        stderr: int | IO[Any] = subprocess.DEVNULL,
    ) -> Fork:
        """`python -m WORDS` in a folder; files as subprocess.Popen has them, pipes of bytes."""
        ours: list[IO[bytes] | None] = []
        theirs, given = [], []
        for number, file in enumerate((stdin, stdout, stderr)):
            kept = None
            if file == subprocess.PIPE:
                ends = os.pipe()
                kept = os.fdopen(ends[number == 0], "wb" if number == 0 else "rb")
                given.append(ends[number > 0])
                theirs.append(given[-1])
            elif file == subprocess.DEVNULL:
                given.append(os.open(os.devnull, os.O_RDWR))
                theirs.append(given[-1])
            else:
                theirs.append(file if isinstance(file, int) else file.fileno())
            ours.append(kept)
        asked = {"words": words, "folder": str(folder), "environment": dict(environment)}
        number = self.ask(asked, theirs)
        for end in given:
            os.close(end)
        return Fork(self, number, ours)

    def ask(self, asked: Mapping[str, Any], files: Sequence[int] = ()) -> int:
        socket.send_fds(self._line, [json.dumps(asked).encode()], files)
        return int(self._line.recv(64))

    def close(self) -> None:
        self._line.close()
        self._server.wait()


class Fork:
    """A process that Forks started: what subprocess.Popen calls pid, poll, wait, send_signal, kill and returncode."""

    def __init__(self, forks: Forks, pid: int, files: Sequence[IO[bytes] | None]) -> None:
        self.pid, self.returncode = pid, None
        self.stdin, self.stdout, self.stderr = files
        self._forks, self._handle = forks, os.pidfd_open(pid)

    def poll(self) -> int | None:
        """Its exit status, below 0 of a signal; None while it runs."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, once it has ended; subprocess.TimeoutExpired where it has not in `timeout` seconds."""
        status = self._ended(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            signal.pidfd_send_signal(self._handle, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._handle], [], [], timeout)[0]:
            self.returncode = self._forks.ask({"wait": self.pid})
            os.close(self._handle)
        return self.returncode

    def __enter__(self) -> Fork:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None:
            self.kill()
        self.wait()
        for file in (self.stdin, self.stdout, self.stderr):
            if file is not None:
                file.close()
