"""How far a campaign and each of its labelers are, and what the practice round tells a labeler.

Read from counters and the ends of indices: the same few milliseconds with a million labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

from sqlalchemy import Connection, Engine, Row, select

from prefloop.store import db, queries
from prefloop.store.assignment import Task
from prefloop.store.clock import Clock
from prefloop.store.tables import comparisons, judgments, tasks
from prefloop.types import Json

_DAY = 86400.0
_RECENT_LABELS = 1000  # that a campaign's pace is measured on


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """A campaign: labels `wanted` and `had`, those counted an hour over the last day, seconds to go at that pace."""

    items: int
    wanted: int
    had: int
    pace: float | None
    seconds_left: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mine:
    """One labeler in one campaign: tasks `done`; about how many are `left` for them, others' work aside; seconds an
    answer takes (median of the last ones). Of the practice round, where feedback is on: pairs with a known order, and
    those `agreed` on."""

    done: int
    left: int
    seconds_each: float | None
    known: int
    agreed: int

    @property
    def seconds_left(self) -> float | None:
        return None if self.seconds_each is None else self.left * self.seconds_each


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """The known answer of a task of the practice round, by place: ranks, 0 best, and why. Of its `pairs`, the labeler
    ordered `agreed` the same; none where they could not judge."""

    ranks: tuple[int, ...]
    note: str
    pairs: int
    agreed: int


class Progress:
    """Progress in the campaigns of a label store."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine, self._clock = engine, clock

    def campaign(self, run: str) -> Whole:
        """The whole campaign, gold items and those held back aside."""
        with db.transaction(self._engine, write=False) as connection:
            items, wanted, had = _totals(connection, run)
            newest = select(judgments.c.status, judgments.c.at).where(judgments.c.run == run)
            rows = connection.execute(newest.order_by(judgments.c.number.desc()).limit(_RECENT_LABELS)).all()
        now = self._clock()
        times = [row.at for row in rows if row.status == "counted" and row.at is not None and row.at > now - _DAY]
        pace = (len(times) - 1) / max(now - min(times), 1) * 3600 if len(times) > 1 else None
        left = None if pace is None else (wanted - had) / pace * 3600
        return Whole(items=items, wanted=wanted, had=had, pace=pace, seconds_left=left)

    def labeler(self, run: str, annotator: str, calibration: int) -> Mine:
        """One labeler. calibration: tasks of the practice round to report on; 0 where there is no feedback."""
        with db.transaction(self._engine, write=False) as connection:
            items, wanted, had = _totals(connection, run)
            mine = {"b_run": run, "b_who": annotator}
            done = dict(map(tuple, connection.execute(queries.DONE, mine).all()))
            held = connection.execute(queries.DONE_THEN_HELD, mine).scalar_one()
            seconds = connection.execute(queries.SECONDS, mine).scalars().all()
            practice = _practice(connection, run, annotator, calibration)
            known = [_known(connection, row, annotator) for row in practice if row.kind == "gold"]
        took = [value for value in seconds if value is not None]
        answered = done.get("item", 0) + done.get("shared", 0)
        return Mine(
            done=sum(done.values()),
            left=_left(min(wanted - had, items - (answered - held)), answered, sum(done.values())),
            seconds_each=median(took) if took else None,
            known=sum(one.pairs for one in known if one),
            agreed=sum(one.agreed for one in known if one),
        )

    def known(self, task: Task, annotator: str) -> Known | None:
        """The known answer of a finished task of the practice round, where its campaign gives feedback."""
        if task.kind != "gold" or not task.config.feedback:
            return None
        with db.transaction(self._engine, write=False) as connection:
            for row in _practice(connection, task.run, annotator, task.config.calibration):
                if row.id == task.id:
                    return _known(connection, row, annotator)
        return None


def agreement(known: Sequence[int], given: Sequence[int]) -> int:
    """In how many pairs of places two rankings agree: the same one better, or tied in both."""

    def order(ranks: Sequence[int], a: int, b: int) -> int:
        return (ranks[a] > ranks[b]) - (ranks[a] < ranks[b])

    return sum(order(known, a, b) == order(given, a, b) for a, b in combinations(range(len(known)), 2))


def _left(waiting: int, answered: int, done: int) -> int:
    """What waits for a labeler, and the items answered, less every task done: a task takes one off whatever its kind,
    so that nobody can tell afterwards which had a known answer or came back. At least 1 while an item waits."""
    return max(waiting + answered - done, 1) if waiting > 0 else 0


def _totals(connection: Connection, run: str) -> tuple[int, int, int]:
    """Items, labels wanted, labels had; what one stratum has too many makes up for no other's lack."""
    rows = connection.execute(queries.STRATA, {"b_run": run}).all()
    items, wanted = sum(row.items for row in rows), sum(row.needed for row in rows)
    return items, wanted, sum(min(row.counted, row.needed) for row in rows)


def _practice(connection: Connection, run: str, annotator: str, count: int) -> list[Row[Json]]:
    """A labeler's first tasks, those of the practice round, as far as they are done."""
    if not count:
        return []
    columns = (tasks.c.number, tasks.c.id, tasks.c.run, tasks.c.comparison_id, tasks.c.kind, tasks.c.state)
    mine = (tasks.c.run == run) & (tasks.c.annotator == annotator)
    rows: list[Json] = []
    for state in ("open", "done", "expired"):
        first = select(*columns, tasks.c.shown).where(mine, tasks.c.state == state).order_by(tasks.c.number)
        rows += connection.execute(first.limit(count)).all()
    return [row for row in sorted(rows, key=lambda row: row.number)[:count] if row.state == "done"]


def _known(connection: Connection, task: Row[Json], annotator: str) -> Known | None:
    item = (comparisons.c.run == task.run) & (comparisons.c.id == task.comparison_id)
    gold = connection.execute(select(comparisons.c.gold).where(item)).scalar_one()
    same = (judgments.c.run == task.run) & (judgments.c.comparison_id == task.comparison_id)
    mine = same & (judgments.c.annotator == annotator) & judgments.c.latest & ~judgments.c.withdrawn
    content = connection.execute(select(judgments.c.content).where(mine)).scalar()
    if gold is None or content is None:
        return None
    known, given = gold["ranking"], content["ranking"]
    pairs = len(known) * (len(known) - 1) // 2
    return Known(
        ranks=tuple(known[item] for item in task.shown),
        note=gold.get("note", ""),
        pairs=pairs if given else 0,
        agreed=agreement(known, given) if given else 0,
    )
