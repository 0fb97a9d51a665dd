"""How far a campaign is."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Engine, case, func, select

from prefloop.store import db
from prefloop.store.campaigns import MissingError
from prefloop.store.labels import STANDING
from prefloop.store.tables import NOT_OFFERED, campaigns, comparisons, judgments


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """`counted` of the `wanted` labels, over the items that are handed out; those that are `held` and gold ones have no
    part in either. judged: whether any label stands, of whatever item."""

    state: str
    wanted: int
    counted: int
    held: int
    judged: bool


def standing(engine: Engine, run: str) -> Standing:
    """Raises MissingError where the run has no campaign."""
    table = comparisons
    mine = (table.c.run == run) & (table.c.held != NOT_OFFERED) & table.c.gold.is_(None)
    counted = case((table.c.counted > table.c.needed, table.c.needed), else_=table.c.counted)
    sums = select(func.sum(table.c.needed), func.sum(counted)).where(mine, table.c.held == "")
    held = select(func.count()).where(mine, table.c.held != "")
    label = (judgments.c.run == run) & judgments.c.latest & ~judgments.c.withdrawn & judgments.c.status.in_(STANDING)
    with db.transaction(engine, write=False) as connection:
        state = connection.execute(select(campaigns.c.state).where(campaigns.c.run == run)).scalar()
        if state is None:
            raise MissingError(f"Run {run} has no campaign.")
        wanted, done = connection.execute(sums).one()
        return Standing(
            state=state,
            wanted=wanted or 0,
            counted=done or 0,
            held=connection.execute(held).scalar_one(),
            judged=connection.execute(select(judgments.c.number).where(label).limit(1)).first() is not None,
        )
