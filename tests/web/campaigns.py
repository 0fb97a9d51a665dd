"""Campaigns that the tests of the pages work on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import httpx
from sqlalchemy import select

from prefloop.configs.campaign import CampaignConfig
from prefloop.store import db, tables
from prefloop.store.campaigns import Campaign, Item
from prefloop.types import to_json
from prefloop.web import settings
from prefloop.web.workspace import Workspace
from tests.store.scene import answer, comparison, plain
from tests.web.serving import Visitor


def campaign(
    workspace: Workspace,
    run: str = "pairs",
    names: Sequence[str] = ("a", "b", "c"),
    *,
    size: int = 2,
    items: Sequence[Item] = (),
    **config: Any,
) -> Campaign:
    """A campaign of comparisons with these ids."""
    made = [comparison(name, size) for name in names]
    workspace.store.add_comparisons(run, made)
    found = workspace.campaigns.create(run, plain(**config), by="prefloop")
    workspace.campaigns.add_items(run, items or [Item(comparison_id=c.id) for c in made], by="prefloop")
    return found


def label(workspace: Workspace, made: Campaign, name: str, axes: int = -2) -> str:
    """One more label of somebody who has an account; the comparison's id."""
    task = workspace.desk.next_task(workspace.campaigns.by_run(made.run), name)
    assert task is not None
    workspace.answers.submit(task.id, name, answer(task, axes), nonce=f"{name}-{task.id}")
    return task.comparison.id


def collect(workspace: Workspace, run: str = "quickstart", answers: int = 4) -> str:
    """A run folder with answers to three prompts; its path from the workspace on."""
    path = workspace.folder / "runs" / run / "collect"
    path.mkdir(parents=True)
    (path / "run.json").write_text(json.dumps({"stage": "collect"}))
    rows = []
    for name in ("x", "y", "z"):
        made = comparison(name, answers)
        rows += [{"step": 0, "prompt": to_json(made.prompt), "completion": to_json(item)} for item in made.items]
    (path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"runs/{run}/collect"


def rows(workspace: Workspace, name: str) -> list[Any]:
    """All rows of a table."""
    table = tables.metadata.tables[name]
    with db.transaction(workspace.store.engine, write=False) as connection:
        return list(connection.execute(select(table).order_by(*table.primary_key.columns)).mappings())


def filled(config: CampaignConfig | None = None, **changes: str) -> dict[str, str]:
    """A campaign's form as a browser sends it."""
    typed = {name: value for name, value in settings.shown(config or CampaignConfig()).items() if value}
    own = {"run": "mine", "path": "", "collected": "", "pairs": "3", "ways": "2", "do": "create"}
    return {name: value for name, value in {**typed, **own, **changes}.items() if value is not None}


def send(
    visitor: Visitor, address: str, fields: dict[str, str], file: tuple[str, bytes] | None = None
) -> httpx.Response:
    """A form, with a file in its field `upload`, as a browser sends it; where it leads to is not followed."""
    headers = {"origin": str(visitor.base_url).rstrip("/"), "sec-fetch-site": "same-origin"}
    files = {"upload": (file[0], file[1], "application/octet-stream")} if file else None
    return visitor.post(address, data={"csrf": visitor.csrf, **fields}, files=files, headers=headers)
