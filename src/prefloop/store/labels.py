"""The label store: comparisons that wait, and the judgments of people and simulated people. Nothing is overwritten."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

from sqlalchemy import Connection, Engine, RowMapping, and_, bindparam, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from prefloop.configs.campaign import STRENGTHS
from prefloop.store import audit, db, tables
from prefloop.store.answers import told
from prefloop.store.campaigns import recount
from prefloop.types import CANT_JUDGE, Comparison, Json, Judgment, PrefloopError, from_json, to_json

STANDING = ("counted", "extra")
STATUSES = (*STANDING, "gold", "repeat", "unjudged")
BLANK: Mapping[str, Json] = to_json(Judgment(comparison_id="", annotator=""))
"""The fields that labels of the first schema lack."""
MOST_ANSWERS = 10
"""In one comparison: the ranks that the labeling page's form has digits for."""
_CHUNK = 500
_LATEST = 1e10  # in the year 2286; what is beyond is not in seconds
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLabels:
    """How much the store holds of one run."""

    run: str
    comparisons: int
    judgments: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """A judgment with what is known of how it came about. `group`: declared, of the annotator. `status`: counted,
    extra, gold, repeat or unjudged (see `tables`); empty: as the judgment says. Times in seconds, `at` since 1970."""

    judgment: Judgment
    simulated: bool = False
    group: str = ""
    status: str = ""
    late: bool = False
    uniform: bool = False
    campaign_version: int | None = None
    at: float | None = None
    server_seconds: float | None = None


def open_store(url: str = "") -> Store:
    """The label store at a SQLAlchemy URL (empty: prefloop.db in the current folder), made or migrated if need be.

    Raises PrefloopError when it cannot be opened, is no database, or its schema is newer than this program."""
    return Store(db.connect(url))


class Store:
    """Labels keyed by (run, comparison, annotator). Every method is one transaction; use it in a `with`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def engine(self) -> Engine:
        """The database, for what else works on it."""
        return self._engine

    def add_comparisons(self, run: str, comparisons: Sequence[Comparison]) -> int:
        """Add what is not there yet, all or nothing; returns how many were new.

        Raises PrefloopError when an id stands for other content, or a comparison has fewer than two items."""
        added = 0
        with db.transaction(self._engine, write=True) as connection:
            for chunk in _chunks(comparisons):
                known = _known(connection, run, [comparison.id for comparison in chunk])
                rows: dict[str, dict[str, object]] = {}
                for comparison in chunk:
                    row = _row(run, comparison)
                    before = known[comparison.id] if comparison.id in known else rows.setdefault(comparison.id, row)
                    if any(before[name] != row[name] for name in ("prompt", "items")):
                        raise PrefloopError(
                            f"Comparison {comparison.id} of run {run} is already there with other content; use another"
                            " run name."
                        )
                if rows:
                    connection.execute(insert(tables.comparisons), list(rows.values()))
                added += len(rows)
        return added

    def comparisons(self, run: str) -> list[Comparison]:
        """All comparisons of a run, in the order in which they were added."""
        table = tables.comparisons
        with db.transaction(self._engine, write=False) as connection:
            query = select(table).where(table.c.run == run).order_by(table.c.number)
            found = connection.execute(query).mappings().all()
        return [_comparison(row) for row in found]

    def pending(self, run: str, annotator: str) -> list[Comparison]:
        """The comparisons of a run that `annotator` has not judged, in the order in which they were added."""
        table, done = tables.comparisons, tables.judgments
        mine = and_(done.c.run == table.c.run, done.c.comparison_id == table.c.id, done.c.annotator == annotator)
        query = select(table).where(table.c.run == run, ~select(done.c.number).where(mine).exists())
        with db.transaction(self._engine, write=False) as connection:
            found = connection.execute(query.order_by(table.c.number)).mappings().all()
        return [_comparison(row) for row in found]

    def add_judgments(self, run: str, judgments: Sequence[Judgment], *, simulated: bool) -> int:
        """Add judgments, all or nothing, on disk when this returns; returns how many were new.

        Of two judgments of one comparison by one annotator the first stays. Raises PrefloopError for an unknown
        comparison, a judgment that does not fit its items, or an annotator known as the other of real and simulated."""
        return self.add_labels(run, [Label(judgment=judgment, simulated=simulated) for judgment in judgments])

    def add_labels(self, run: str, labels: Sequence[Label], *, by: str = "prefloop") -> int:
        """`add_judgments`, each with what else is known of it; one of an item shown again is a second one. `by`: who
        adds them, for the audit log."""
        numbers: list[int] = []
        with db.transaction(self._engine, write=True) as connection:
            _introduce(connection, labels)
            for chunk in _chunks(labels):
                ids = [label.judgment.comparison_id for label in chunk]
                sizes, done = _sizes(connection, run, ids), _done(connection, run, ids)
                rows = []
                for label in chunk:
                    check_label(label, sizes.get(label.judgment.comparison_id), run)
                    row = _label_row(run, label)
                    key = (row["comparison_id"], row["annotator"], row["repeat"])
                    if key not in done:
                        done.add(key)
                        rows.append(row)
                if rows:
                    made = connection.execute(insert(tables.judgments).returning(tables.judgments.c.number), rows)
                    numbers.extend(made.scalars())
                    _count(connection, run, Counter(row["comparison_id"] for row in rows if row["status"] == "counted"))
            if numbers:
                recount(connection, run)
                audit.append(
                    connection, at=time.time(), actor=by, kind="labels added", content={"run": run}, judged=numbers
                )
        return len(numbers)

    def judgments(self, run: str) -> list[Judgment]:
        """All judgments of a run that stand, in the order in which they were added: each annotator's latest of each
        comparison, without those of gold items, of items shown again, and of what an annotator could not judge."""
        table = tables.judgments
        stands = table.c.latest & ~table.c.withdrawn & table.c.status.in_(STANDING)
        query = select(table.c.content).where(table.c.run == run, stands).order_by(table.c.number)
        with db.transaction(self._engine, write=False) as connection:
            found = connection.execute(query).scalars().all()
        return [from_json(Judgment, content, "judgment in the store") for content in found]

    def annotators(self, run: str) -> Mapping[str, bool]:
        """Who judged in a run, sorted by name: {name: simulated}."""
        names = select(tables.judgments.c.annotator).where(tables.judgments.c.run == run)
        with db.transaction(self._engine, write=False) as connection:
            found = connection.execute(select(tables.annotators).where(tables.annotators.c.name.in_(names))).all()
        return dict(sorted((row.name, row.simulated) for row in found))

    def runs(self) -> list[RunLabels]:
        """What there is of each run, the oldest run first."""
        table, done = tables.comparisons, tables.judgments
        totals = select(table.c.run, func.count()).group_by(table.c.run).order_by(func.min(table.c.number))
        with db.transaction(self._engine, write=False) as connection:
            judged = dict(map(tuple, connection.execute(select(done.c.run, func.count()).group_by(done.c.run)).all()))
            found = connection.execute(totals).all()
        return [RunLabels(run=run, comparisons=n, judgments=judged.get(run, 0)) for run, n in found]

    def verify(self) -> audit.Verified:
        """Go through the audit log and every judgment; raises PrefloopError where something was tampered with."""
        with db.transaction(self._engine, write=False) as connection:
            return audit.verify(connection)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _chunks(items: Sequence[_Item]) -> Iterator[Sequence[_Item]]:
    """Few enough at a time for the databases' limits on parameters."""
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]


