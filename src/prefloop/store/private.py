"""What others on this machine must not read: the workspace's key and its database, a key of pseudonyms."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

from prefloop.store import db
from prefloop.types import PrefloopError

KEY = "prefloop.key"
_OTHERS = 0o077


def workspace_key(folder: Path) -> bytes:
    """The workspace's secret of 32 bytes, made when first asked for. It is never shipped and never logged.

    Raises PrefloopError where others can read it, or where it is none."""
    path = folder / KEY
    try:
        if not path.exists():
            _make(path)
        if path.stat().st_mode & _OTHERS:
            raise PrefloopError(f"{path} signs logins, and others on this machine can read it: chmod 600 {path}")
        text = path.read_text("utf-8", "replace").strip()
    except OSError as error:
        raise PrefloopError(f"{path}: {error.strerror}; the workspace's key cannot be kept there.") from error
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise PrefloopError(f"{path} does not hold 64 hexadecimal digits; remove it, and a new key is made.")
    return bytes.fromhex(text)


def pseudonym_key(file: Path) -> bytes:
    """The bytes that pseudonyms depend on. PrefloopError where they cannot be read, or are fewer than 16."""
    try:
        key = file.read_bytes()
    except OSError as error:
        raise PrefloopError(f"{file}: cannot be read ({error.strerror}); give a file of random bytes.") from error
    if len(key) < 16:
        raise PrefloopError(f"{file}: a key needs at least 16 bytes; make one: head -c 32 /dev/urandom > {file}")
    return key


def keep_private(url: str) -> None:
    """Take the rights to an SQLite database from others. Raises PrefloopError where it is not ours."""
    path = db.file_of(url)
    for name in [] if path is None else [path, Path(f"{path}-wal"), Path(f"{path}-shm")]:
        try:
            if name.exists() and name.stat().st_mode & _OTHERS:
                name.chmod(0o600)
        except OSError as error:
            raise PrefloopError(f"{name}: {error.strerror}; its owner must keep it from others: chmod 600.") from error


def _make(path: Path) -> None:
    """Whole or not at all; of several who make it at once, one does."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(draft)
        except FileExistsError:
            return
    finally:
        draft.unlink(missing_ok=True)
