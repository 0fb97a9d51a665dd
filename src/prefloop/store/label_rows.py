"""A run's labels in memory, in narrow columns: read once, new ones added to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, and_, case, select

from prefloop.configs.campaign import CampaignConfig
from prefloop.data.pairing import first_wins
from prefloop.store.labels import STANDING
from prefloop.store.tables import campaign_versions, campaigns, comparisons, judgments
from prefloop.types import Json

KINDS = (*STANDING, "gold", "repeat", "unjudged")
ABSENT = -100
"""No answer on this axis, or nothing known of a pair."""
_CHUNK = 20_000
_OVERTAKEN = 1000  # judgments that PostgreSQL may show after a later one, since it was committed first

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """One row a judgment of two answers (of more: a row a pair of them), in the order in which they were added."""

    number: Ints
    unit: Ints  # comparison, and which pair of its answers
    item: Ints
    rater: Ints
    repeat: Ints
    kind: Ints
    withdrawn: NDArray[np.bool_]
    turned: NDArray[np.bool_]
    choice: Ints
    at: Floats
    seconds: Floats
    gold: Ints  # what is known of the pair: 1, 0, -1, or ABSENT
    axes: Ints  # [rows, axes]


class Reader:
    """Reads the labels of one run, and what is new since the last time."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._seen: set[int] = set()
        self._items: dict[str, tuple[int, str, Json]] = {}
        self._raters: dict[str, int] = {}
        self.axes: tuple[str, ...] = ()
        self.rows = nothing(0)
        self.count = 0

    @property
    def number(self) -> int:
        """Of the last judgment read."""
        return max(self._seen, default=0)

    @property
    def raters(self) -> list[str]:
        """Names, by the numbers in `rows`."""
        return list(self._raters)

    @property
    def items(self) -> dict[int, tuple[str, str]]:
        """Comparison id and slice, by the numbers in `rows`."""
        return {number: (id_, slice_) for id_, (number, slice_, _) in self._items.items()}

    def load(self, connection: Connection) -> None:
        """Read what is new; everything, where the campaign asks about other axes than before."""
        axes = _axes(connection, self._run)
        if axes != self.axes:
            self.axes, self.rows, self.count, self._seen = axes, nothing(len(axes)), 0, set()
        made: list[tuple[Json, ...]] = []
        after = self.number - _OVERTAKEN
        for row in connection.execute(_query(self._run, after, axes).execution_options(yield_per=_CHUNK)):
            if row.number not in self._seen:
                self._seen.add(row.number)
                self.count += 1
                if row.comparison_id not in self._items:
                    self._load_items(connection)
                made += self._told(row)
        if made:
            self.rows = _appended(self.rows, made)
        self._seen = {number for number in self._seen if number > self.number - _OVERTAKEN}

    def _load_items(self, connection: Connection) -> None:
        columns = (comparisons.c.id, comparisons.c.number, comparisons.c.slice, comparisons.c.gold)
        rows = connection.execute(select(*columns).where(comparisons.c.run == self._run).order_by(columns[1]))
        for id_, number, slice_, gold in rows:
            self._items.setdefault(id_, (number, slice_, gold))

    def _told(self, row: Json) -> list[tuple[Json, ...]]:
        """The rows of a judgment: one of two answers, more of a ranking; of what could not be judged one that takes
        back the answer before."""
        number, _, gold = self._items[row.comparison_id]
        rater = self._raters.setdefault(row.annotator, len(self._raters))
        ranking = None if gold is None else gold["ranking"]
        about = (row.number, number, rater, row.repeat, KINDS.index(row.status), row.withdrawn)
        times = (row.at or 0.0, row.server_seconds if row.seconds is None else row.seconds)
        if row.content is None:
            known = ABSENT if ranking is None else _sign(ranking, 0, 1)
            said = [row.choice, *(ABSENT if value is None else value for value in row[_FIXED + 1 :])]
            return [(*about, 0, row.left == 1, row.choice, *times, known, said)]
        ranked, shown = row.content["ranking"], row.content["shown_order"]
        if row.status == "unjudged":
            nothing = (*about[:-1], True, 0, False, 0, *times, ABSENT, [ABSENT] * len(self.axes))
            return [nothing]
        pairs = [(a, b) for b in range(len(ranked or "ab")) for a in range(b)]
        made = []
        for k, (a, b) in enumerate(pairs):
            choice = round(2 * first_wins(ranked, row.content["probability"], a, b)) - 1
            known = ABSENT if ranking is None else _sign(ranking, a, b)
            turned = bool(shown) and shown.index(b) < shown.index(a)
            rest = [ABSENT] * (len(self.axes) - 1)
            made.append((*about, k, turned, choice, *times, known, [choice, *rest]))
        return made


