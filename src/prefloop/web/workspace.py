"""What the pages work on: one label database, one folder of runs, one clock."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prefloop.store import db
from prefloop.store.accounts import Accounts
from prefloop.store.answers import Answers
from prefloop.store.assignment import Desk, seen_until
from prefloop.store.campaigns import Campaigns
from prefloop.store.clock import Clock
from prefloop.store.health import WAIT, Health
from prefloop.store.invites import Invites
from prefloop.store.labels import Store
from prefloop.store.overview import Overview
from prefloop.store.progress import Progress
from prefloop.store.redteam import RedTeam
from prefloop.store.sessions import Sessions
from prefloop.web.jobs import Jobs
from prefloop.web.live import Live
from prefloop.web.partners import Partners


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """`folder` holds runs/; `key` (secret bytes) signs what is handed out before a login and makes pseudonyms."""

    folder: Path
    key: bytes
    clock: Clock
    store: Store
    campaigns: Campaigns
    desk: Desk
    answers: Answers
    accounts: Accounts
    progress: Progress
    overview: Overview
    jobs: Jobs
    live: Live
    sessions: Sessions
    invites: Invites
    health: Health
    red_team: RedTeam
    partners: Partners

    def close(self) -> None:
        """End all processes, close all connections."""
        self.partners.close()
        self.jobs.close()
        self.store.close()
        self.health.close()


def database_of(folder: Path, database: str) -> str:
    """The URL of a workspace's database: the one that was given, or prefloop.db in its folder."""
    return database or f"sqlite:///{folder / 'prefloop.db'}"


def open_workspace(folder: Path, key: bytes, database: str = "") -> Workspace:
    """Everything over one database (empty: prefloop.db in `folder`). Raises PrefloopError as `db.connect` does."""
    url = database_of(folder, database)
    engine = db.connect(url)
    clock = Clock(seen_until(engine))
    store, overview, jobs = Store(engine), Overview(engine, clock), Jobs()
    return Workspace(
        folder=folder,
        key=key,
        clock=clock,
        store=store,
        campaigns=Campaigns(engine, clock),
        desk=Desk(engine, clock),
        answers=Answers(engine, clock),
        accounts=Accounts(engine, clock),
        progress=Progress(engine, clock),
        overview=overview,
        jobs=jobs,
        live=Live(store, overview, jobs),
        sessions=Sessions(engine, clock),
        invites=Invites(engine, clock),
        health=Health(db.connect(url, wait=WAIT), clock),
        red_team=RedTeam(engine, clock),
        partners=Partners(folder),
    )
