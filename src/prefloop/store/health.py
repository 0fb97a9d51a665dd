"""Whether a label can be kept right now."""

from __future__ import annotations

import logging
import shutil
import threading
from pathlib import Path

from sqlalchemy import Engine, delete, insert

from prefloop.store import db
from prefloop.store.clock import Clock
from prefloop.store.tables import attempts

ROOM = 64 * 2**20
"""Bytes that must be free on the disk of an SQLite database."""
_OFTEN = 2.0  # seconds for which an answer holds, whoever asks
WAIT = 2.0
"""Seconds for another writer to end."""
_KEY = "health"
_log = logging.getLogger("prefloop.store")


class Health:
    """Writes to the database and forgets it again. Its engine should wait for WAIT seconds only."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine, self._clock = engine, clock
        self._lock, self._asked, self._reason = threading.Lock(), float("-inf"), ""

    def reason(self) -> str:
        """Why a label cannot be kept, in words for anybody; empty where it can. The log has the database's own."""
        with self._lock:
            if self._clock() >= self._asked + _OFTEN:
                self._reason = self._check()
                self._asked = self._clock()
            return self._reason

    def close(self) -> None:
        """Close its connections."""
        self._engine.dispose()

    def _check(self) -> str:
        if self._engine.dialect.name == "sqlite":
            free = shutil.disk_usage(Path(self._engine.url.database or "").absolute().parent).free
            if free < ROOM:
                return f"only {free // 2**20} MiB are left on the disk"
        try:
            with db.transaction(self._engine, write=True, turns=False) as connection:
                connection.execute(insert(attempts).values(key=_KEY, count=0, last=self._clock()))
                connection.execute(delete(attempts).where(attempts.c.key == _KEY))
        except db.DatabaseError as error:
            if error.public != self._reason:  # once, not with every look
                _log.error("%s", error)
            return error.public
        return ""
