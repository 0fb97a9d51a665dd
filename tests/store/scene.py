"""A campaign with items and labelers, and a clock that a test turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, insert, select, update

from prefloop.configs.campaign import CampaignConfig
from prefloop.store import db, tables
from prefloop.store.answers import Answer, Answers, Receipt
from prefloop.store.assignment import Desk, Task
from prefloop.store.campaigns import Campaign, Campaigns, Item
from prefloop.store.clock import Clock
from prefloop.store.labels import Store
from prefloop.types import Comparison, Completion, Message, Prompt, Sampling

RUN = "runs/secret-model/label"


class TurnedClock(Clock):
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


@dataclass
class Scene:
    engine: Engine
    clock: TurnedClock
    store: Store
    campaigns: Campaigns
    desk: Desk
    answers: Answers

    @property
    def campaign(self) -> Campaign:
        return self.campaigns.by_run(RUN)

    def next(self, annotator: str) -> Task | None:
        return self.desk.next_task(self.campaign, annotator)

    def label(self, annotator: str, axes: int = -2, nonce: str = "") -> tuple[Task, Receipt] | None:
        """Take the next task and answer it."""
        task = self.next(annotator)
        if task is None:
            return None
        return task, self.answers.submit(task.id, annotator, answer(task, axes), nonce=nonce or f"{annotator}{task.id}")

    def item(self, comparison_id: str) -> Any:
        where = (tables.comparisons.c.run == RUN) & (tables.comparisons.c.id == comparison_id)
        with db.transaction(self.engine, write=False) as connection:
            return connection.execute(select(tables.comparisons).where(where)).mappings().one()

    def rows(self, name: str = "judgments") -> list[Any]:
        table = tables.metadata.tables[name]
        with db.transaction(self.engine, write=False) as connection:
            return list(connection.execute(select(table).order_by(table.c.number)).mappings())


def answer(task: Task, axes: int = -2) -> Answer:
    """The left answer, at a strength of 2; of more than two the order shown."""
    if len(task.shown) == 2:
        return Answer(axes=dict.fromkeys(task.config.axes, axes))
    return Answer(ranks=range(len(task.shown)))


def comparison(name: str, size: int = 2, slice: str = "") -> Comparison:
    prompt = Prompt(id=f"p-{name}", messages=(Message(role="user", content=f"Question {name}?"),), slice=slice)
    items = tuple(
        Completion(
            id=f"{name}-{i}",
            prompt_id=prompt.id,
            segments=(),
            text=f"Answer {i} to {name}.",
            finish_reason="stop",
            sampling=Sampling(),
            seed=i,
            checkpoint="runs/secret-model",
        )
        for i in range(size)
    )
    return Comparison(id=name, prompt=prompt, items=items)


def plain(**changes: Any) -> CampaignConfig:
    """A campaign in which nothing comes up but its items."""
    quiet = {"shared_share": 0.0, "gold_share": 0.0, "repeat_share": 0.0, "calibration": 0}
    return CampaignConfig(**{**quiet, **changes})


def scene(
    url: str,
    config: CampaignConfig,
    made: Sequence[Comparison],
    items: Sequence[Item] | None = None,
    labelers: Sequence[str] = ("ada", "bob", "eve"),
) -> Scene:
    engine, clock = db.connect(url), TurnedClock()
    here = Scene(engine, clock, Store(engine), Campaigns(engine, clock), Desk(engine, clock), Answers(engine, clock))
    with db.transaction(engine, write=True) as connection:
        connection.execute(insert(tables.annotators), [{"name": name, "simulated": False} for name in labelers])
    here.store.add_comparisons(RUN, made)
    here.campaigns.create(RUN, config, by="ada")
    with db.transaction(engine, write=True) as connection:
        connection.execute(update(tables.campaigns).values(salt="the same each time"))
    here.campaigns.add_items(RUN, items or [Item(comparison_id=c.id) for c in made], by="ada")
    return here
