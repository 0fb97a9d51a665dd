"""Who gets which item next, in which order its answers stand, and for how long it is theirs.

A hand-out is one task, unique for (item, labeler), and one lease. A lease that ends gives the item's place to others;
the task stays, so that work which comes late is kept."""

from __future__ import annotations

import math
import random
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, RowMapping, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from prefloop.configs.campaign import CampaignConfig
from prefloop.store import db, queries
from prefloop.store.campaigns import Campaign, MissingError
from prefloop.store.clock import Clock
from prefloop.store.tables import (
    comparisons,
    desks,
    events,
    judgments,
    tasks,
)
from prefloop.types import Comparison, Json, PrefloopError, from_json


class PausedError(PrefloopError):
    """Nothing is handed out now, to anybody or to this labeler."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One labeler's view of one item. shown[i]: which of the comparison's items stands at place i.

    `kind` (item, gold, shared, repeat, review) and the comparison's ids, checkpoints and samplings are not for the
    labeler."""

    id: str
    run: str
    kind: str
    comparison: Comparison
    shown: tuple[int, ...]
    version: int
    config: CampaignConfig
    state: str
    opened: float
    lease_until: float
    draft: Mapping[str, Json] | None


class Desk:
    """Hands out tasks of a label store and keeps their leases."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine, self._clock = engine, clock

    def next_task(self, campaign: Campaign, annotator: str) -> Task | None:
        """The labeler's open task, else a new one; None where there is nothing left for them.

        Raises PausedError where the campaign is not open, or the labeler is paused."""
        return db.retried(self._engine, lambda connection: self._next(connection, campaign, annotator))

    def task(self, id_: str, annotator: str) -> Task:
        """A labeler's own task, in whatever state. Raises MissingError for another's."""
        with db.transaction(self._engine, write=False) as connection:
            return read_task(connection, id_, annotator)

    def renew(self, id_: str, annotator: str) -> float:
        """Keep an open task for longer; returns the seconds that are left. A lease that had ended is taken up again
        where the item's place is still free; 0 where it is not."""

        def work(connection: Connection) -> float:
            task, now = read_task(connection, id_, annotator, lock=True), self._clock()
            last = task.opened + task.config.hold_hours * 3600
            until = min(now + task.config.lease_minutes * 60, last)
            if task.state == "done" or until <= now:
                return 0.0
            if task.state == "expired" and not self._take(connection, task):
                return 0.0
            connection.execute(update(tasks).where(tasks.c.id == id_).values(state="open", lease_until=until))
            return until - now

        return db.retried(self._engine, work)

    def save_draft(self, id_: str, annotator: str, draft: Mapping[str, Json]) -> None:
        """Keep what a labeler has so far of a task, done ones excepted."""

        def work(connection: Connection) -> None:
            task = read_task(connection, id_, annotator, lock=True)
            if task.state != "done":
                connection.execute(update(tasks).where(tasks.c.id == id_).values(draft=dict(draft)))

        db.retried(self._engine, work)

    def _next(self, connection: Connection, campaign: Campaign, annotator: str) -> Task | None:
        now, run = self._clock(), campaign.run
        here = {"b_run": run, "b_who": annotator}
        opening = connection.execute(queries.OPENING, here).one_or_none()
        if opening is None or opening.state != "open":
            state = None if opening is None else opening.state
            raise PausedError(f"This campaign is {state}; ask whoever invited you.")
        if opening.paused:
            raise PausedError("Your account is paused; ask whoever invited you.")
        desk = _desk(connection, run, annotator)
        _release(connection, run, now)
        until = now + campaign.config.lease_minutes * 60
        open_ = connection.execute(queries.OPEN_TASK, here).scalar()
        if open_ is not None:
            connection.execute(queries.HOLD, {"b_id": open_, "b_until": until})
        else:
            open_ = self._hand_out(connection, campaign, annotator, desk, opening.salt, now, until)
        return None if open_ is None else read_task(connection, open_, annotator)

    def _hand_out(
        self,
        connection: Connection,
        campaign: Campaign,
        annotator: str,
        desk: Mapping[str, int],
        salt: str,
        now: float,
        until: float,
    ) -> str | None:
        config, run, count = campaign.config, campaign.run, desk["handed"]
        seed = f"{salt}:{annotator}"
        found, kind, uniform = None, "item", False
        if count < config.calibration:
            found, kind = _first(connection, queries.GOLD, run, annotator), "gold"
            if found is None:
                found, kind = _first(connection, queries.SHARED, run, annotator), "shared"
        elif due(f"{seed}:repeat", count, config.repeat_share):
            found, kind = _repeat(connection, run, annotator, seed), "repeat"
        elif due(f"{seed}:gold", count, config.gold_share):
            found, kind = _first(connection, queries.GOLD, run, annotator), "gold"
        if found is None:
            kind, uniform = "item", due(f"{seed}:uniform", count, config.uniform_share)
            if uniform:
                found = _first(connection, queries.UNIFORM, run, annotator)
            else:
                found = _targeted(connection, config, run, annotator)
        if found is None:
            return None
        return _assign(connection, campaign, annotator, desk, found, kind, uniform, seed, now, until)

    def _take(self, connection: Connection, task: Task) -> bool:
        """Take the place of a task whose lease had ended, where nobody else has it."""
        if task.kind in ("gold", "repeat"):
            return True
        free = comparisons.c.taken < comparisons.c.needed
        place = update(comparisons).where(_item(task.run, task.comparison.id), free)
        return connection.execute(place.values(taken=comparisons.c.taken + 1)).rowcount > 0


