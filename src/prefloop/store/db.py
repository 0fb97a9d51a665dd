"""The label database: connections, transactions and schema migrations, on SQLite and PostgreSQL alike."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, func, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError, StatementError

from prefloop.data.jsonl import sync_folder
from prefloop.store import audit
from prefloop.types import PrefloopError

DEFAULT_URL = "sqlite:///prefloop.db"
VERSION_TABLE = "prefloop_schema"
_WAIT_SECONDS = 60
_WRITER_LOCK = 0x70726566
_TRIES = 4
_UNDONE = ("40001", "40P01", "23505")  # serialization failure, deadlock, a key that another just took
_migrating = threading.Lock()
_turns: WeakKeyDictionary[Engine, threading.Lock] = WeakKeyDictionary()
Made = TypeVar("Made")


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url or DEFAULT_URL)
    except ArgumentError as error:
        raise PrefloopError(
            f"{url!r} is no database URL; write sqlite:///FILE or postgresql://USER@HOST/NAME."
        ) from error
    backend = parsed.drivername.split("+")[0]
    if backend in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise PrefloopError(f"Labels are kept in SQLite or PostgreSQL, not {backend}; give a URL of one of them.")
    return parsed


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    # None: transactions begin where we say, DDL included, not where the driver guesses.
    connection.isolation_level = None
    for setting in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {setting}")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("prefloop_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def connect(url: str = "", *, wait: float = _WAIT_SECONDS) -> Engine:
    """An engine for the database at `url` (empty: prefloop.db here) whose schema is the newest. `wait`: seconds for
    another writer of an SQLite database to end.

    Raises PrefloopError when the URL is odd, the database cannot be opened or is no database, or its schema is newer
    than this program."""
    parsed = _parse(url)
    sqlite = parsed.get_backend_name() == "sqlite"
    try:
        engine = create_engine(
            parsed,
            json_serializer=partial(json.dumps, allow_nan=False),
            pool_pre_ping=not sqlite,
            connect_args={"timeout": wait} if sqlite else {},
        )
    except ImportError as error:
        raise PrefloopError('PostgreSQL needs its driver: pip install "prefloop[postgres]".') from error
    if sqlite:
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    try:
        with _migrating:
            _migrate(engine)
    except BaseException:
        engine.dispose()
        raise
    return engine


def file_of(url: str) -> Path | None:
    """The file of an SQLite database; None for others, and for one in memory."""
    parsed = _parse(url)
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        return None
    return Path(str(parsed.database))


_PUBLIC = {
    "database or disk is full": "the disk is full",
    "disk I/O error": "the disk cannot be written",
    "attempt to write a readonly database": "the database can only be read",
    "database is locked": "another program holds the database",
}


class DatabaseError(PrefloopError):
    """The database refused. `reason`: in its own words, which can name hosts and users; `public`: for anybody."""

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"Label database {place}: {reason}; check its URL, and that it is one.")
        self.reason = reason

    @property
    def public(self) -> str:
        return _PUBLIC.get(self.reason, "the database does not answer")


@contextmanager
def transaction(engine: Engine, *, write: bool, turns: bool = True) -> Iterator[Connection]:
    """One transaction, committed on leaving. Readers see the database as it was at one moment. Writers take turns,
    across processes too; on PostgreSQL those without `turns` lock only the rows that they change.

    Raises DatabaseError for whatever the database refuses."""
    try:
        with _turn(engine, write), engine.connect() as connection:
            connection = connection.execution_options(prefloop_write=write)
            if not write and engine.dialect.name == "postgresql":
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                if write and turns and engine.dialect.name == "postgresql":
                    connection.execute(select(func.pg_advisory_xact_lock(_WRITER_LOCK)))
                yield connection
    except (SQLAlchemyError, sqlite3.Error) as error:
        cause: Any = error.orig if isinstance(error, StatementError) else error
        reason = str(cause).strip().splitlines()[0]
        place = engine.url.render_as_string(hide_password=True)
        raise DatabaseError(place, reason) from error


@contextmanager
def _turn(engine: Engine, write: bool) -> Iterator[None]:
    """Writers of this process wait in line for SQLite's one place: SQLite itself would let each look for it at times
    that grow apart."""
    if not write or engine.dialect.name != "sqlite":
        yield
        return
    turn = _turns.setdefault(engine, threading.Lock())
    if not turn.acquire(timeout=_WAIT_SECONDS):
        raise sqlite3.OperationalError("database is locked")
    try:
        yield
    finally:
        turn.release()


def retried(engine: Engine, work: Callable[[Connection], Made]) -> Made:
    """What `work` makes in a writing transaction without turns, done again where PostgreSQL undid it for another's."""
    for left in reversed(range(_TRIES)):
        try:
            with transaction(engine, write=True, turns=False) as connection:
                return work(connection)
        except PrefloopError as error:
            undone = getattr(getattr(error.__cause__, "orig", None), "sqlstate", None) in _UNDONE
            if not (undone and left):
                raise
    raise AssertionError("unreachable")


def backup(engine: Engine, path: Path) -> dict[str, int | str]:
    """Copy a SQLite database as it is at this moment into a new file, for its owner alone; others go on working.

    Returns {"file", "bytes"}. Raises PrefloopError for PostgreSQL, and where the file is there or cannot be written."""
    if engine.dialect.name != "sqlite":
        raise PrefloopError(
            "PostgreSQL has its own tool for a copy while others work: pg_dump --format=custom --file=FILE DATABASE."
        )
    try:
        if path.exists():
            raise PrefloopError(f"{path}: is there already; choose another name.")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            _copy(engine, temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)
        return {"file": str(path), "bytes": path.stat().st_size}
    except (OSError, ValueError, sqlite3.Error) as error:
        raise PrefloopError(f"{path}: the copy cannot be written ({error}); check the path, and the room.") from error


def _copy(engine: Engine, path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
    connection = engine.raw_connection()
    try:
        connection.cursor().execute("VACUUM INTO ?", (str(path),))
    finally:
        connection.close()
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _migrate(engine: Engine) -> None:
    settings = Config()
    settings.set_main_option("script_location", "prefloop.store:migrations")
    script = ScriptDirectory.from_config(settings)
    with transaction(engine, write=False) as connection:
        if _revision(connection, script) == script.get_current_head():
            return
    with transaction(engine, write=True) as connection:
        settings.attributes["connection"] = connection
        if _revision(connection, script) != script.get_current_head():
            command.upgrade(settings, "head")
            audit.begin(connection)


def _revision(connection: Connection, script: ScriptDirectory) -> str | None:
    found = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()
    if found not in {None, *(revision.revision for revision in script.walk_revisions())}:
        place = connection.engine.url.render_as_string(hide_password=True)
        raise PrefloopError(f"Label database {place}: its schema {found} is newer than this program; upgrade prefloop.")
    return found