def _sign(ranking: Sequence[int], a: int, b: int) -> int:
    return (ranking[a] < ranking[b]) - (ranking[a] > ranking[b])


_FIXED = 11


def _query(run: str, after: int, axes: Sequence[str]) -> Json:
    table = judgments.c
    fixed = (
        table.number,
        table.comparison_id,
        table.annotator,
        table.repeat,
        table.status,
        table.withdrawn,
        table.choice,
        table.at,
        table.server_seconds,
        table.content["seconds"].as_float().label("seconds"),
        table.content["shown_order"][0].as_integer().label("left"),
    )
    more = [table.content["axes"][name].as_integer() for name in axes[1:]]
    content = case((table.choice.is_(None), table.content)).label("content")
    return select(*fixed, content, *more).where(table.run == run, table.number > after).order_by(table.number)


def _axes(connection: Connection, run: str) -> tuple[str, ...]:
    """What the campaign asks about now; of a run without a campaign, only which answer is better."""
    same = and_(campaign_versions.c.run == campaigns.c.run, campaign_versions.c.version == campaigns.c.version)
    query = select(campaign_versions.c.config).join(campaigns, same).where(campaigns.c.run == run)
    config = connection.execute(query).scalar()
    return ("overall",) if config is None else CampaignConfig.model_validate(config).axes


def _appended(before: Rows, made: Sequence[tuple[Json, ...]]) -> Rows:
    number, item, rater, repeat, kind, withdrawn, pair, turned, choice, at, seconds, gold, axes = zip(
        *made, strict=True
    )
    items = np.array(item, dtype=np.int64)
    new = Rows(
        number=np.array(number, dtype=np.int64),
        unit=items * 64 + np.array(pair, dtype=np.int64),
        item=items,
        rater=np.array(rater, dtype=np.int64),
        repeat=np.array(repeat, dtype=np.int64),
        kind=np.array(kind, dtype=np.int64),
        withdrawn=np.array(withdrawn, dtype=bool),
        turned=np.array(turned, dtype=bool),
        choice=np.array(choice, dtype=np.int64),
        at=np.array(at, dtype=float),
        seconds=np.array([np.nan if value is None else value for value in seconds], dtype=float),
        gold=np.array(gold, dtype=np.int64),
        axes=np.array(axes, dtype=np.int64).reshape(len(made), -1),
    )
    return Rows(**{name: np.concatenate([getattr(before, name), getattr(new, name)]) for name in Rows.__slots__})


def picked(rows: Rows, which: Json) -> Rows:
    return Rows(**{name: getattr(rows, name)[which] for name in Rows.__slots__})


def latest_versions(rows: Rows) -> Rows:
    """The latest version of each answer, where it stands; of a judgment of several pairs all of them."""
    key = (rows.item * (int(rows.rater.max(initial=0)) + 1) + rows.rater) * 2 + rows.repeat
    order = np.unique(key, return_inverse=True)[1]
    newest = np.zeros(int(order.max(initial=-1)) + 1, dtype=np.int64)
    np.maximum.at(newest, order, rows.number)
    return picked(rows, (newest[order] == rows.number) & ~rows.withdrawn)


def first_versions(rows: Rows) -> Rows:
    """The first version of each answer."""
    key = (rows.item * (int(rows.rater.max(initial=0)) + 1) + rows.rater) * 2 + rows.repeat
    order = np.unique(key, return_inverse=True)[1]
    oldest = np.full(int(order.max(initial=-1)) + 1, np.iinfo(np.int64).max)
    np.minimum.at(oldest, order, rows.number)
    return picked(rows, oldest[order] == rows.number)


def nothing(axes: int) -> Rows:
    whole, true, real = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool), np.zeros(0)
    kinds = {"withdrawn": true, "turned": true, "at": real, "seconds": real, "axes": np.zeros((0, axes), np.int64)}
    return Rows(**{name: kinds.get(name, whole) for name in Rows.__slots__})
