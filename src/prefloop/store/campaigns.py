"""Campaigns: what labelers are asked, version by version, and the items that wait for them."""

from __future__ import annotations

import random
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, Engine, Row, RowMapping, bindparam, case, func, insert, select, update

from prefloop.configs.campaign import CampaignConfig
from prefloop.data.identity import names_a_model
from prefloop.store import audit, db
from prefloop.store.clock import Clock
from prefloop.store.tables import NOT_OFFERED, campaign_versions, campaigns, comparisons, strata
from prefloop.types import Comparison, Json, PrefloopError

STATES = ("open", "paused", "closed")
_MANY = 1_000_000  # labels wanted of a gold item: every labeler may see it


class MissingError(PrefloopError):
    """There is no such thing, or none that this person may know of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Campaign:
    """A campaign as it is now. `run` names its labels in the store, `id` stands in addresses."""

    run: str
    id: str
    state: str
    version: int
    config: CampaignConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """What a campaign is told of a comparison that is in the store. gold: {"ranking", "note"}, a known answer.
    held: why it must not be handed out yet."""

    comparison_id: str
    mix: str = ""
    priority: float = 0.0
    gold: Mapping[str, Json] | None = field(default=None)
    held: str = ""


def why_held(comparison: Comparison) -> str:
    """Why an item must not be handed out: an answer names a model, so that it would not be judged blind. Else empty."""
    names = sorted({item.checkpoint for item in comparison.items if item.checkpoint})
    told = next((name for item in comparison.items if (name := names_a_model(item.text, names))), None)
    return "" if told is None else f"names a model: {told if told.isprintable() else ascii(told)}"


class Campaigns:
    """All campaigns of a label store."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine, self._clock = engine, clock

    def create(self, run: str, config: CampaignConfig, *, by: str) -> Campaign:
        """A new open campaign. Raises PrefloopError where the run has one."""
        with db.transaction(self._engine, write=True) as connection:
            if _find(connection, _BY_RUN, run) is not None:
                raise PrefloopError(f"Run {run} has a campaign already; choose another name, or add items to that one.")
            row = {"run": run, "id": secrets.token_hex(4), "state": "open", "version": 0, "salt": secrets.token_hex(16)}
            connection.execute(insert(campaigns).values(row))
            self._new_version(connection, run, 1, config, by)
        return self.by_run(run)

    def change(self, run: str, config: CampaignConfig, *, by: str) -> Campaign:
        """A new version; labels made before keep theirs, and open tasks the one they were handed out under."""
        with db.transaction(self._engine, write=True) as connection:
            campaign = _known(connection, _BY_RUN, run)
            if campaign.config != config:
                self._new_version(connection, run, campaign.version + 1, config, by)
                if (campaign.config.overlap, campaign.config.shared_overlap) != (config.overlap, config.shared_overlap):
                    _set_needed(connection, run, config)
        return self.by_run(run)

    def set_state(self, run: str, state: str, *, by: str) -> None:
        """open, paused (nothing is handed out) or closed (nothing more is expected). Late answers are kept in all."""
        if state not in STATES:
            raise PrefloopError(f"A campaign is {', '.join(STATES)}, not {state!r}.")
        with db.transaction(self._engine, write=True) as connection:
            _known(connection, _BY_RUN, run)
            connection.execute(update(campaigns).where(campaigns.c.run == run).values(state=state))
            self._log(connection, by, "campaign state", {"run": run, "state": state})

    def add_items(self, run: str, items: Sequence[Item], *, by: str) -> int:
        """Put comparisons that are in the store up for labels; returns how many were new to the campaign.

        Which are of the calibration pool, and their place in the order of uniform picks, is drawn here."""
        with db.transaction(self._engine, write=True) as connection:
            campaign = _known(connection, _BY_RUN, run)
            salt = connection.execute(select(campaigns.c.salt).where(campaigns.c.run == run)).scalar()
            query = select(comparisons.c.id).where(comparisons.c.run == run, comparisons.c.held == NOT_OFFERED)
            waiting = set(connection.execute(query).scalars())
            rows = []
            for item in {item.comparison_id: item for item in items if item.comparison_id in waiting}.values():
                chance = random.Random(f"{salt}:{item.comparison_id}")
                shared = item.gold is None and chance.random() < campaign.config.shared_share
                needed = _needed(campaign.config, gold=item.gold is not None, shared=shared)
                rows.append(
                    {
                        "b_id": item.comparison_id,
                        "mix": item.mix,
                        "priority": float(item.priority),
                        "gold": dict(item.gold) if item.gold else None,
                        "held": item.held,
                        "shared": shared,
                        "needed": needed,
                        "shuffle": chance.random(),
                    }
                )
            if rows:
                where = (comparisons.c.run == run) & (comparisons.c.id == bindparam("b_id"))
                connection.execute(update(comparisons).where(where), rows)
                recount(connection, run)
                self._log(connection, by, "items", {"run": run, "added": len(rows)})
        return len(rows)

    def set_priorities(self, run: str, priorities: Mapping[str, float], *, by: str) -> None:
        """New priorities by comparison id; the highest go first."""
        with db.transaction(self._engine, write=True) as connection:
            _known(connection, _BY_RUN, run)
            where = (comparisons.c.run == run) & (comparisons.c.id == bindparam("b_id"))
            rows = [{"b_id": id_, "priority": float(value)} for id_, value in priorities.items()]
            if rows:
                connection.execute(update(comparisons).where(where), rows)
                self._log(connection, by, "priorities", {"run": run, "set": len(rows)})

    def hold(self, run: str, comparison_id: str, reason: str, *, by: str) -> None:
        """Keep an item back, or hand it out again (empty reason). Labels that it has stay."""
        with db.transaction(self._engine, write=True) as connection:
            where = (comparisons.c.run == run) & (comparisons.c.id == comparison_id)
            before = connection.execute(select(comparisons).where(where).with_for_update()).one_or_none()
            if before is None:
                raise MissingError(f"Run {run} has no item {comparison_id}.")
            connection.execute(update(comparisons).where(where).values(held=reason))
            if before.gold is None and (change := (not reason) - (not before.held)):
                _move_stratum(connection, before, change)
            self._log(connection, by, "hold", {"run": run, "comparison": comparison_id, "reason": reason})

    def by_run(self, run: str) -> Campaign:
        """Raises MissingError where there is none."""
        with db.transaction(self._engine, write=False) as connection:
            return _known(connection, _BY_RUN, run)

    def by_id(self, id_: str) -> Campaign:
        """Raises MissingError where there is none."""
        with db.transaction(self._engine, write=False) as connection:
            return _known(connection, _BY_ID, id_)

    def all(self) -> list[Campaign]:
        """Every campaign, by run."""
        with db.transaction(self._engine, write=False) as connection:
            rows = connection.execute(_CURRENT.order_by(campaigns.c.run)).mappings().all()
        return [_campaign(row) for row in rows]

    def version(self, run: str, version: int) -> CampaignConfig:
        """What was asked under a version. Raises MissingError where there is none."""
        table = campaign_versions
        query = select(table.c.config).where(table.c.run == run, table.c.version == version)
        with db.transaction(self._engine, write=False) as connection:
            config = connection.execute(query).scalar()
        if config is None:
            raise MissingError(f"The campaign of run {run} has no version {version}.")
        return CampaignConfig.model_validate(config)

    def _new_version(self, connection: Connection, run: str, version: int, config: CampaignConfig, by: str) -> None:
        content = config.model_dump(mode="json")
        row = {"run": run, "version": version, "config": content, "at": self._clock(), "by": by}
        connection.execute(insert(campaign_versions).values(row))
        connection.execute(update(campaigns).where(campaigns.c.run == run).values(version=version))
        self._log(connection, by, "campaign version", {"run": run, "version": version, "config": content})

    def _log(self, connection: Connection, by: str, kind: str, content: Mapping[str, Json]) -> None:
        audit.append(connection, at=self._clock(), actor=by, kind=kind, content=content)


