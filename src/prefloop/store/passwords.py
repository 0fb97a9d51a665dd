"""Passwords as argon2id hashes."""

from __future__ import annotations

import functools
import secrets
import threading
import unicodedata

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError

from prefloop.types import PrefloopError

SHORTEST, LONGEST = 10, 256
_HASHER = PasswordHasher()  # argon2id with RFC 9106's second profile: 64 MiB, 3 passes, 4 lanes
_ROOM = threading.BoundedSemaphore(2)  # of memory: tries that come together wait for one another


def hashed(password: str) -> str:
    """What to keep of a password. Raises PrefloopError for one that is too short or too long."""
    if not SHORTEST <= len(password) <= LONGEST:
        raise PrefloopError(f"A password has {SHORTEST} to {LONGEST} characters; a few words in a row will do.")
    with _ROOM:
        return _HASHER.hash(_normal(password))


def matches(kept: str | None, password: str) -> bool:
    """Whether a password is the one that was kept. Takes as long where none was kept, and is False."""
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
