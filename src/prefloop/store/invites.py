"""Links that let somebody in, once: new people with a role and a group, and known ones again."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, delete, insert, select, update

from prefloop.store import audit, db, passwords
from prefloop.store.accounts import PROGRAM, Account, add, check_group, check_role, digest, end_sessions, known
from prefloop.store.campaigns import MissingError
from prefloop.store.clock import Clock
from prefloop.store.tables import accounts, invites
from prefloop.types import Json

_DAY = 24 * 3600.0
NEW = 7 * _DAY
"""Seconds for which a link for a new person can be used."""
AGAIN = _DAY
"""Seconds for which a link for a known person can be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Invite:
    """A link that can still be used. `account`: of a known person. `id` is not what the link holds."""

    id: str
    role: str
    group: str
    account: str | None
    by: str
    expires: float


class Invites:
    """All one-time links of a label store. `by`: who does it, for the audit log."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine, self._clock = engine, clock

    def new(self, role: str, group: str = "", *, by: str) -> str:
        """What a link for a new person holds. It is shown now and never again."""
        check_role(role)
        check_group(group)
        with db.transaction(self._engine, write=True) as connection:
            return self._make(connection, {"role": role, "group": group, "account": None, "by": by}, NEW)

    def again(self, name: str, *, by: str) -> str:
        """What a link for a known person holds, who may set a new password with it."""
        with db.transaction(self._engine, write=True) as connection:
            who = known(connection, name)
            return self._make(connection, {"role": who.role, "group": who.group, "account": who.name, "by": by}, AGAIN)

    def start(self) -> str:
        """What a link for whoever started the server holds: the first admin, or one to be. Those before it end."""
        admins = select(accounts.c.name).where(accounts.c.role == "admin", ~accounts.c.paused)
        with db.transaction(self._engine, write=True) as connection:
            connection.execute(delete(invites).where(invites.c.by == PROGRAM, invites.c.used.is_(None)))
            name = connection.execute(admins.order_by(accounts.c.created).limit(1)).scalar()
            return self._make(connection, {"role": "admin", "group": "", "account": name, "by": PROGRAM}, AGAIN)

    def find(self, token: str) -> Invite | None:
        """What a link stands for, while it can be used. Looking does not use it up."""
        with db.transaction(self._engine, write=False) as connection:
            found = self._find(connection, invites.c.id == digest(token))
        return found[0] if found else None

    def open(self) -> list[Invite]:
        """Every link that people made and that can still be used, the next to expire first."""
        with db.transaction(self._engine, write=False) as connection:
            return self._find(connection, invites.c.by != PROGRAM)

    def withdraw(self, id_: str, *, by: str) -> None:
        """End a link. Raises MissingError where it cannot be used any more."""
        with db.transaction(self._engine, write=True) as connection:
            gone = delete(invites).where(invites.c.id == id_, invites.c.used.is_(None))
            if not connection.execute(gone).rowcount:
                raise MissingError("This link was used or withdrawn already.")
            self._log(connection, by, "link withdrawn", {"link": id_[:8]})

    def redeem(self, token: str, name: str = "", *, password: str | None = None) -> Account:
        """Use a link up: a new account under `name`, or the known one, whose other sessions end with a new password.

        Of several who try at once one gets in. Raises MissingError where the link cannot be used any more, and
        PrefloopError, with the link as it was, where the name or the password will not do."""
        kept = None if password is None else passwords.hashed(password)
        with db.transaction(self._engine, write=True) as connection:
            now = self._clock()
            usable = (invites.c.id == digest(token)) & invites.c.used.is_(None) & (invites.c.expires > now)
            if not connection.execute(update(invites).where(usable).values(used=now)).rowcount:
                raise MissingError("This link was used, has expired or was withdrawn; ask for a new one.")
            invite = connection.execute(select(invites).where(invites.c.id == digest(token))).mappings().one()
            if invite["account"] is None:
                add(connection, name, invite["role"], invite["group"], kept, now=now)
            else:
                name = invite["account"]
                if kept is not None:
                    connection.execute(update(accounts).where(accounts.c.name == name).values(password=kept))
                    end_sessions(connection, name)
            who = known(connection, name)
            content = {"account": who.name, "role": who.role, "link": invite["id"][:8], "password": kept is not None}
            self._log(connection, who.name, "link used", content)
            return who

    def _make(self, connection: Connection, row: Mapping[str, Json], seconds: float) -> str:
        token = secrets.token_urlsafe(32)
        connection.execute(delete(invites).where(invites.c.expires < self._clock() - 30 * _DAY))
        connection.execute(insert(invites).values({**row, "id": digest(token), "expires": self._clock() + seconds}))
        content = {"link": digest(token)[:8], "role": row["role"], "group": row["group"], "account": row["account"]}
        self._log(connection, row["by"], "link", content)
        return token

    def _find(self, connection: Connection, where: Json) -> list[Invite]:
        columns = [column for column in invites.c if column.name != "used"]
        usable = invites.c.used.is_(None) & (invites.c.expires > self._clock())
        rows = connection.execute(select(*columns).where(where, usable).order_by(invites.c.expires)).mappings()
        return [Invite(**row) for row in rows]

    def _log(self, connection: Connection, by: str, kind: str, content: Mapping[str, Json]) -> None:
        audit.append(connection, at=self._clock(), actor=by, kind=kind, content=content)