def _row(run: str, comparison: Comparison) -> dict[str, object]:
    size = len(comparison.items)
    if size < 2:
        raise PrefloopError(f"Comparison {comparison.id} has {size} items; a comparison needs at least two.")
    content = {"prompt": to_json(comparison.prompt), "items": to_json(comparison.items)}
    id_, slice_ = storable(comparison.id, "Comparison"), storable(comparison.prompt.slice, "Slice")
    return {"run": run, "id": id_, "size": size, "slice": slice_} | content


def _label_row(run: str, label: Label) -> dict[str, Json]:
    judgment = label.judgment
    facts = {name: getattr(label, name) for name in ("late", "uniform", "campaign_version", "at", "server_seconds")}
    status = label.status or ("unjudged" if CANT_JUDGE in judgment.flags else "counted")
    return {
        "run": run,
        "comparison_id": judgment.comparison_id,
        "annotator": judgment.annotator,
        "repeat": int(status == "repeat"),
        "status": status,
        **told(judgment),
        **facts,
    }


def _count(connection: Connection, run: str, judged: Mapping[str, int]) -> None:
    table = tables.comparisons
    where = (table.c.run == run) & (table.c.id == bindparam("b_id"))
    more = {name: table.c[name] + bindparam("b_more") for name in ("counted", "taken")}
    rows = [{"b_id": id_, "b_more": count} for id_, count in judged.items()]
    if rows:
        connection.execute(update(table).where(where).values(more), rows)


def _comparison(row: RowMapping) -> Comparison:
    content = {name: row[name] for name in ("id", "prompt", "items")}
    return from_json(Comparison, content, f"comparison {row['id']} in the store")


def _known(connection: Connection, run: str, ids: Sequence[str]) -> dict[str, RowMapping]:
    table = tables.comparisons
    found = connection.execute(select(table).where(table.c.run == run, table.c.id.in_(ids))).mappings()
    return {row["id"]: row for row in found}


