"""Checkpoints to converse with: a process for each that is in use (`stages/reply.py`), so that no page loads a model.

A question waits in its checkpoint's queue; its answer is handed to a function, in a thread of the checkpoint's own. A
process that dies, or takes too long, fails the question that it had; the next one starts it anew. It ends with this
process, whatever that dies of, since its stdin does."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefloop.types import Message, PrefloopError, to_json

_log = logging.getLogger("prefloop.web")

BUSY = "Too many people are waiting for an answer; ask again in a minute. Your conversation is kept."
GONE = "The process that was to answer has ended; ask again. Your conversation is kept."
LATE = "The answer took too long; ask again. Your conversation is kept."
REFUSED = "Your partner could not answer this, as when a conversation gets too long. Say it shorter, or finish here."
BROKEN = "No answer could be had; whoever runs this server finds why in its output. Your conversation is kept."


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Seconds for a process to load its model, for an answer, and until one that nobody asks is ended; how many
    questions may wait."""

    load: float = 600.0
    answer: float = 180.0
    idle: float = 900.0
    queue: int = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer, and whether it ended by itself."""

    text: str
    finished: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    key: str
    messages: Sequence[Message]
    seed: int
    n: int
    deliver: Callable[[Sequence[Reply]], None]


class Partners:
    """All checkpoints that are in use. `folder`: from where their paths lead."""

    def __init__(self, folder: Path, patience: Patience | None = None) -> None:
        self._folder, self._patience = folder, patience or Patience()
        self._lock = threading.Lock()
        self._partners: dict[str, _Partner] = {}
        self._waiting: set[str] = set()
        self._problems: dict[str, str] = {}

    def ask(
        self,
        key: str,
        checkpoint: str,
        messages: Sequence[Message],
        *,
        seed: int,
        n: int,
        deliver: Callable[[Sequence[Reply]], None],
    ) -> None:
        """Have `n` answers made and handed to `deliver`. `key` names the question: while it waits it is asked once."""
        with self._lock:
            if key in self._waiting:
                return
            partner = self._partners.get(checkpoint)
            if partner is None:
                partner = self._partners[checkpoint] = _Partner(checkpoint, self._folder, self._patience, self._settle)
            self._problems.pop(key, None)
            try:
                partner.put(_Question(key=key, messages=messages, seed=seed, n=n, deliver=deliver))
            except queue.Full:
                self._problems[key] = BUSY
            else:
                self._waiting.add(key)

    def waiting(self, key: str) -> bool:
        """Whether an answer is on its way."""
        return key in self._waiting

    def problem(self, key: str) -> str:
        """Why the last question of that name had no answer; empty where it had."""
        return self._problems.get(key, "")

    def close(self) -> None:
        """End all processes."""
        with self._lock:
            ended = list(self._partners.values())
            self._partners.clear()
        for partner in ended:
            partner.close()

    def _settle(self, key: str, problem: str) -> None:
        with self._lock:
            self._waiting.discard(key)
            if problem:
                self._problems[key] = problem


class _Partner:
    """One checkpoint: its queue, its thread, its process."""

    def __init__(self, checkpoint: str, folder: Path, patience: Patience, settle: Callable[[str, str], None]) -> None:
        self._checkpoint, self._folder, self._patience, self._settle = checkpoint, folder, patience, settle
        self._questions: queue.Queue[_Question | None] = queue.Queue(maxsize=patience.queue)
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="partner", daemon=True)
        self._thread.start()

    def put(self, question: _Question) -> None:
        self._questions.put_nowait(question)

    def close(self) -> None:
        self._closed = True
        with contextlib.suppress(queue.Full):
            self._questions.put_nowait(None)
        process = self._process
        if process is not None:
            process.kill()  # which the thread sees, and cleans up
        self._thread.join(timeout=10)

    def _work(self) -> None:
        while not self._closed:
            try:
                question = self._questions.get(timeout=self._patience.idle)
            except queue.Empty:
                self._end()
                continue
            if question is not None:
                self._settle(question.key, self._answer(question))
        self._end()

    def _answer(self, question: _Question) -> str:
        """Deliver an answer; else why there is none."""
        place = (self._folder / self._checkpoint).resolve()
        if not (place.is_dir() and place.is_relative_to(self._folder.resolve())):
            _log.error("%s: conversations take checkpoints in the workspace's folder only.", self._checkpoint)
            return BROKEN
        try:
            process = self._started()
            request = {"id": question.key, "messages": to_json(tuple(question.messages))}
            _write(process, request | {"seed": question.seed, "n": question.n})
            made = _read(process, self._patience.answer)
            if "error" in made:
                _log.warning("%s did not answer: %s", self._checkpoint, made["error"])
                return REFUSED
            question.deliver([Reply(text=t, finished=f) for t, f in zip(made["texts"], made["finished"], strict=True)])
        except TimeoutError:
            self._end()
            return LATE
        except OSError:
            self._end()
            return GONE
        except PrefloopError as error:
            return str(error)
        except Exception:
            self._end()
            _log.exception("A conversation with %s", self._checkpoint)
            return BROKEN
        return ""

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        command = [sys.executable, "-m", "prefloop.stages.reply", self._checkpoint]
        # Ctrl-C in the server's terminal is for the server, which then ends this process: a session of its own.
        self._process = subprocess.Popen(
            command, cwd=self._folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        if self._closed:
            raise BrokenPipeError
        try:
            _read(self._process, self._patience.load)
        except OSError:
            _log.error("%s cannot answer in conversations; its own words stand above.", self._checkpoint)
            raise
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()


def _write(process: subprocess.Popen[bytes], request: Mapping[str, Any]) -> None:
    assert process.stdin
    process.stdin.write(json.dumps(request).encode() + b"\n")
    process.stdin.flush()


def _read(process: subprocess.Popen[bytes], seconds: float) -> Mapping[str, Any]:
    """A line of the process. Raises TimeoutError, and BrokenPipeError where the process has ended."""
    assert process.stdout
    number, line, end = process.stdout.fileno(), b"", time.monotonic() + seconds
    while not line.endswith(b"\n"):
        if not select.select([number], [], [], max(0.0, end - time.monotonic()))[0]:
            raise TimeoutError
        part = os.read(number, 65536)
        if not part:
            raise BrokenPipeError
        line += part
    made: Mapping[str, Any] = json.loads(line)
    return made
