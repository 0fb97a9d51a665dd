"""The audit log: each event carries the hash of the one before, and judgments the hash of their rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, bindparam, func, insert, select

from prefloop.store.tables import events, judgments
from prefloop.types import Json, PrefloopError

_LOCK = 0x61756474
_HASHED = [column for column in judgments.c if column.name != "latest"]
_CHUNK = 5000
_HEAD = select(events.c.hash).order_by(events.c.number.desc()).limit(1)
_SPAN = select(*_HASHED).where(judgments.c.number.between(bindparam("b_first"), bindparam("b_last")))
_SPAN = _SPAN.order_by(judgments.c.number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What `verify` went through, and the hash that now stands for all of it."""

    events: int
    judgments: int
    head: str


def begin(connection: Connection) -> None:
    """Start the log where there is none, over the judgments that are there already."""
    if connection.execute(select(events.c.number).limit(1)).first() is None:
        numbers = connection.execute(select(judgments.c.number)).scalars().all()
        append(connection, at=0.0, actor="prefloop", kind="log begun", judged=numbers)


def append(
    connection: Connection,
    *,
    at: float,
    actor: str,
    kind: str,
    content: Mapping[str, Json] | None = None,
    judged: Sequence[int] = (),
) -> None:
    """One more event; judged: numbers of the judgments that came with it. On PostgreSQL the log stays locked until the
    transaction ends, so this comes last in it."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
    content = dict(content or {})
    if judged:
        spans = _spans(judged)
        content |= {"judgments": spans, "sha256": _digest(connection, spans)}
    text = _canonical(content)
    row = {"at": at, "actor": actor, "kind": kind, "content": text, "previous": head(connection)}
    connection.execute(insert(events), {**row, "hash": _hash(row)})


def head(connection: Connection) -> str:
    """Hash of the last event."""
    return connection.execute(_HEAD).scalar() or ""


def verify(connection: Connection) -> Verified:
    """Go through the whole log and every judgment.

    Raises PrefloopError that names the first event or judgment that was changed, removed or slipped in. Whoever could
    rewrite the whole log, or take its newest events off together with their judgments, would go unseen, unless its head
    was noted elsewhere: exports carry it. Comparisons, known answers and campaigns' versions are not looked at."""
    previous, count, covered = "", 0, set[int]()
    for row in connection.execute(select(events).order_by(events.c.number)).mappings():
        where = f"Audit log, event {row['number']} ({row['kind']})"
        if row["previous"] != previous:
            raise PrefloopError(f"{where}: it does not follow the event before; one was changed or removed.")
        if row["hash"] != _hash(row):
            raise PrefloopError(f"{where}: its content is not what was logged.")
        content = json.loads(row["content"])
        if "judgments" in content:
            if _digest(connection, content["judgments"]) != content["sha256"]:
                raise PrefloopError(f"{where}: the judgments {content['judgments']} are not those that were logged.")
            covered.update(number for first, last in content["judgments"] for number in range(first, last + 1))
        previous, count = row["hash"], count + 1
    for number in connection.execute(select(judgments.c.number)).scalars():
        if number not in covered:
            raise PrefloopError(f"Judgment {number} was never logged: somebody wrote it past the program.")
    stale = select(judgments.c.number).where(judgments.c.latest != _is_latest()).limit(1)
    if (found := connection.execute(stale).scalar()) is not None:
        raise PrefloopError(f"Judgment {found} is marked as the latest answer where it is not, or the reverse.")
    return Verified(events=count, judgments=len(covered), head=previous)


def _is_latest() -> Json:
    later = judgments.alias()
    same = and_(*(later.c[c] == judgments.c[c] for c in ("run", "comparison_id", "annotator", "repeat")))
    return ~select(later.c.number).where(same, later.c.version > judgments.c.version).exists()


def _spans(numbers: Sequence[int]) -> list[list[int]]:
    """[1, 2, 3, 7] -> [[1, 3], [7, 7]]"""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return spans


def _digest(connection: Connection, spans: Sequence[Sequence[int]]) -> str:
    """Hash over the rows in spans of numbers, both ends included."""
    total = hashlib.sha256()
    for first, last in spans:
        for start in range(first, last + 1, _CHUNK):
            span = {"b_first": start, "b_last": min(start + _CHUNK - 1, last)}
            for row in connection.execute(_SPAN, span).mappings():
                total.update(hashlib.sha256(_canonical(dict(row)).encode()).digest())
    return total.hexdigest()


def _hash(row: Any) -> str:
    parts = [row[name] for name in ("at", "actor", "kind", "content", "previous")]
    return hashlib.sha256(_canonical(parts).encode()).hexdigest()


def _canonical(value: Json) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
