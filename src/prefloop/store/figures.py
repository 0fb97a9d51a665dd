"""How far the labels of a campaign can be trusted: agreement, labelers, groups, what is disputed.

Labels are read once, in narrow columns, and kept in memory; new ones are added to them. The figures are those of
`ops.agreement` and `ops.raters` over each labeler's latest answers that stand."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, and_, case, select

from prefloop.configs.campaign import CampaignConfig
from prefloop.data.pairing import first_wins
from prefloop.ops.agreement import (
    RaterPairs,
    fleiss_kappa,
    gwet_ac1,
    krippendorff_alpha,
    percent_agreement,
    rater_pairs,
    tally,
)
from prefloop.ops.raters import pair_posterior, side_bias
from prefloop.ops.statistics import Figure, share
from prefloop.store import db
from prefloop.store.labels import STANDING
from prefloop.store.tables import accounts, campaign_versions, campaigns, comparisons, judgments
from prefloop.types import Json

DISPUTED = 200
"""Items in the review queue at most."""
_BUCKETS = 24
_CHUNK = 20_000
_RESAMPLES = 200
_KINDS = (*STANDING, "gold", "repeat", "unjudged")
_ABSENT = -100  # no answer on this axis

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """On which of two answers is better. `ordinal`: alpha over strengths, from much better to much worse."""

    percent: Figure
    without_ties: Figure
    alpha: Figure
    ordinal: Figure
    fleiss: Figure
    gwet: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Labeler:
    """`agreement`: share of pairs with another's label of the same item that are equal. `left`: share of preferences
    that are for the left answer. `gold`: share of known answers met, by the first answer. `repeats`: share of items
    that were said the same of when they came back swapped. `accuracy`: probability of preferring the better answer
    (`pair_posterior`), None where there is nothing to tell it by. `seconds`: the median; `per_hour`: labels, from the
    first to the last."""

    name: str
    group: str
    labels: int
    seconds: float | None
    per_hour: float
    agreement: Figure
    left: Figure
    gold: Figure
    repeats: Figure
    ties: Figure
    accuracy: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Disputed:
    """An item whose labels differ: share of pairs of them that are equal, and how many there are."""

    comparison_id: str
    agreement: float
    labels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Labels, and agreement of the items whose last label fell, between two times (seconds since 1970)."""

    start: float
    end: float
    labels: int
    agreement: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignFigures:
    """As of the judgment with `number`. groups: agreement between labelers of two groups, or of one."""

    number: int
    labels: int
    axes: Mapping[str, Agreement]
    slices: Mapping[str, Agreement]
    labelers: Sequence[Labeler]
    pairs: RaterPairs
    groups: Mapping[tuple[str, str], Figure]
    disputed: Sequence[Disputed]
    over_time: Sequence[Span]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
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
    gold: Ints  # what is known of the pair: 1, 0, -1, or _ABSENT
    axes: Ints  # [rows, axes]


