"""Accounts: who may come in, as what, and by which password or token."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, RowMapping, Select, bindparam, delete, func, insert, or_, select, update

from prefloop.configs.judge import JUDGE_PREFIX
from prefloop.store import audit, backoff, db, passwords
from prefloop.store.campaigns import MissingError
from prefloop.store.clock import Clock
from prefloop.store.tables import accounts, annotators, invites, sessions
from prefloop.types import Json, PrefloopError

ROLES = ("labeler", "reviewer", "admin")
"""Each may do what those before it may."""
PROGRAM = "prefloop"
"""Who acts in the audit log where nobody did."""
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9 ._-]{0,38}[A-Za-z0-9])?")


class TooManyTriesError(PrefloopError):
    """Wrong passwords, one after the other: `wait` seconds until the next one is looked at."""

    def __init__(self, wait: float) -> None:
        super().__init__(f"Too many wrong passwords; wait {max(round(wait), 1)} s and try again.")
        self.wait = wait

    @property
    def seconds(self) -> str:
        """For a Retry-After header."""
        return f"{max(round(self.wait), 1)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Somebody who may come in; nothing here is secret. Paused: no new tasks, and no more rights than a labeler."""

    name: str
    role: str
    group: str
    paused: bool
    created: float
    has_password: bool
    has_token: bool

    def may(self, role: str) -> bool:
        """Whether this account may do what `role` may."""
        return ROLES.index("labeler" if self.paused else self.role) >= ROLES.index(role)


