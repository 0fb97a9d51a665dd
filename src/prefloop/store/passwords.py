"""Passwords as argon2id hashes."""

from __future__ import annotations

import functools
import secrets
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError

from prefloop.types import PrefloopError

SHORTEST, LONGEST = 10, 256
_HASHER = PasswordHasher()  # argon2id with RFC 9106's second profile: 64 MiB, 3 passes, 4 lanes
_QUEUE = threading.BoundedSemaphore(8)  # of threads: all others' requests need some too
_ROOM = threading.BoundedSemaphore(2)  # of memory: tries that come together wait for one another


class BusyError(PrefloopError):
    """More people than this machine can check at once want to come in."""

    def __init__(self) -> None:
        super().__init__("Many people are signing in at this moment; try again in a few seconds.")


@contextmanager
def queue() -> Iterator[None]:
    """A place among those whose password is worked on. Raises BusyError where there is none."""
    if not _QUEUE.acquire(blocking=False):
        raise BusyError
    try:
        yield
    finally:
        _QUEUE.release()


def hashed(password: str) -> str:
    """What to keep of a password. Raises PrefloopError for one that is too short or too long."""
    if not SHORTEST <= len(password) <= LONGEST:
        raise PrefloopError(f"A password has {SHORTEST} to {LONGEST} characters; a few words in a row will do.")
    with queue(), _ROOM:
        return _HASHER.hash(_normal(password))


def matches(kept: str | None, password: str) -> bool:
    """Whether a password is the one that was kept; for use in a `queue`. False, and no sooner, where none was."""
    with _ROOM:
        try:
            _HASHER.verify(kept or _nobodys(), _normal(password))
        except VerifyMismatchError:
            return False
    return kept is not None


def outdated(kept: str) -> bool:
    """Whether a hash was made with other settings than today's."""
    return _HASHER.check_needs_rehash(kept)


def _normal(password: str) -> bytes:
    """One spelling of what keyboards compose differently (NIST SP 800-63B, 3.1.1.2)."""
    return unicodedata.normalize("NFKC", password).encode("utf-8", "surrogatepass")


@functools.cache
def _nobodys() -> str:
    return _HASHER.hash(secrets.token_bytes(32))