def due(seed: str, count: int, share: float) -> bool:
    """Whether the task after `count` others is one of a share of all: one, at a random place, of each 1 / share."""
    if share <= 0:
        return False
    which = int(count * share + 1e-9)
    first, after = (math.ceil(number / share - 1e-9) for number in (which, which + 1))
    return count == random.Random(f"{seed}:{which}").randrange(first, after)


def read_task(connection: Connection, id_: str, annotator: str, *, lock: bool = False) -> Task:
    """A labeler's own task; `lock` keeps others from changing it until the transaction ends. Raises MissingError."""
    query = queries.TASK_LOCKED if lock else queries.TASK
    row = connection.execute(query, {"b_id": id_, "b_who": annotator}).mappings().first()
    if row is None:
        raise MissingError("There is no such task of yours.")
    content = {"id": row["comparison_id"], "prompt": row["prompt"], "items": row["items"]}
    return Task(
        id=row["id"],
        run=row["run"],
        kind=row["kind"],
        comparison=from_json(Comparison, content, f"comparison {row['comparison_id']} in the store"),
        shown=tuple(row["shown"]),
        version=row["campaign_version"],
        config=CampaignConfig.model_validate(row["config"]),
        state=row["state"],
        opened=row["opened"],
        lease_until=row["lease_until"],
        draft=row["draft"],
    )


def review_task(connection: Connection, campaign: Campaign, reviewer: str, comparison_id: str, now: float) -> str:
    """The reviewer's task of an item that they chose themselves: one that they had, else a new one, which nobody hands
    out and no lease holds. It is under the campaign's version of now. Raises MissingError where there is no such item,
    and PrefloopError for one whose answer is known."""
    run, state = campaign.run, {"campaign_version": campaign.version, "kind": "review"}
    item = connection.execute(select(comparisons.c.size, comparisons.c.gold).where(_item(run, comparison_id))).first()
    if item is None:
        raise MissingError("This campaign has no such item.")
    if item.gold is not None:
        raise PrefloopError("The answer of this item is known; a gold item needs no label of a reviewer's.")
    mine = (tasks.c.run == run) & (tasks.c.annotator == reviewer) & (tasks.c.comparison_id == comparison_id)
    if known := connection.execute(select(tasks.c.id).where(mine, tasks.c.repeat == 0).with_for_update()).scalar():
        connection.execute(update(tasks).where(tasks.c.id == known).values(state))
        return str(known)
    imported = (judgments.c.run == run) & (judgments.c.comparison_id == comparison_id)
    if connection.execute(select(judgments.c.number).where(imported, judgments.c.annotator == reviewer)).first():
        raise PrefloopError(f"A label of {reviewer} was imported for this item; it stays as it is.")
    id_ = secrets.token_urlsafe(16)
    key = {"id": id_, "run": run, "comparison_id": comparison_id, "annotator": reviewer}
    facts = {"shown": list(range(item.size)), "uniform": False, "state": "done", "opened": now, "lease_until": now}
    connection.execute(insert(tasks).values({**key, **facts, **state}))
    return id_


def _item(run: Json, comparison_id: Json) -> Json:
    return (comparisons.c.run == run) & (comparisons.c.id == comparison_id)


def _desk(connection: Connection, run: str, annotator: str) -> Mapping[str, int]:
    """The labeler's counts; the row is locked, so that two tabs get one task."""
    here = {"b_run": run, "b_who": annotator}
    row = connection.execute(queries.DESK, here).mappings().one_or_none()
    if row is None:
        dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
        connection.execute(dialect.insert(desks).values(run=run, annotator=annotator).on_conflict_do_nothing())
        row = connection.execute(queries.DESK, here).mappings().one()
    return {name: row[name] for name in ("handed", "pairs", "turned")}


def _release(connection: Connection, run: str, now: float) -> None:
    """End the leases that have run out: their items' places are free again."""
    for row in connection.execute(queries.OVER, {"b_run": run, "b_now": now}).all():
        connection.execute(update(tasks).where(tasks.c.number == row.number).values(state="expired"))
        if row.kind not in ("gold", "repeat"):  # a review that was taken back holds a place too
            place = update(comparisons).where(_item(run, row.comparison_id))
            connection.execute(place.values(taken=comparisons.c.taken - 1))