class Accounts:
    """All accounts of a label store. `by`: who does it, for the audit log."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine, self._clock = engine, clock

    def create(self, name: str, role: str, group: str = "", *, password: str | None = None, by: str) -> Account:
        """A new account, which can come in by its password, if it gets one, or by a link.

        Raises PrefloopError where the name is taken, in whatever case, or is none."""
        kept = None if password is None else passwords.hashed(password)
        with db.transaction(self._engine, write=True) as connection:
            add(connection, name, role, group, kept, now=self._clock())
            self._log(connection, by, "account", {"account": name, "role": role, "group": group})
            return known(connection, name)

    def find(self, name: str) -> Account | None:
        """The account of a name, in whatever case."""
        with db.transaction(self._engine, write=False) as connection:
            return find(connection, name)

    def get(self, name: str) -> Account:
        """The account of a name, in whatever case. Raises MissingError where there is none."""
        with db.transaction(self._engine, write=False) as connection:
            return known(connection, name)

    def all(self) -> list[Account]:
        """Every account, by name."""
        with db.transaction(self._engine, write=False) as connection:
            rows = connection.execute(readable().order_by(func.lower(accounts.c.name))).mappings().all()
        return [account(row) for row in rows]

    def check_password(self, name: str, password: str, address: str) -> Account | None:
        """The account whose name and password these are, if any; an unknown name takes as long as a wrong password.

        Raises TooManyTriesError where the account or the address has to wait (see store/backoff.py)."""
        with passwords.queue():
            with db.transaction(self._engine, write=True) as connection:
                wait = backoff.charge(connection, name, address, self._clock())
                kept = connection.execute(select(accounts.c.password).where(_named(name))).scalar()
            if wait > 0:
                raise TooManyTriesError(wait)
            if not passwords.matches(kept, password):
                return None
        with db.transaction(self._engine, write=True) as connection:
            backoff.succeeded(connection, name, address)
            if kept is not None and passwords.outdated(kept):
                fresh = passwords.hashed(password)
                same = _named(name) & (accounts.c.password == kept)
                connection.execute(update(accounts).where(same).values(password=fresh))
            return find(connection, name)

    def set_password(self, name: str, password: str, *, by: str) -> None:
        """A new password; ends all sessions."""
        kept = passwords.hashed(password)
        with db.transaction(self._engine, write=True) as connection:
            name = known(connection, name).name
            connection.execute(update(accounts).where(accounts.c.name == name).values(password=kept))
            end_sessions(connection, name)
            self._log(connection, by, "password", {"account": name})

    def set_role(self, name: str, role: str, *, by: str) -> None:
        """Another role; ends all sessions and the token, which were given for the one before.

        Raises PrefloopError where no admin would be left."""
        check_role(role)
        with db.transaction(self._engine, write=True) as connection:
            before = known(connection, name)
            if role != before.role:
                connection.execute(update(accounts).where(accounts.c.name == before.name).values(role=role, token=None))
                _end(connection, before.name)
                self._log(connection, by, "role", {"account": before.name, "role": role, "before": before.role})

    def set_group(self, name: str, group: str, *, by: str) -> None:
        """Another declared group, by which figures can be split."""
        check_group(group)
        with db.transaction(self._engine, write=True) as connection:
            before = known(connection, name)
            if group != before.group:
                connection.execute(update(accounts).where(accounts.c.name == before.name).values(group=group))
                self._log(connection, by, "group", {"account": before.name, "group": group, "before": before.group})

    def pause(self, name: str, paused: bool, *, by: str) -> None:
        """Hand out no more tasks to a labeler, and take a reviewer's or an admin's rights, until this is undone.

        Raises PrefloopError where no admin would be left."""
        with db.transaction(self._engine, write=True) as connection:
            before = known(connection, name)
            if paused != before.paused:
                connection.execute(update(accounts).where(accounts.c.name == before.name).values(paused=paused))
                if paused:
                    _end(connection, before.name)
                self._log(connection, by, "pause" if paused else "unpause", {"account": before.name})

    def shut_out(self, name: str, *, by: str) -> None:
        """End whatever lets somebody in: sessions, token, password and links. A new link lets them in again.

        Raises PrefloopError where no admin would be left who can come in."""
        with db.transaction(self._engine, write=True) as connection:
            before = known(connection, name)
            name = before.name
            if before.may("admin") and connection.execute(_let_in(name, by, self._clock())).scalar() is None:
                raise PrefloopError(
                    f"{name} is the only admin who could come in again; give another one a password or a link first."
                )
            values = {"token": None, "password": None}
            connection.execute(update(accounts).where(accounts.c.name == name).values(values))
            connection.execute(delete(invites).where(invites.c.account == name, invites.c.used.is_(None)))
            _end(connection, name)
            self._log(connection, by, "shut out", {"account": name})

    def new_token(self, name: str, *, by: str) -> str:
        """An API token in place of the one before; it can do what the account can. It is shown now and never again."""
        token = "prefloop_" + secrets.token_urlsafe(32)
        self._set_token(name, digest(token), "token", by)
        return token

    def drop_token(self, name: str, *, by: str) -> None:
        """End the account's API token."""
        self._set_token(name, None, "token dropped", by)

    def by_token(self, token: str) -> Account | None:
        """The account of an API token; a paused one's lets nobody in."""
        with db.transaction(self._engine, write=False) as connection:
            row = connection.execute(_BY_TOKEN, {"b_token": digest(token)}).mappings().first()
        return None if row is None or row["paused"] else account(row)

    def _set_token(self, name: str, kept: str | None, kind: str, by: str) -> None:
        with db.transaction(self._engine, write=True) as connection:
            name = known(connection, name).name
            connection.execute(update(accounts).where(accounts.c.name == name).values(token=kept))
            self._log(connection, by, kind, {"account": name})

    def _log(self, connection: Connection, by: str, kind: str, content: Mapping[str, Json]) -> None:
        audit.append(connection, at=self._clock(), actor=by, kind=kind, content=content)