class Figures:
    """The figures of one run. Threads may share it."""

    def __init__(self, engine: Engine, run: str) -> None:
        self._engine, self._run = engine, run
        self._lock = threading.Lock()
        self._read: list[list[Json]] = []
        self._number = 0
        self._items: dict[str, tuple[int, str, Json]] = {}
        self._raters: dict[str, int] = {}
        self._rows: _Rows | None = None
        self._axes: tuple[str, ...] = ()
        self._latest: CampaignFigures | None = None

    def latest(self) -> CampaignFigures | None:
        """The figures as last computed; None before the first time."""
        return self._latest

    def refresh(self) -> CampaignFigures:
        """Read what is new, and compute the figures anew where there is something."""
        with self._lock:
            with db.transaction(self._engine, write=False) as connection:
                self._load(connection)
                people = connection.execute(select(accounts.c.name, accounts.c.group))
                groups = {row.name: row.group for row in people}
            if self._latest is None or self._latest.number != self._number:
                names = list(self._raters)
                where = {number: (id_, slice_) for id_, (number, slice_, _) in self._items.items()}
                self._latest = _compute(self._rows, self._number, self._axes, names, groups, where)
            return self._latest

    def _load(self, connection: Connection) -> None:
        axes = _axes(connection, self._run)
        if axes != self._axes:
            self._axes, self._number, self._rows = axes, 0, None
        made: list[tuple[Json, ...]] = []
        for row in connection.execute(_query(self._run, self._number, axes).execution_options(yield_per=_CHUNK)):
            self._number = row[0]
            if row.comparison_id not in self._items:
                self._load_items(connection)
            made += self._told(row)
        if made:
            self._rows = _appended(self._rows, made)

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
        about = (row.number, number, rater, row.repeat, _KINDS.index(row.status), row.withdrawn)
        times = (row.at or 0.0, row.server_seconds if row.seconds is None else row.seconds)
        if row.content is None:
            known = _ABSENT if ranking is None else _sign(ranking, 0, 1)
            said = [row.choice, *(_ABSENT if value is None else value for value in row[_FIXED + 1 :])]
            return [(*about, 0, row.left == 1, row.choice, *times, known, said)]
        ranked, shown = row.content["ranking"], row.content["shown_order"]
        if row.status == "unjudged":
            nothing = (*about[:-1], True, 0, False, 0, *times, _ABSENT, [_ABSENT] * len(self._axes))
            return [nothing]
        pairs = [(a, b) for b in range(len(ranked or "ab")) for a in range(b)]
        made = []
        for k, (a, b) in enumerate(pairs):
            choice = round(2 * first_wins(ranked, row.content["probability"], a, b)) - 1
            known = _ABSENT if ranking is None else _sign(ranking, a, b)
            turned = bool(shown) and shown.index(b) < shown.index(a)
            rest = [_ABSENT] * (len(self._axes) - 1)
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


def _appended(before: _Rows | None, made: Sequence[tuple[Json, ...]]) -> _Rows:
    number, item, rater, repeat, kind, withdrawn, pair, turned, choice, at, seconds, gold, axes = zip(
        *made, strict=True
    )
    items = np.array(item, dtype=np.int64)
    new = _Rows(
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
    if before is None:
        return new
    return _Rows(**{name: np.concatenate([getattr(before, name), getattr(new, name)]) for name in _Rows.__slots__})


def _picked(rows: _Rows, which: Json) -> _Rows:
    return _Rows(**{name: getattr(rows, name)[which] for name in _Rows.__slots__})


def _last(rows: _Rows) -> _Rows:
    """The latest version of each answer, where it stands; of a judgment of several pairs all of them."""
    key = (rows.item * (int(rows.rater.max(initial=0)) + 1) + rows.rater) * 2 + rows.repeat
    order = np.unique(key, return_inverse=True)[1]
    newest = np.zeros(int(order.max(initial=-1)) + 1, dtype=np.int64)
    np.maximum.at(newest, order, rows.number)
    return _picked(rows, (newest[order] == rows.number) & ~rows.withdrawn)


def _first(rows: _Rows) -> _Rows:
    """The first version of each answer."""
    key = (rows.item * (int(rows.rater.max(initial=0)) + 1) + rows.rater) * 2 + rows.repeat
    order = np.unique(key, return_inverse=True)[1]
    oldest = np.full(int(order.max(initial=-1)) + 1, np.iinfo(np.int64).max)
    np.minimum.at(oldest, order, rows.number)
    return _picked(rows, oldest[order] == rows.number)


def _compute(
    rows: _Rows | None,
    number: int,
    axes: Sequence[str],
    names: Sequence[str],
    groups: Mapping[str, str],
    where: Mapping[int, tuple[str, str]],
) -> CampaignFigures:
    rows = rows if rows is not None else _nothing(len(axes))
    last = _last(rows)
    standing = _picked(last, last.kind < len(STANDING))
    sign = np.sign(standing.choice)
    pairs = rater_pairs(standing.unit, standing.rater, sign, resamples=_RESAMPLES)
    return CampaignFigures(
        number=number,
        labels=int(np.unique(standing.number).size),
        axes={name: _agreement(standing, k) for k, name in enumerate(axes)},
        slices=_by_slice(standing, where),
        labelers=_labelers(rows, last, standing, pairs, names, groups),
        pairs=pairs,
        groups=_by_group(pairs, names, groups),
        disputed=_disputed(standing, sign, where),
        over_time=_over_time(standing, sign),
    )


def _nothing(axes: int) -> _Rows:
    whole, true, real = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool), np.zeros(0)
    kinds = {"withdrawn": true, "turned": true, "at": real, "seconds": real, "axes": np.zeros((0, axes), np.int64)}
    return _Rows(**{name: kinds.get(name, whole) for name in _Rows.__slots__})