def _first(connection: Connection, query: Json, run: str, annotator: str) -> str | None:
    return connection.execute(query, {"b_run": run, "b_who": annotator}).scalar()


def _targeted(connection: Connection, config: CampaignConfig, run: str, annotator: str) -> str | None:
    """The highest priority of the kind of prompt that is most behind its share; of equal ones, in the slice that is
    covered least."""
    groups = connection.execute(queries.STRATA, {"b_run": run}).all()
    handed = {mix: sum(g.handed for g in groups if g.mix == mix) for mix in {g.mix for g in groups}}
    total = sum(handed.values()) + 1
    behind = sorted(handed, key=lambda mix: (handed[mix] - config.mix.get(mix, 0.0) * total, mix))
    for mixes in [[mix] for mix in behind] if config.mix else [behind]:
        offers = []
        for group in groups:
            if group.mix in mixes:
                here = {"b_run": run, "b_who": annotator, "b_slice": group.slice, "b_mix": group.mix}
                if row := connection.execute(queries.TARGETED, here).first():
                    offers.append((-row.priority, group.counted / max(group.needed, 1), row.shuffle, row.id))
        if offers:
            return str(min(offers)[-1])
    return None


def _repeat(connection: Connection, run: str, annotator: str, seed: str) -> str | None:
    """An item that this labeler answered a while ago and has not seen twice."""
    ids = connection.execute(queries.ANSWERED, {"b_run": run, "b_who": annotator}).scalars().all()
    old = ids[queries.REPEAT_AFTER :]
    return random.Random(f"{seed}:{len(ids)}:{ids[:1]}").choice(old) if old else None


def _assign(
    connection: Connection,
    campaign: Campaign,
    annotator: str,
    desk: Mapping[str, int],
    comparison_id: str,
    kind: str,
    uniform: bool,
    seed: str,
    now: float,
    until: float,
) -> str:
    run, item = campaign.run, {"b_run": campaign.run, "b_item": comparison_id}
    row = connection.execute(queries.ITEM, item).mappings().one()
    shown, turned = _order(connection, row, annotator, desk, kind, seed)
    takes = kind in ("item", "shared")
    repeat = int(kind == "repeat")
    again = connection.execute(queries.AGAIN, {**item, "b_who": annotator, "b_repeat": repeat}).scalar()
    new = int(again is None)
    connection.execute(queries.HANDED, {**item, "b_taken": int(takes), "b_shown": new, "b_turned": new * turned})
    values = {"state": "open", "opened": now, "lease_until": until, "campaign_version": campaign.version}
    if again is not None:  # its lease had run out: the same task, as it was shown
        connection.execute(update(tasks).where(tasks.c.id == again).values(values))
        return str(again)
    id_ = secrets.token_urlsafe(16)
    key = {"id": id_, "run": run, "comparison_id": comparison_id, "annotator": annotator, "repeat": repeat}
    connection.execute(insert(tasks), {**key, **values, "kind": kind, "shown": shown, "uniform": uniform})
    pair = int(row["size"] == 2)
    connection.execute(queries.SEATED, {"b_run": run, "b_who": annotator, "b_pairs": pair, "b_turned": pair * turned})
    if takes:
        connection.execute(queries.GIVEN, {"b_run": run, "b_slice": row["slice"], "b_mix": row["mix"]})
    return id_


def _order(
    connection: Connection, row: RowMapping, annotator: str, desk: Mapping[str, int], kind: str, seed: str
) -> tuple[Sequence[int], int]:
    """Which item stands where, and whether item 1 of two comes first.

    Two items: each labeler sees half of theirs turned, and each item is turned for half of its labelers. More: rows of
    a Latin square, so that each item stands in each place equally often."""
    if kind == "repeat":
        before = select(tasks.c.shown).where(tasks.c.run == row["run"], tasks.c.comparison_id == row["id"])
        shown = connection.execute(before.where(tasks.c.annotator == annotator, tasks.c.repeat == 0)).scalar_one()
        return shown[::-1], int(shown[-1] == 1)
    if row["size"] == 2:
        own, others = 2 * desk["turned"] - desk["pairs"], 2 * row["turned"] - row["shown"]
        lean = own if abs(own) > 1 else others or own
        turned = lean < 0 if lean else random.Random(f"{seed}:side:{desk['pairs']}").random() < 0.5
        return ([1, 0], 1) if turned else ([0, 1], 0)
    base = list(range(row["size"]))
    random.Random(f"{row['id']}").shuffle(base)
    turn, lap = row["shown"] % len(base), row["shown"] // len(base)
    base = base[turn:] + base[:turn]
    return (base[::-1] if lap % 2 else base), 0


def seen_until(engine: Engine) -> float:
    """The latest time in the database, from which a new clock goes on."""
    with db.transaction(engine, write=False) as connection:
        times = [
            connection.execute(select(column).order_by(column.table.c.number.desc()).limit(1)).scalar()
            for column in (tasks.c.opened, events.c.at)
        ]
    return max(time or 0.0 for time in times)