def add(connection: Connection, name: str, role: str, group: str, kept: str | None, *, now: float) -> None:
    """Insert an account; `kept`: its password, hashed. Raises PrefloopError as `Accounts.create` does."""
    check_name(name)
    check_role(role)
    check_group(group)
    taken = select(annotators.c.name).where(func.lower(annotators.c.name) == name.lower())
    if connection.execute(taken.limit(1)).scalar() is not None:
        raise PrefloopError(f"The name {name} is taken; choose another.")
    connection.execute(insert(annotators).values(name=name, simulated=False))
    row = {"name": name, "role": role, "group": group, "password": kept, "created": now}
    connection.execute(insert(accounts).values(row))


def find(connection: Connection, name: str) -> Account | None:
    """The account of a name, in whatever case."""
    row = connection.execute(readable().where(_named(name))).mappings().first()
    return account(row) if row else None


def known(connection: Connection, name: str) -> Account:
    """The account of a name, in whatever case. Raises MissingError where there is none."""
    found = find(connection, name)
    if found is None:
        raise MissingError("There is no such account.")
    return found


def readable() -> Select[Any]:
    """A query for what an Account shows."""
    columns = [accounts.c[name] for name in ("name", "role", "group", "paused", "created")]
    has = [accounts.c[name].is_not(None).label(f"has_{name}") for name in ("password", "token")]
    return select(*columns, *has)


_BY_TOKEN = readable().where(accounts.c.token == bindparam("b_token"))


def account(row: RowMapping) -> Account:
    """The record of a row that has the columns of `readable`."""
    names = ("name", "role", "group", "paused", "created", "has_password", "has_token")
    return Account(**{name: row[name] for name in names})


def digest(token: str) -> str:
    """What is kept of a token. It is random and long, so that no salt or slow hash is needed."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def end_sessions(connection: Connection, name: str) -> None:
    """Delete an account's sessions."""
    connection.execute(delete(sessions).where(sessions.c.account == name))


def check_name(name: str) -> None:
    """Raises PrefloopError for what cannot be the name of an account."""
    if not _NAME.fullmatch(name):
        raise PrefloopError(
            "A name has 1 to 40 letters (a to z), digits, spaces, dots, dashes or underscores, and begins and ends with"
            " a letter or a digit."
        )
    if name.lower().startswith(("simulated", JUDGE_PREFIX)) or name.lower() == PROGRAM:
        raise PrefloopError(f"The name {name} is kept for the program itself; choose another.")


def check_role(role: str) -> None:
    """Raises PrefloopError for what is no role."""
    if role not in ROLES:
        raise PrefloopError(f"A role is {', '.join(ROLES)}, not {role!r}.")


def check_group(group: str) -> None:
    """Raises PrefloopError for what cannot be the name of a group; none is fine."""
    if group and not _NAME.fullmatch(group):
        raise PrefloopError("A group has a name of up to 40 letters (a to z), digits, spaces, dots or dashes, or none.")


def _named(name: str) -> Json:
    return func.lower(accounts.c.name) == name.lower()


def _let_in(name: str, by: str, now: float) -> Select[Any]:
    """An admin but this one who is in, since they do this, or has a password, a token or a link."""
    link = invites.c.used.is_(None) & (invites.c.expires > now) & invites.c.account.is_not(None)
    ways = [
        accounts.c.name == by,
        accounts.c.password.is_not(None),
        accounts.c.token.is_not(None),
        accounts.c.name.in_(select(invites.c.account).where(link)),
    ]
    others = (accounts.c.role == "admin") & ~accounts.c.paused & (accounts.c.name != name)
    return select(accounts.c.name).where(others, or_(*ways)).limit(1)


def _end(connection: Connection, name: str) -> None:
    """End the sessions and the open invitations of somebody who lost rights."""
    admins = select(accounts.c.name).where(accounts.c.role == "admin", ~accounts.c.paused)
    if connection.execute(admins.limit(1)).scalar() is None:
        raise PrefloopError(f"{name} is the only admin; make another one first.")
    end_sessions(connection, name)
    connection.execute(delete(invites).where(invites.c.by == name, invites.c.used.is_(None)))