def _agreement(rows: _Rows, axis: int = 0) -> Agreement:
    value = rows.axes[:, axis]
    told = value != _ABSENT
    unit, value = rows.unit[told], value[told]
    side, strength = tally(unit, np.sign(value)), tally(unit, value)
    return Agreement(
        percent=percent_agreement(side, resamples=_RESAMPLES),
        without_ties=percent_agreement(side, leave_out=0, resamples=_RESAMPLES),
        alpha=krippendorff_alpha(side, resamples=_RESAMPLES),
        ordinal=krippendorff_alpha(strength, "ordinal", resamples=_RESAMPLES),
        fleiss=fleiss_kappa(side, resamples=_RESAMPLES),
        gwet=gwet_ac1(side, resamples=_RESAMPLES),
    )


def _by_slice(rows: _Rows, where: Mapping[int, tuple[str, str]]) -> dict[str, Agreement]:
    items, place = np.unique(rows.item, return_inverse=True)
    slices = np.array([where[int(item)][1] for item in items], dtype=str)
    names = sorted(set(slices.tolist()))
    return {name: _agreement(_picked(rows, slices[place] == name)) for name in names} if len(names) > 1 else {}


def _labelers(
    rows: _Rows, last: _Rows, standing: _Rows, pairs: RaterPairs, names: Sequence[str], groups: Mapping[str, str]
) -> list[Labeler]:
    gold, repeated = _first(rows), _consistent(last)
    gold = _picked(gold, (gold.gold != _ABSENT) & (gold.kind == _KINDS.index("gold")))
    met = np.sign(gold.choice) == gold.gold
    accuracy = _accuracy(standing)
    made = []
    for rater, name in enumerate(names):
        mine = _picked(standing, standing.rater == rater)
        sided = mine.choice != 0
        own = gold.rater == rater
        again = repeated.get(rater, (0, 0))
        hours = max(float(np.ptp(mine.at)) / 3600, 1 / 60) if mine.at.size else 1.0
        made.append(
            Labeler(
                name=name,
                group=groups.get(name, ""),
                labels=int(np.unique(mine.number).size),
                seconds=float(np.nanmedian(mine.seconds)) if np.isfinite(mine.seconds).any() else None,
                per_hour=mine.number.size / hours,
                agreement=_with_others(pairs, rater),
                left=side_bias(((mine.choice > 0) != mine.turned)[sided]),
                gold=share(int(met[own].sum()), int(own.sum()), "no item with a known answer was labeled"),
                repeats=share(*again, "no item came back"),
                ties=share(int((~sided).sum()), sided.size),
                accuracy=accuracy.get(rater),
            )
        )
    return made


def _with_others(pairs: RaterPairs, rater: int) -> Figure:
    place = np.flatnonzero(pairs.raters == rater)
    shared = pairs.shared[place[0]] * (pairs.raters != rater) if place.size else np.zeros(0)
    equal = np.nansum(pairs.agreement[place[0]] * shared) if place.size else 0.0
    return share(float(equal), int(shared.sum()), "nobody else labeled the same items")


