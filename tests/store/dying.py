"""Work on a label store in a process of its own, which kills itself by SIGKILL at a chosen point."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

from prefloop.configs.campaign import CampaignConfig
from prefloop.store import db, exchange, imports
from prefloop.store.answers import Answer, Answers
from prefloop.store.assignment import Desk
from prefloop.store.campaigns import Campaigns
from prefloop.store.clock import Clock
from prefloop.store.labels import open_store

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([__name__, "alembic.command"])


def survives(at: int, work: Callable[..., None], *given: Any) -> bool:
    """Whether `work(*given)` ended before its `at`-th point: a statement, a commit, a file opened or renamed."""
    process = _FORKS.Process(target=_die, args=(at, work, given))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return process.exitcode == 0


def _die(at: int, work: Callable[..., None], given: tuple[Any, ...]) -> None:
    points = itertools.count(1)

    def point(*_: object) -> None:
        if next(points) == at:
            os.kill(os.getpid(), signal.SIGKILL)

    for name in ("before_cursor_execute", "commit"):
        event.listen(Engine, name, point)
    folders = tuple(str(one.parent) for one in given if isinstance(one, Path))
    sys.addaudithook(
        lambda name, what: point() if name in ("open", "os.rename") and str(what[0]).startswith(folders) else None
    )
    work(*given)


def label(url: str, run: str, name: str) -> None:
    """The labeler's open task, or the next one, and an answer to it."""
    engine, clock = db.connect(url), Clock()
    task = Desk(engine, clock).next_task(Campaigns(engine, clock).by_run(run), name)
    assert task is not None
    Answers(engine, clock).submit(task.id, name, Answer(axes={"overall": 3}, rationale="so"), nonce=f"{name}{task.id}")
    engine.dispose()


def take_in(url: str, run: str, path: Path) -> None:
    """A file into a campaign, which is made where there is none, two items at a time."""
    imports._MANY_COMPARISONS = 2
    with open_store(url) as store:
        campaigns = Campaigns(store.engine, Clock())
        if run not in [one.run for one in campaigns.all()]:
            campaigns.create(run, CampaignConfig(shared_share=0), by="ada")
        imports.import_items(store, campaigns, run, path, by="ada")


def give_out(url: str, run: str, path: Path) -> None:
    """An export, in the format of its name."""
    with open_store(url) as store:
        exchange.export(store, run, path)


def migrate(url: str) -> None:
    """To the newest schema."""
    db.connect(url).dispose()
