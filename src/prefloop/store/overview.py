"""What reviewers read of a campaign: counts, items, labels, versions. Nothing here writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Engine, RowMapping, and_, func, select

from prefloop.configs.campaign import CampaignConfig
from prefloop.store import db
from prefloop.store.campaigns import MissingError
from prefloop.store.clock import Clock
from prefloop.store.labels import BLANK
from prefloop.store.tables import annotators, campaign_versions, comparisons, judgments, strata, tasks
from prefloop.types import Comparison, Json, from_json

STATES = ("", "waiting", "done", "held", "gold", "shared")
PAGE = 50
_LARGEST = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Items on which somebody works now, that are held back, and whose answer is known."""

    leased: int
    held: int
    gold: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stratum:
    """One slice and kind of prompt; items that are held back are not counted."""

    slice: str
    mix: str
    items: int
    needed: int
    counted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemRow:
    """An item of a campaign. number: its place in addresses."""

    number: int
    slice: str
    mix: str
    priority: float
    held: str
    gold: Mapping[str, Json] | None
    shared: bool
    needed: int
    counted: int
    comparison: Comparison

    @property
    def state(self) -> str:
        if self.held:
            return "held"
        if self.gold is not None:
            return "gold"
        return "done" if self.counted >= self.needed else "waiting"


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelRow:
    """One version of one labeler's answer. kind: of the task it came by; none where it was imported."""

    number: int
    annotator: str
    simulated: bool
    version: int
    latest: bool
    withdrawn: bool
    status: str
    late: bool
    repeat: int
    kind: str | None
    campaign_version: int | None
    at: float | None
    server_seconds: float | None
    content: Mapping[str, Json]


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """What was asked from `at` on."""

    version: int
    at: float
    by: str
    config: CampaignConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which items to list; empty: all. state: one of STATES."""

    slice: str = ""
    mix: str = ""
    state: str = ""


class Overview:
    """Reads of a label store, each one transaction and quick at a million labels."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine, self._clock = engine, clock

    def counts(self, run: str) -> Counts:
        """What no stratum tells."""
        mine = comparisons.c.run == run
        where = {
            "leased": (tasks.c.run == run) & (tasks.c.state == "open") & (tasks.c.lease_until >= self._clock()),
            "held": mine & (comparisons.c.held != ""),
            "gold": mine & comparisons.c.gold.is_not(None),
        }
        with db.transaction(self._engine, write=False) as connection:
            found = {
                name: connection.execute(select(func.count()).where(condition)).scalar_one()
                for name, condition in where.items()
            }
        return Counts(**found)

    def strata(self, run: str) -> list[Stratum]:
        """By slice and mix."""
        names = ("slice", "mix", "items", "needed", "counted")
        query = select(*(strata.c[name] for name in names)).where(strata.c.run == run).order_by("slice", "mix")
        with db.transaction(self._engine, write=False) as connection:
            return [Stratum(**row) for row in connection.execute(query).mappings()]

    def statuses(self, run: str) -> dict[str, int]:
        """How many labels stand by status, how many of them are late, and how many answers were withdrawn. This reads
        all labels: some seconds where there are a million."""
        table = judgments.c
        counts = select(table.status, table.late, table.withdrawn, func.count()).where(table.run == run, table.latest)
        found = dict.fromkeys(("counted", "extra", "gold", "repeat", "unjudged", "late", "withdrawn"), 0)
        with db.transaction(self._engine, write=False) as connection:
            for status, late, withdrawn, count in connection.execute(
                counts.group_by(table.status, table.late, table.withdrawn)
            ):
                found["withdrawn" if withdrawn else status] += count
                found["late"] += count * (late and not withdrawn)
        return found

    def times(self, run: str, annotator: str, limit: int = 2000) -> list[tuple[float, float | None]]:
        """When a labeler's last answers came, the oldest first, and how many seconds each had taken."""
        mine = (judgments.c.run == run) & (judgments.c.annotator == annotator) & judgments.c.at.is_not(None)
        query = select(judgments.c.at, judgments.c.server_seconds).where(mine)
        with db.transaction(self._engine, write=False) as connection:
            rows = connection.execute(query.order_by(judgments.c.number.desc()).limit(limit)).all()
        return [(row.at, row.server_seconds) for row in reversed(rows)]

    def items(self, run: str, where: Filter, *, after: int = 0, limit: int = PAGE) -> list[ItemRow]:
        """The first items with a number above `after`, in the order in which they were added."""
        chosen = and_(comparisons.c.run == run, comparisons.c.number > min(after, _LARGEST), *_filtered(where))
        numbers = select(comparisons.c.number).where(chosen).order_by(comparisons.c.number).limit(limit)
        with db.transaction(self._engine, write=False) as connection:
            found = connection.execute(numbers).scalars().all()
            query = select(comparisons).where(comparisons.c.number.in_(found)).order_by(comparisons.c.number)
            return [_item(row) for row in connection.execute(query).mappings()]

    def item(self, run: str, number: int) -> ItemRow:
        """Raises MissingError where the campaign has no such item."""
        query = select(comparisons).where(comparisons.c.run == run, comparisons.c.number == min(number, _LARGEST))
        with db.transaction(self._engine, write=False) as connection:
            row = connection.execute(query).mappings().first()
        if row is None:
            raise MissingError("This campaign has no such item.")
        return _item(row)

    def items_by_id(self, run: str, ids: Sequence[str]) -> dict[str, ItemRow]:
        """Items by their comparisons' ids, as far as they are there."""
        query = select(comparisons).where(comparisons.c.run == run, comparisons.c.id.in_(ids))
        with db.transaction(self._engine, write=False) as connection:
            return {row["id"]: _item(row) for row in connection.execute(query).mappings()}

    def labels(self, run: str, comparison_id: str) -> list[LabelRow]:
        """Every version of every label of an item, in the order in which they came."""
        names = [column for column in LabelRow.__slots__ if column not in ("simulated", "kind")]
        query = select(*(judgments.c[name] for name in names), annotators.c.simulated, tasks.c.kind)
        query = query.join(annotators, annotators.c.name == judgments.c.annotator)
        query = query.outerjoin(tasks, tasks.c.id == judgments.c.task)
        mine = (judgments.c.run == run) & (judgments.c.comparison_id == comparison_id)
        with db.transaction(self._engine, write=False) as connection:
            found = connection.execute(query.where(mine).order_by(judgments.c.number)).mappings()
            return [LabelRow(**{**row, "content": {**BLANK, **row["content"]}}) for row in found]

    def reviewed(self, run: str, ids: Sequence[str]) -> set[str]:
        """Which of these comparisons a reviewer has judged."""
        done = (tasks.c.run == run) & (tasks.c.kind == "review") & (tasks.c.state == "done")
        query = select(tasks.c.comparison_id).where(done, tasks.c.comparison_id.in_(ids))
        with db.transaction(self._engine, write=False) as connection:
            return set(connection.execute(query).scalars())

    def versions(self, run: str) -> list[Version]:
        """The newest first."""
        table = campaign_versions
        query = select(table).where(table.c.run == run).order_by(table.c.version.desc())
        with db.transaction(self._engine, write=False) as connection:
            rows = connection.execute(query).mappings().all()
        return [
            Version(**{n: row[n] for n in ("version", "at", "by")}, config=CampaignConfig.model_validate(row["config"]))
            for row in rows
        ]


def _filtered(where: Filter) -> list[ColumnElement[bool]]:
    table = comparisons
    states: dict[str, ColumnElement[bool]] = {
        "waiting": and_(table.c.held == "", table.c.gold.is_(None), table.c.counted < table.c.needed),
        "done": and_(table.c.held == "", table.c.gold.is_(None), table.c.counted >= table.c.needed),
        "held": table.c.held != "",
        "gold": table.c.gold.is_not(None),
        "shared": table.c.shared,
    }
    asked = [table.c[name] == value for name in ("slice", "mix") if (value := getattr(where, name))]
    return [*asked, *([states[where.state]] if where.state in states else [])]


def _item(row: RowMapping) -> ItemRow:
    content = {name: row[name] for name in ("id", "prompt", "items")}
    comparison = from_json(Comparison, content, f"comparison {row['id']} in the store")
    names = ("number", "slice", "mix", "priority", "held", "gold", "shared", "needed", "counted")
    return ItemRow(**{name: row[name] for name in names}, comparison=comparison)
