"""A run's labels in memory, in narrow columns: read once, new ones added to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, case, select

from prefloop.configs.campaign import CampaignConfig
from prefloop.data.pairing import first_wins
from prefloop.ops.raters import SIDELESS
from prefloop.store.labels import STANDING
from prefloop.store.tables import campaign_versions, comparisons, judgments, tasks
from prefloop.types import Json

KINDS = (*STANDING, "gold", "repeat", "unjudged")
_KIND = {name: k for k, name in enumerate(KINDS)}
ABSENT = -100
"""No answer on this axis, or nothing known of a pair."""
PAIRS = 2**20
"""More than any comparison has pairs of answers."""
_CHUNK = 20_000
_OVERTAKEN = 1000  # judgments that PostgreSQL may show after a later one, since it was committed first

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """One row a judgment of two answers (of more: a row a pair of them), in the order in which they were added."""

    number: Ints
    unit: Ints  # comparison * PAIRS + which pair of its answers
    item: Ints
    rater: Ints
    repeat: Ints
    kind: Ints
    withdrawn: NDArray[np.bool_]
    reviewed: NDArray[np.bool_]  # said by a reviewer who had seen what others said
    turned: Floats  # 1 where the second answer stood before the first one, 0 where not, SIDELESS where nobody knows
    choice: Ints
    at: Floats  # 0 where it is not known
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
        self.version: int | None = None
        self._renamed = False
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
        self.version, axes, renamed = _asked(connection, self._run)
        if (axes, renamed) != (self.axes, self._renamed):
            self.axes, self._renamed, self.rows, self.count, self._seen = axes, renamed, nothing(len(axes)), 0, set()
        query = _query(self._run, self.number - _OVERTAKEN, by_axis=len(axes) > 1 or renamed)
        made = [self.rows]
        for part in connection.execute(query.execution_options(yield_per=_CHUNK)).partitions():
            if part[0].number <= self.number:
                part = [row for row in part if row.number not in self._seen]
            if part:
                made += self._told(connection, part)
                self.count += len(part)
                newest = max(self.number, part[-1].number) - _OVERTAKEN
                self._seen = {n for n in (*self._seen, *(row.number for row in part[-_OVERTAKEN:])) if n > newest}
        if len(made) > 1:
            self.rows = _joined(made)

    def _load_items(self, connection: Connection) -> None:
        columns = (comparisons.c.id, comparisons.c.number, comparisons.c.slice, comparisons.c.gold)
        rows = connection.execute(select(*columns).where(comparisons.c.run == self._run).order_by(columns[1]))
        for id_, number, slice_, gold in rows:
            self._items.setdefault(id_, (number, slice_, None if gold is None else gold["ranking"]))

    def _told(self, connection: Connection, found: Sequence[Json]) -> list[Rows]:
        """The rows of judgments: one of two answers, more of a ranking; of what could not be judged one that takes back
        the answer before."""
        said = dict(zip(found[0]._fields, zip(*found, strict=True), strict=True))
        if any(id_ not in self._items for id_ in said["comparison_id"]):
            self._load_items(connection)
        items = [self._items[id_] for id_ in said["comparison_id"]]
        for name in dict.fromkeys(said["annotator"]):
            self._raters.setdefault(name, len(self._raters))
        choice, seconds = np.array(said["choice"], dtype=float), np.array(said["seconds"], dtype=float)
        values = choice[:, None]
        if "axes" in said:
            both = zip(said["axes"], said["choice"], strict=True)
            values = np.array([self._values(axes, one) for axes, one in both], dtype=float)
        table = np.column_stack(
            [
                np.array(said["number"]),
                np.array([item for item, _, _ in items]),
                np.array([self._raters[name] for name in said["annotator"]]),
                np.array(said["repeat"]),
                np.array([_KIND[status] for status in said["status"]]),
                np.array(said["withdrawn"]),
                np.nan_to_num(np.array(said["at"], dtype=float)),
                np.where(np.isnan(seconds), np.array(said["server_seconds"], dtype=float), seconds),
                np.array(said["reviewed"], dtype=float),
                np.zeros(len(found)),
                np.array([SIDELESS if left is None else left == 1 for left in said["left"]]),
                choice,
                np.array([ABSENT if gold is None else _sign(gold, 0, 1) for _, _, gold in items]),
                values,
            ]
        )
        whole = np.isnan(choice)
        ranked = [
            row
            for place in np.flatnonzero(whole).tolist()
            for row in self._ranked(found[place], tuple(table[place, :9]), items[place][2])
        ]
        if ranked:
            table = np.concatenate([table[~whole], np.array(ranked, dtype=float)])
            table = table[np.argsort(table[:, 0], kind="stable")]
        return [_rows(table, len(self.axes))]

    def _values(self, said: Json, choice: Json) -> tuple[Json, ...]:
        """Strengths on the axes: by their names, since a campaign can ask about others first, or call them otherwise,
        than when this was said. Where it names no axes, the choice is about the first."""
        if not said:
            return (choice, *[ABSENT] * (len(self.axes) - 1))
        values = (said.get(name) for name in self.axes)
        return tuple(value if type(value) is int and abs(value) < -ABSENT else ABSENT for value in values)

    def _ranked(self, row: Json, about: tuple[Json, ...], gold: Json) -> list[tuple[Json, ...]]:
        ranked, chance, shown = (row.content[name] for name in ("ranking", "probability", "shown_order"))
        others = [ABSENT] * (len(self.axes) - 1)
        if ranked is None and chance is None:
            number, item, rater, repeat, kind, _, *times = about
            return [(number, item, rater, repeat, kind, True, *times, 0, False, 0, ABSENT, ABSENT, *others)]
        made = []
        pairs = [(a, b) for b in range(len(ranked or "ab")) for a in range(b)]
        for k, (a, b) in enumerate(pairs):
            choice = np.sign(first_wins(ranked, chance, a, b) - 0.5)
            turned = shown.index(b) < shown.index(a) if shown else SIDELESS
            known = ABSENT if gold is None else _sign(gold, a, b)
            made.append((*about, k, turned, choice, known, choice, *others))
        return made


def _sign(ranking: Sequence[int], a: int, b: int) -> int:
    return (ranking[a] < ranking[b]) - (ranking[a] > ranking[b])


def _query(run: str, after: int, by_axis: bool) -> Json:
    """Judgments; the content of those that `choice` does not say, the axes where they are asked for."""
    names = ("number", "comparison_id", "annotator", "repeat", "status", "withdrawn", "choice", "at")
    narrow = [judgments.c[name] for name in (*names, "server_seconds", "seconds", "left", *["axes"] * by_axis)]
    content = case((judgments.c.choice.is_(None), judgments.c.content)).label("content")
    reviews = select(tasks.c.id).where(tasks.c.run == run, tasks.c.kind == "review")
    query = select(*narrow, content, judgments.c.task.in_(reviews).label("reviewed"))
    return query.where(judgments.c.run == run, judgments.c.number > after).order_by(judgments.c.number)


def _asked(connection: Connection, run: str) -> tuple[int | None, tuple[str, ...], bool]:
    """The campaign's version, what it asks about now, and whether the first axis was ever another one. Of a run
    without a campaign, only which answer is better."""
    table = campaign_versions
    query = select(table.c.version, table.c.config).where(table.c.run == run).order_by(table.c.version)
    versions = [(number, CampaignConfig.model_validate(config).axes) for number, config in connection.execute(query)]
    if not versions:
        return None, ("overall",), False
    return *versions[-1], len({axes[0] for _, axes in versions}) > 1


def _rows(table: Floats, axes: int) -> Rows:
    """Of columns: number, item, rater, repeat, kind, withdrawn, at, seconds, reviewed, pair, turned, choice, gold, the
    axes."""
    number, item, rater, repeat, kind, withdrawn, at, seconds, reviewed, pair, turned, choice, gold = table.T[:13]
    whole = (number, item, rater, repeat, kind, choice, gold)
    names = ("number", "item", "rater", "repeat", "kind", "choice", "gold")
    return Rows(
        **{name: column.astype(np.int64) for name, column in zip(names, whole, strict=True)},
        unit=item.astype(np.int64) * PAIRS + pair.astype(np.int64),
        withdrawn=withdrawn > 0,
        reviewed=reviewed > 0,
        turned=turned.copy(),
        at=at.copy(),
        seconds=seconds.copy(),
        axes=table[:, -axes:].astype(np.int64),
    )


def _joined(parts: Sequence[Rows]) -> Rows:
    return Rows(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in Rows.__slots__})


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
    kinds = {"withdrawn": true, "reviewed": true, "axes": np.zeros((0, axes), np.int64)}
    kinds |= dict.fromkeys(("turned", "at", "seconds"), real)
    return Rows(**{name: kinds.get(name, whole) for name in Rows.__slots__})
