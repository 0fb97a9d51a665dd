"""Comparisons put to people, who answer at the pages of `prefloop serve`, and the wait for them."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prefloop.configs.campaign import CampaignConfig
from prefloop.run import progress
from prefloop.store import db
from prefloop.store.assignment import seen_until
from prefloop.store.campaigns import Campaigns, Item, MissingError, why_held
from prefloop.store.clock import Clock
from prefloop.store.labels import Store
from prefloop.store.redteam import Negative, RedTeam
from prefloop.store.standing import Standing, standing
from prefloop.types import Comparison, Judgment, PrefloopError

POLL_SECONDS = 1.0
_SHARE = 0.1  # of the time goes into asking the database, at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """What people said of a run: all that was compared in its campaign, the judgments that stand, and the answers that
    failed in conversations."""

    comparisons: list[Comparison]
    judgments: list[Judgment]
    simulated: Mapping[str, bool]
    negatives: list[Negative]


def ask(
    database: str, run: str, comparisons: Sequence[Comparison], config: CampaignConfig, *, wait: bool = True
) -> Labels:
    """Put comparisons up for labels, in the run's campaign or a new one, and wait: until every item has the labels that
    it wants, or the campaign was closed with at least one label. The campaign is closed then.

    All is in the database: the same call after an interrupt goes on. Raises PrefloopError where simulated people
    judged under this name, and without `wait` where labels are wanted."""
    engine = db.connect(database)
    with Store(engine) as store:
        clock = Clock(seen_until(engine))
        campaigns, red_team = Campaigns(engine, clock), RedTeam(engine, clock)
        store.add_comparisons(run, comparisons)
        if any(store.annotators(run).values()):
            raise PrefloopError(
                f"{run}: the label store holds judgments of simulated people under this name; choose another run name."
            )
        try:
            campaigns.by_run(run)
        except MissingError:
            campaigns.create(run, config, by="prefloop")
        items = [Item(comparison_id=c.id, held=why_held(c)) for c in comparisons]
        campaigns.add_items(run, items, by="prefloop")
        found = standing(engine, run)
        if not _done(found) and not wait:
            raise PrefloopError(f"{run}: {_invitation(found, database)} Then give the same command again.")
        if not _done(found):
            print(_invitation(found, database), file=sys.stderr, flush=True)
            with progress(found.wanted, "labels", done=found.counted) as bar:
                while not _done(found):
                    began, before = time.monotonic(), found
                    found = standing(engine, run)
                    if found != before:
                        bar.show(found.counted, found.wanted, _note(found))
                    time.sleep(max(POLL_SECONDS, (time.monotonic() - began) / _SHARE))
        red_team.complete(run)
        if found.state != "closed":
            campaigns.set_state(run, "closed", by="prefloop")
        return Labels(
            comparisons=store.comparisons(run),
            judgments=store.judgments(run),
            simulated=store.annotators(run),
            negatives=red_team.negatives(run),
        )


def _done(found: Standing) -> bool:
    return found.judged and (found.state == "closed" or found.counted >= found.wanted)


def _invitation(found: Standing, database: str) -> str:
    where = " with --database as in [label] database" if database else ""
    return (
        f"{found.wanted - found.counted} labels are wanted: run `prefloop serve` in {Path.cwd()}{where} and open the"
        " address that it prints. Closing the campaign there goes on with the labels that there are."
    )


def _note(found: Standing) -> str:
    held = f"{found.held} held back" if found.held else ""
    state = f"campaign {found.state}" if found.state != "open" else ""
    return ", ".join(filter(None, (held, state)))
