"""The labels of one run as arrays in memory, read from the database bit by bit."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, Select, case, func, select

from prefloop.configs.campaign import CampaignConfig
from prefloop.store import db
from prefloop.store.tables import accounts, campaign_versions, campaigns, comparisons, events, judgments
from prefloop.types import Json

STATUSES = {"counted": 0, "extra": 1, "gold": 2, "repeat": 3, "unjudged": 4}
NONE = -128
"""In a column of small integers: there is none."""
_ROWS = 20_000  # at a time
_NARROW = (
    "number",
    "comparison_id",
    "annotator",
    "repeat",
    "version",
    "withdrawn",
    "status",
    "at",
    "server_seconds",
    "choice",
)
_Part = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Items:
    """A run's comparisons by place [I]: id, slice, prompt, gold (a known ranking, where there is one), and the
    checkpoints of their answers [I, K], places in `models`, NONE where unknown."""

    ids: Sequence[str]
    slices: Sequence[str]
    prompts: Sequence[str]
    gold: Mapping[int, Sequence[int]]
    checkpoints: NDArray[np.int32]
    models: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """Every version of every label, one entry [N] a row of `judgments`: item and labeler (places in `items.ids` and
    `names`), status (as in STATUSES), first (the item that was shown first), at and seconds (NaN where unknown).
    values [N, A]: strength by axis, of two items. ranking and ratings [N, K]: by item, where more than two were ranked,
    and where ratings were given. Small integers are NONE where there is none."""

    config: CampaignConfig
    items: Items
    names: Sequence[str]
    groups: Sequence[str]
    number: NDArray[np.int64]
    item: NDArray[np.int64]
    labeler: NDArray[np.int64]
    repeat: NDArray[np.int8]
    version: NDArray[np.int32]
    withdrawn: NDArray[np.bool_]
    status: NDArray[np.int8]
    first: NDArray[np.int8]
    at: NDArray[np.float64]
    seconds: NDArray[np.float64]
    values: NDArray[np.int8]
    ranking: NDArray[np.int8]
    ratings: NDArray[np.int8]


class LabelTable:
    """Reads the labels of a run; what was read before is not read again. One thread at a time."""

    def __init__(self, engine: Engine, run: str) -> None:
        self._engine, self._run = engine, run
        self._event = -1
        self._parts = list[_Part]()
        self._config, self._groups = CampaignConfig(), dict[str, str]()
        self._clear()

    def read(self) -> bool:
        """Read what has come since; whether there was anything.

        The audit log says what is new: its events come one after another, while the numbers of judgments can become
        visible out of order."""
        with db.transaction(self._engine, write=False) as connection:
            config, groups = self._settings(connection)
            changed = (config, groups) != (self._config, self._groups) or self._event < 0
            anew = self._event < 0 or (config.axes, config.ratings) != (self._config.axes, self._config.ratings)
            self._config, self._groups = config, groups
            if anew:
                self._clear()
                self._event = connection.execute(select(func.max(events.c.number))).scalar() or 0
                self._read_items(connection, comparisons.c.run == self._run)
                self._read_labels(connection, judgments.c.run == self._run)
            else:
                changed |= self._read_events(connection)
        return changed

    def labels(self) -> Labels:
        """All that was read."""
        if len(self._parts) > 1:
            self._parts = [{name: _stacked([part[name] for part in self._parts]) for name in self._parts[0]}]
        items = Items(
            ids=tuple(self._places),
            slices=tuple(self._slices),
            prompts=tuple(self._prompts),
            gold=dict(self._gold),
            checkpoints=_padded(self._checkpoints, np.int32),
            models=tuple(self._models),
        )
        groups = tuple(self._groups.get(name, "") for name in self._names)
        return Labels(config=self._config, items=items, names=tuple(self._names), groups=groups, **self._parts[0])

    def _clear(self) -> None:
        self._places, self._slices, self._prompts = dict[str, int](), list[str](), list[str]()
        self._gold = dict[int, Sequence[int]]()
        self._checkpoints, self._models, self._names = list[Sequence[int]](), dict[str, int](), dict[str, int]()
        self._size, self._newest = 2, 0
        self._parts = [self._part([], [])]

    def _settings(self, connection: Connection) -> tuple[CampaignConfig, dict[str, str]]:
        same = (campaign_versions.c.run == campaigns.c.run) & (campaign_versions.c.version == campaigns.c.version)
        query = select(campaign_versions.c.config).join(campaigns, same).where(campaigns.c.run == self._run)
        found = connection.execute(query).scalar()
        groups = {row.name: row.group for row in connection.execute(select(accounts.c.name, accounts.c.group))}
        return CampaignConfig.model_validate(found or {}), groups

    def _read_events(self, connection: Connection) -> bool:
        spans, items = list[Sequence[int]](), False
        new = select(events.c.number, events.c.kind, events.c.content).where(events.c.number > self._event)
        for row in connection.execute(new.order_by(events.c.number)):
            content = json.loads(row.content)
            spans += content.get("judgments", [])
            items |= row.kind == "items" and content["run"] == self._run
            self._event = row.number
        if not (spans or items):
            return False
        mine = comparisons.c.run == self._run
        self._read_items(connection, mine if items else mine & (comparisons.c.number > self._newest))
        if not spans:
            return True
        reach = judgments.c.number.between(min(first for first, _ in spans), max(last for _, last in spans))
        return self._read_labels(connection, (judgments.c.run == self._run) & reach) > 0 or items

    def _read_items(self, connection: Connection, where: Json) -> None:
        largest = connection.execute(select(func.max(comparisons.c.size)).where(where)).scalar() or 2
        self._size = max(self._size, largest)
        by = [comparisons.c["items"][(place, "checkpoint")].as_string() for place in range(self._size)]
        prompt = comparisons.c.prompt["id"].as_string()
        narrow = (comparisons.c.number, comparisons.c.id, comparisons.c.slice, prompt, comparisons.c.gold)
        query = select(*narrow, *by).where(where).order_by(comparisons.c.number)
        for number, id_, slice_, prompt_id, gold, *checkpoints in itertools.chain(*_batches(connection, query)):
            place = self._places.setdefault(id_, len(self._places))
            if place == len(self._slices):
                self._slices.append(slice_)
                self._prompts.append(prompt_id)
                named = (self._models.setdefault(name, len(self._models)) if name else NONE for name in checkpoints)
                self._checkpoints.append(tuple(named))
                self._newest = number
            if known := _loaded(gold):
                self._gold[place] = known["ranking"]

    def _read_labels(self, connection: Connection, where: Json) -> int:
        content = judgments.c.content
        first = content[("shown_order", 0)].as_integer()
        ranking = case((judgments.c.choice.is_(None), content["ranking"]))
        wanted = {"ranking": self._size > 2, "axes": len(self._config.axes) > 1, "ratings": self._config.ratings}
        parts = {"ranking": ranking, "axes": content["axes"], "ratings": content["ratings"]}
        asked = [name for name in parts if wanted[name]]
        columns = [*(judgments.c[name] for name in _NARROW), first, *(parts[name] for name in asked)]
        count = 0
        for rows in _batches(connection, select(*columns).where(where)):
            self._parts.append(self._part(rows, asked))
            count += len(rows)
        return count

    def _part(self, rows: Sequence[Sequence[Any]], asked: Sequence[str]) -> _Part:
        names = (*_NARROW, "first", *asked)
        columns: Sequence[Sequence[Any]] = list(zip(*rows, strict=True)) if rows else [()] * len(names)
        column = dict(zip(names, columns, strict=True))
        parts = {name: [_loaded(one) or () for one in column[name]] for name in asked}
        said: Sequence[Any] = parts.get("axes", [()] * len(rows))
        known = self._names
        for name in dict.fromkeys(column["annotator"]):
            known.setdefault(name, len(known))
        others = [[_whole(one[axis]) if axis in one else NONE for one in said] for axis in self._config.axes[1:]]
        return {
            "number": np.array(column["number"], dtype=np.int64),
            "item": np.array([self._places[one] for one in column["comparison_id"]], dtype=np.int64),
            "labeler": np.array([known[one] for one in column["annotator"]], dtype=np.int64),
            "repeat": np.array(column["repeat"], dtype=np.int8),
            "version": np.array(column["version"], dtype=np.int32),
            "withdrawn": np.array(column["withdrawn"], dtype=np.bool_),
            "status": np.array([STATUSES[one] for one in column["status"]], dtype=np.int8),
            "first": _small(column["first"]),
            "at": np.array(column["at"], dtype=np.float64),
            "seconds": np.array(column["server_seconds"], dtype=np.float64),
            "values": np.stack([_small(column["choice"]), *map(_small, others)], axis=1),
            "ranking": _padded(parts.get("ranking", [()] * len(rows)), np.int8),
            "ratings": _padded(parts.get("ratings", [()] * len(rows)), np.int8),
        }


def _batches(connection: Connection, query: Select[Any]) -> Iterator[Sequence[Sequence[Any]]]:
    """The driver's own rows, some at a time: to make SQLAlchemy's of them takes as long as all else."""
    cursor = connection.execute(query).cursor
    assert cursor is not None
    while rows := cursor.fetchmany(_ROWS):
        yield rows


def _loaded(value: Json) -> Json:
    """JSON as SQLite's driver gives it (text), or PostgreSQL's (loaded)."""
    return json.loads(value) if isinstance(value, str) else value


def _whole(value: Json) -> int:
    """A strength; other people's axes may hold anything."""
    return value if type(value) is int and abs(value) < -NONE else NONE


def _small(column: Sequence[int | None]) -> NDArray[np.int8]:
    return np.nan_to_num(np.array(column, dtype=np.float64), nan=NONE).astype(np.int8)


def _padded(rows: Sequence[Sequence[int]], dtype: type[Any]) -> NDArray[Any]:
    """[rows, longest] NONE where a row has no more."""
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    table = np.full((len(rows), lengths.max(initial=0)), NONE, dtype=dtype)
    for length in set(lengths.tolist()) - {0}:
        alike = np.flatnonzero(lengths == length).tolist()
        table[alike, :length] = [rows[place] for place in alike]
    return table


def _stacked(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """One array of all; the narrower ones of two dimensions are filled up with NONE."""
    if parts[0].ndim == 1:
        return np.concatenate(parts)
    width = max(part.shape[1] for part in parts)
    filled = [np.pad(p, ((0, 0), (0, width - p.shape[1])), constant_values=NONE) for p in parts]
    return np.concatenate(filled)