def _needed(config: CampaignConfig, *, gold: bool, shared: bool) -> int:
    if gold:
        return _MANY
    return max(config.overlap, config.shared_overlap) if shared else config.overlap


def _set_needed(connection: Connection, run: str, config: CampaignConfig) -> None:
    shared, plain = (_needed(config, gold=False, shared=shared) for shared in (True, False))
    needed = case((comparisons.c.shared, shared), else_=plain)
    where = (comparisons.c.run == run) & comparisons.c.gold.is_(None) & (comparisons.c.held != NOT_OFFERED)
    connection.execute(update(comparisons).where(where).values(needed=needed))
    recount(connection, run)


def recount(connection: Connection, run: str) -> None:
    """Count a campaign's items, and the labels that they have and want, by stratum anew; gold items and those held back
    have no part.

    On PostgreSQL others submit meanwhile: labels had are not set but moved, by what one look shows them to be off."""
    table, waits = comparisons, case((comparisons.c.held == "", 1), else_=0)
    sums = {"items": waits, "needed": waits * table.c.needed, "counted": waits * table.c.counted}
    mine = (table.c.run == run) & table.c.gold.is_(None) & (table.c.held != NOT_OFFERED)
    columns = [func.sum(value).label(name) for name, value in sums.items()]
    found = select(table.c.slice, table.c.mix, *columns).where(mine).group_by(table.c.slice, table.c.mix).subquery()
    same = (strata.c.run == run) & (strata.c.slice == found.c.slice) & (strata.c.mix == found.c.mix)
    query = select(found, strata.c.counted.label("before")).outerjoin(strata, same)
    for row in connection.execute(query).mappings().all():
        key = {"run": run, "slice": row["slice"], "mix": row["mix"]}
        counts = {name: row[name] for name in sums}
        if row["before"] is None:
            connection.execute(insert(strata).values(**key, **counts))
        else:
            counts["counted"] = strata.c.counted + row["counted"] - row["before"]
            connection.execute(update(strata).where(*(strata.c[name] == key[name] for name in key)).values(counts))