def _consistent(last: _Rows) -> dict[int, tuple[int, int]]:
    """By rater: of how many items the same was said again, and how many came back."""
    back = _picked(last, last.repeat > 0)
    once = _picked(last, (last.repeat == 0) & np.isin(last.unit, back.unit))
    keys = zip(once.rater.tolist(), once.unit.tolist(), strict=True)
    said = dict(zip(keys, np.sign(once.choice).tolist(), strict=True))
    found: dict[int, tuple[int, int]] = {}
    for rater, unit, choice in zip(back.rater.tolist(), back.unit.tolist(), np.sign(back.choice).tolist(), strict=True):
        if (rater, unit) in said:
            same, total = found.get(rater, (0, 0))
            found[rater] = (same + (said[rater, unit] == choice), total + 1)
    return found


def _accuracy(rows: _Rows) -> dict[int, float]:
    """Of raters who share an item with another one."""
    counts = np.bincount(np.unique(rows.unit, return_inverse=True)[1]) if rows.unit.size else np.zeros(0)
    several = np.flatnonzero(counts > 1)
    if not several.size:
        return {}
    shared = np.isin(np.unique(rows.unit, return_inverse=True)[1], several)
    some = _picked(rows, shared)
    found = pair_posterior(some.unit, some.rater, some.choice, some.turned)
    return dict(zip(found.raters.tolist(), found.accuracy.tolist(), strict=True))


def _by_group(pairs: RaterPairs, names: Sequence[str], groups: Mapping[str, str]) -> dict[tuple[str, str], Figure]:
    own = [groups.get(names[rater], "") for rater in pairs.raters.tolist()]
    sums: dict[tuple[str, str], tuple[float, int]] = {}
    for a in range(len(own)):
        for b in range(a + 1, len(own)):
            if count := int(pairs.shared[a, b]):
                first, second = sorted((own[a], own[b]))
                equal, total = sums.get((first, second), (0.0, 0))
                sums[first, second] = (equal + float(pairs.agreement[a, b]) * count, total + count)
    return {key: share(equal, total) for key, (equal, total) in sorted(sums.items())} if len(set(own)) > 1 else {}


def _unit_agreement(rows: _Rows, sign: Ints) -> tuple[Ints, Ints, Floats, Floats]:
    """Units with two labels or more: item, labels, share of equal pairs of labels, time of the last label."""
    units, first, place = np.unique(rows.unit, return_index=True, return_inverse=True)
    votes = np.zeros((units.size, 3))
    np.add.at(votes, (place, sign + 1), 1)
    total = votes.sum(axis=1)
    latest = np.zeros(units.size)
    np.maximum.at(latest, place, rows.at)
    several = total > 1
    equal = (votes * (votes - 1)).sum(axis=1)[several] / (total * (total - 1))[several]
    return rows.item[first][several], total[several].astype(np.int64), equal, latest[several]


def _disputed(rows: _Rows, sign: Ints, where: Mapping[int, tuple[str, str]]) -> list[Disputed]:
    items, labels, equal, _ = _unit_agreement(rows, sign)
    order = np.lexsort((items, -labels, equal))
    found: dict[int, Disputed] = {}
    for place in order.tolist():
        item = int(items[place])
        if equal[place] >= 1 or len(found) == DISPUTED:
            break
        made = Disputed(comparison_id=where[item][0], agreement=float(equal[place]), labels=int(labels[place]))
        found.setdefault(item, made)
    return list(found.values())


def _over_time(rows: _Rows, sign: Ints) -> list[Span]:
    if not rows.at.size:
        return []
    edges = np.linspace(rows.at.min(), rows.at.max() + 1e-3, _BUCKETS + 1)
    _, _, equal, latest = _unit_agreement(rows, sign)
    labels = np.histogram(rows.at, edges)[0]
    units, agreed = np.histogram(latest, edges)[0], np.histogram(latest, edges, weights=equal)[0]
    return [
        Span(
            start=float(edges[k]),
            end=float(edges[k + 1]),
            labels=int(labels[k]),
            agreement=float(agreed[k] / units[k]) if units[k] else None,
        )
        for k in range(_BUCKETS)
    ]
