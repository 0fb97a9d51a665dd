"""Sessions: what a browser's cookie stands for. The database knows only the hash of it."""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, and_, delete, insert, or_, select, update

from prefloop.store import audit, db
from prefloop.store.accounts import Account, account, digest, end_sessions, known, readable
from prefloop.store.clock import Clock
from prefloop.store.tables import accounts, sessions
from prefloop.types import Json, PrefloopError

_DAY = 24 * 3600.0
IDLE = {"labeler": 7 * _DAY, "reviewer": _DAY, "admin": _DAY / 2}
"""Seconds without a request after which a session ends."""
LONGEST = {"labeler": 30 * _DAY, "reviewer": 7 * _DAY, "admin": 7 * _DAY}
"""Seconds after which a session ends in any case."""
_NOTED = 60.0  # a session's last use is noted once a minute


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A signed-in browser. `id` is not what its cookie holds, and `csrf` is what its forms hold."""

    id: str
    account: Account
    csrf: str
    created: float
    seen: float


class Sessions:
    """All sessions of a label store."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine, self._clock = engine, clock

    def begin(self, name: str, *, instead_of: str = "") -> str:
        """Sign an account in; returns what the cookie holds. The session with the id `instead_of` ends."""
        token, now = secrets.token_urlsafe(32), self._clock()
        with db.transaction(self._engine, write=True) as connection:
            name = known(connection, name).name
            connection.execute(delete(sessions).where((sessions.c.id == instead_of) | _over(now)))
            row = {"id": digest(token), "account": name, "csrf": secrets.token_urlsafe(32)}
            connection.execute(insert(sessions).values(**row, created=now, seen=now))
        return token

    def find(self, token: str) -> Session | None:
        """The session of a cookie, unless it has ended."""
        now = self._clock()
        with db.transaction(self._engine, write=False) as connection:
            found = _find(connection, (sessions.c.id == digest(token)) & ~_over(now))
        if not found:
            return None
        if found[0].seen < now - _NOTED:
            with contextlib.suppress(PrefloopError):  # pages can be read while the disk is full
                self._note(found[0].id, now)
        return found[0]

    def of(self, name: str) -> list[Session]:
        """An account's sessions, the last used first."""
        with db.transaction(self._engine, write=False) as connection:
            found = _find(connection, (sessions.c.account == name) & ~_over(self._clock()))
        return sorted(found, key=lambda session: -session.seen)

    def end(self, id_: str) -> None:
        """Sign a browser out."""
        with db.transaction(self._engine, write=True) as connection:
            connection.execute(delete(sessions).where(sessions.c.id == id_))

    def end_all(self, name: str, *, by: str) -> None:
        """Sign an account out everywhere."""
        with db.transaction(self._engine, write=True) as connection:
            end_sessions(connection, name)
            audit.append(connection, at=self._clock(), actor=by, kind="signed out", content={"account": name})

    def _note(self, id_: str, now: float) -> None:
        with db.transaction(self._engine, write=True, turns=False) as connection:
            connection.execute(update(sessions).where(sessions.c.id == id_).values(seen=now))


def _over(now: float) -> Json:
    """Whether a session has ended, by its account's role."""
    ended = [
        and_(
            sessions.c.account.in_(select(accounts.c.name).where(accounts.c.role == role)),
            or_(sessions.c.seen < now - IDLE[role], sessions.c.created < now - LONGEST[role]),
        )
        for role in IDLE
    ]
    return or_(*ended)


def _find(connection: Connection, where: Json) -> list[Session]:
    own = [sessions.c.id, sessions.c.csrf, sessions.c.created.label("begun"), sessions.c.seen]
    query = readable().add_columns(*own).join(sessions, sessions.c.account == accounts.c.name).where(where)
    return [
        Session(id=row["id"], account=account(row), csrf=row["csrf"], created=row["begun"], seen=row["seen"])
        for row in connection.execute(query).mappings()
    ]