def _sizes(connection: Connection, run: str, ids: Sequence[str]) -> dict[str, int]:
    table = tables.comparisons
    found = connection.execute(select(table.c.id, table.c.size).where(table.c.run == run, table.c.id.in_(ids)))
    return {row.id: row.size for row in found}


def _done(connection: Connection, run: str, ids: Sequence[str]) -> set[tuple[str, str, int]]:
    table = tables.judgments
    query = select(table.c.comparison_id, table.c.annotator, table.c.repeat)
    query = query.where(table.c.run == run, table.c.comparison_id.in_(ids))
    return {(row.comparison_id, row.annotator, row.repeat) for row in connection.execute(query)}


def _introduce(connection: Connection, labels: Sequence[Label]) -> None:
    known = {row.name: row.simulated for row in connection.execute(select(tables.annotators))}
    new: dict[str, dict[str, Json]] = {}
    for label in labels:
        name = label.judgment.annotator
        if known.setdefault(name, label.simulated) != label.simulated:
            kinds = ("simulated", "a real person") if known[name] else ("a real person", "simulated")
            raise PrefloopError(f"Annotator {name!r} is known as {kinds[0]}, not {kinds[1]}; use another name.")
        row = {"name": storable(name, "Annotator"), "simulated": label.simulated}
        new.setdefault(name, {**row, "group": storable(label.group, f"Group of {name!r}")})
    if new:
        dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
        connection.execute(dialect.insert(tables.annotators).on_conflict_do_nothing(), list(new.values()))


def storable(text: str, what: str) -> str:
    """The text, if a column of text can hold it. Raises PrefloopError for NUL and lone surrogates."""
    if _NO_TEXT.search(text):
        raise PrefloopError(f"{what}: {text!r:.100} holds a character that is no text; give it another name.")
    return text


def check_label(label: Label, size: int | None, run: str) -> None:
    """Raises PrefloopError where a label does not fit a comparison of so many items (None: there is no such one)."""
    judgment = label.judgment
    what = f"Judgment of comparison {judgment.comparison_id} by {judgment.annotator!r}"
    if label.status not in ("", *STATUSES):
        raise PrefloopError(f"{what}: status {label.status!r} is not one of {', '.join(STATUSES)}.")
    unjudged = judgment.ranking is None and judgment.probability is None
    if label.status in ("counted", "extra", "unjudged") and unjudged != (label.status == "unjudged"):
        raise PrefloopError(f"{what}: its status {label.status!r} does not fit what it says.")
    if size is None:
        raise PrefloopError(f"{what}: run {run} has no such comparison; add it first.")
    given = (judgment.ranking is not None) + (judgment.probability is not None)
    if given > 1 or (given == 0) != (CANT_JUDGE in judgment.flags):
        raise PrefloopError(f"{what}: give either a ranking or a probability, or the flag {CANT_JUDGE!r}.")
    if judgment.ranking is not None and (len(judgment.ranking) != size or min(judgment.ranking) < 0):
        raise PrefloopError(f"{what}: the ranking needs {size} ranks from 0, one for each item.")
    if judgment.probability is not None and (size != 2 or not 0 <= judgment.probability <= 1):
        raise PrefloopError(f"{what}: a probability is a number from 0 to 1 about two items.")
    if misfit := _misfit(label, size):
        raise PrefloopError(f"{what}: {misfit}.")


def _misfit(label: Label, size: int) -> str:
    """What pages and exports could make nothing of; empty where all is well."""
    said, most = label.judgment, len(STRENGTHS)
    if said.strength is not None and not 1 <= said.strength <= most:
        return f"strength goes from 1 (barely) to {most} (much), it is {said.strength}"
    if not all(type(value) is int and abs(value) <= most for value in said.axes.values()):
        return f"axes need whole numbers from -{most} to {most}"
    if said.shown_order and sorted(said.shown_order) != list(range(size)):
        return f"shown_order needs each of 0 to {size - 1} once"
    if said.ratings and not (len(said.ratings) == size and all(1 <= rating <= 7 for rating in said.ratings)):
        return f"ratings need {size} numbers from 1 to 7, one for each item"
    if not all(len(met) == size for met in said.checks.values()):
        return f"checks need {size} answers for each box, one for each item"
    if label.at is not None and not 0 <= label.at < _LATEST:
        return f"at is a time in seconds since 1970, not {label.at:.15g}"
    if label.campaign_version is not None and not 1 <= label.campaign_version < 2**31:
        return f"campaign_version is a number from 1, not {label.campaign_version}"
    return ""