def _move_stratum(connection: Connection, item: Row[Json], times: int) -> None:
    """Put an item's part into the counts of its stratum (1), or take it out (-1)."""
    same = (strata.c.run == item.run) & (strata.c.slice == item.slice) & (strata.c.mix == item.mix)
    parts = {"items": 1, "needed": item.needed, "counted": item.counted}
    moved = {name: strata.c[name] + times * part for name, part in parts.items()}
    if not connection.execute(update(strata).where(same).values(moved)).rowcount:
        recount(connection, item.run)  # no campaign had taken it up


_CURRENT = select(
    *(campaigns.c.run, campaigns.c.id, campaigns.c.state, campaigns.c.version, campaign_versions.c.config)
).join(
    campaign_versions,
    (campaign_versions.c.run == campaigns.c.run) & (campaign_versions.c.version == campaigns.c.version),
)
_BY_RUN, _BY_ID = (_CURRENT.where(column == bindparam("b_key")) for column in (campaigns.c.run, campaigns.c.id))


def _find(connection: Connection, query: Json, key: str) -> Campaign | None:
    row = connection.execute(query, {"b_key": key}).mappings().first()
    return _campaign(row) if row else None


def _known(connection: Connection, query: Json, key: str) -> Campaign:
    found = _find(connection, query, key)
    if found is None:
        raise MissingError("There is no such campaign.")
    return found


def _campaign(row: RowMapping) -> Campaign:
    return Campaign(**{**row, "config": CampaignConfig.model_validate(row["config"])})
