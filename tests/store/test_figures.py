from __future__ import annotations

import dataclasses
import math
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Any

import krippendorff
import numpy as np
import pytest
from sqlalchemy import Engine, insert, select

from prefloop.configs.campaign import CampaignConfig
from prefloop.store import audit, db, tables
from prefloop.store.answers import Answer, Answers
from prefloop.store.assignment import Desk, Task
from prefloop.store.campaigns import Campaigns, Item
from prefloop.store.clock import Clock
from prefloop.store.figures import CampaignFigures, Figures
from prefloop.store.labels import Store
from prefloop.types import CANT_JUDGE, Comparison, Completion, Judgment, Message, Prompt, Sampling, Segment

PEOPLE = ("ada", "bob", "cy", "dee")
GROUPS = {"ada": "north", "bob": "north", "cy": "south", "dee": ""}


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = db.connect(url)
    yield engine
    engine.dispose()


class Time(Clock):
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def comparison(name: str, size: int = 2, slice_: str = "") -> Comparison:
    prompt = Prompt(id=f"p{name}", messages=(Message(role="user", content="Hi"),), slice=slice_)
    items = tuple(
        Completion(
            id=f"{name}{k}",
            prompt_id=prompt.id,
            segments=(Segment(author="policy", tokens=(k,)),),
            text=f"{name}{k}",
            finish_reason="stop",
            sampling=Sampling(),
            seed=k,
            checkpoint=f"model {(int(name) + k) % 3}",
        )
        for k in range(size)
    )
    return Comparison(id=f"c{name}", prompt=prompt, items=items)


class Bench:
    """A campaign that is labeled through the doors that the web app uses."""

    def __init__(self, engine: Engine, config: CampaignConfig, items: int = 24, size: int = 2, gold: int = 0) -> None:
        self.engine, self.clock, self.rng = engine, Time(), np.random.default_rng(0)
        self.campaigns = Campaigns(engine, self.clock)
        self.desk, self.answers = Desk(engine, self.clock), Answers(engine, self.clock)
        names = [f"{i}" for i in range(items)]
        Store(engine).add_comparisons("r", [comparison(n, size, "hard" if int(n) % 3 else "easy") for n in names])
        with db.transaction(engine, write=True) as connection:
            connection.execute(insert(tables.annotators), [{"name": name, "simulated": False} for name in PEOPLE])
            rows = [{"name": n, "role": "labeler", "group": g, "created": 0.0} for n, g in GROUPS.items()]
            connection.execute(insert(tables.accounts), rows)
        self.campaign = self.campaigns.create("r", config, by="admin")
        known = {"ranking": list(range(size)), "note": ""}
        added = [Item(comparison_id=f"c{n}", gold=known if int(n) < gold else None) for n in names]
        self.campaigns.add_items("r", added, by="admin")
        self.nonce = 0

    def label(self, name: str, count: int, say: Callable[[Task], Answer]) -> list[Task]:
        done = []
        for _ in range(count):
            task = self.desk.next_task(self.campaign, name)
            if task is None:
                break
            self.submit(task, name, say(task))
            done.append(task)
        return done

    def submit(self, task: Task, name: str, answer: Answer) -> None:
        self.clock.now += float(self.rng.integers(3, 60))
        self.nonce += 1
        self.answers.submit(task.id, name, answer, nonce=f"n{self.nonce}")

    def say(self, task: Task) -> Answer:
        """Mostly item 0, some ties, now and then nothing."""
        if self.rng.random() < 0.05:
            return Answer(flags=(CANT_JUDGE,))
        strength = int(self.rng.choice([-2, -1, 0, 1, 2, 3, 4]))
        return Answer(axes=dict.fromkeys(task.config.axes, strength if task.shown[0] else -strength))


def rows(engine: Engine) -> list[Any]:
    """The raw judgments: latest versions that were not withdrawn."""
    with db.transaction(engine, write=False) as connection:
        found = connection.execute(select(tables.judgments).order_by(tables.judgments.c.version)).mappings().all()
    latest = {(row["comparison_id"], row["annotator"], row["repeat"]): row for row in found}
    return [row for row in latest.values() if not row["withdrawn"]]


def plain(value: Any) -> Any:
    """Comparable where NaN stands for NaN."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    return "NaN" if isinstance(value, float) and math.isnan(value) else value


def by_name(figures: CampaignFigures) -> dict[str, Any]:
    return {one.name: one for one in figures.labelers}


def sign(value: int) -> int:
    return (value > 0) - (value < 0)


def share(hits: Sequence[bool]) -> Any:
    return pytest.approx(sum(hits) / len(hits), abs=1e-9) if hits else pytest.approx(math.nan, nan_ok=True)


def check(engine: Engine, figures: CampaignFigures, gold: Sequence[str] = ()) -> None:
    """The figures are those of the raw rows, computed here one by one and by the oracle."""
    current = rows(engine)
    standing = [row for row in current if row["status"] in ("counted", "extra") and not row["repeat"]]
    said = [row for row in standing if row["choice"] is not None]
    assert (figures.labels, figures.items) == (len(standing), len({row["comparison_id"] for row in standing}))
    votes = defaultdict(dict)
    for row in said:
        votes[row["comparison_id"]][row["annotator"]] = row["choice"]
    overall = next(iter(figures.axes.values()))
    couples = [(sign(a), sign(b)) for of in votes.values() for a, b in combinations(of.values(), 2)]
    assert overall.labels == len(said)
    assert overall.percent.value == share([a == b for a, b in couples])
    assert overall.percent.n == sum(len(of) > 1 for of in votes.values())
    assert overall.apart_from_ties.value == share([a == b for a, b in couples if a and b])
    grid = np.array([[votes[item].get(name, math.nan) for item in votes] for name in PEOPLE], dtype=float)
    if couples:
        nominal = krippendorff.alpha(reliability_data=np.sign(grid), level_of_measurement="nominal")
        ordinal = krippendorff.alpha(reliability_data=grid, level_of_measurement="ordinal")
        assert overall.alpha.value == pytest.approx(nominal, abs=1e-9)
        assert overall.alpha_ordinal.value == pytest.approx(ordinal, abs=1e-9)
        assert overall.alpha.low <= overall.alpha.value <= overall.alpha.high
    else:
        assert overall.alpha.reason == overall.alpha_ordinal.reason == "no item has two labels"
    raters = list(figures.pairs.raters)
    for a, b in combinations(raters, 2):
        both = [sign(of[a]) == sign(of[b]) for of in votes.values() if a in of and b in of]
        assert figures.pairs.shared[raters.index(a), raters.index(b)] == len(both)
        assert figures.pairs.agreement[raters.index(a), raters.index(b)] == share(both)
    for one in figures.labelers:
        check_labeler(engine, one, current, said, votes, gold)
    apart = {
        item: np.mean([abs(sign(a) - sign(b)) / 2 for a, b in combinations(of.values(), 2)])
        for item, of in votes.items()
        if len(of) > 1
    }
    disputed = {item: value for item, value in apart.items() if value > 0}
    assert figures.disputed == len(disputed) == len(figures.review)
    assert {one.comparison_id: one.disagreement for one in figures.review} == pytest.approx(disputed)
    assert [one.disagreement for one in figures.review] == sorted(disputed.values(), reverse=True)


def check_labeler(engine: Engine, one: Any, current: Any, said: Any, votes: Any, gold: Sequence[str]) -> None:
    mine = [row for row in said if row["annotator"] == one.name]
    answered = [row for row in current if row["annotator"] == one.name]
    assert one.group == GROUPS[one.name]
    assert one.unjudged == sum(row["status"] == "unjudged" for row in answered)
    assert one.seconds == pytest.approx(np.median([row["server_seconds"] for row in answered]))
    assert one.ties.value == share([row["choice"] == 0 for row in mine])
    agreed = []
    for row in mine:
        others = Counter(sign(c) for name, c in votes[row["comparison_id"]].items() if name != one.name).most_common()
        if others and (len(others) == 1 or others[0][1] > others[1][1]):
            agreed.append(others[0][0] == sign(row["choice"]))
    assert (one.majority.n, one.majority.value) == (len(agreed), share(agreed))
    preferred = [row for row in answered if row["choice"]]
    left = [(row["choice"] > 0) == (row["content"]["shown_order"][0] == 0) for row in preferred]
    assert (one.left.n, one.left.value) == (len(left), share(left))
    with db.transaction(engine, write=False) as connection:
        table = tables.judgments
        first = select(table).where(table.c.version == 1, table.c.status == "gold", table.c.annotator == one.name)
        tries = [row["choice"] for row in connection.execute(first).mappings() if row["choice"] is not None]
    assert (one.gold.n, one.gold.value) == (len(tries), share([choice > 0 for choice in tries]))
    before = {row["comparison_id"]: row["choice"] for row in answered if not row["repeat"]}
    again = [(before.get(row["comparison_id"]), row["choice"]) for row in answered if row["repeat"]]
    pairs = [sign(a) == sign(b) for a, b in again if a is not None and b is not None]
    assert (one.repeats.n, one.repeats.value) == (len(pairs), share(pairs))
    assert 0 < one.accuracy < 1


CONFIG = CampaignConfig(
    overlap=3, shared_overlap=4, shared_share=0.2, gold_share=0.2, repeat_share=0.2, calibration=2, lease_minutes=60
)


def test_figures_are_those_of_the_raw_rows_while_labels_come_in(engine: Engine) -> None:
    bench = Bench(engine, CONFIG, items=30, gold=4)
    figures = Figures(engine, "r")
    assert figures.latest() is None
    for name in PEOPLE:
        for count in (14, 5) if name == "ada" else (5, 4):
            bench.label(name, count, bench.say)
            check(engine, figures.refresh())
    for name in ("ada", "cy"):  # taken back, and said otherwise
        task = bench.answers.withdraw(bench.campaign, name)
        assert task is not None
        check(engine, figures.refresh())
        bench.submit(task, name, Answer(axes={"overall": 4}))
        check(engine, figures.refresh())
    found = figures.refresh()
    assert figures.refresh() is found is figures.latest()
    assert plain(found) == plain(Figures(engine, "r").refresh())
    assert any(one.gold.n for one in found.labelers) and any(one.repeats.n for one in found.labelers)
    assert set(found.slices) == {"easy", "hard"}
    assert sum(one.labels for one in found.slices.values()) == found.axes["overall"].labels
    assert set(found.models) == {"model 0", "model 1", "model 2"}
    assert sum(one.value for one in found.models.values()) == pytest.approx(0, abs=1e-9)


def test_groups_of_labelers(engine: Engine) -> None:
    config = CampaignConfig(overlap=4, calibration=0, shared_share=0, gold_share=0, repeat_share=0)
    bench = Bench(engine, config, items=8)
    north = Answer(axes={"overall": -1})

    def south(task: Task) -> Answer:
        return Answer(axes={"overall": 1})

    def by_item(task: Task) -> Answer:
        return north if task.shown[0] == 0 else south(task)

    def against(task: Task) -> Answer:
        return south(task) if task.shown[0] == 0 else north

    for name, say in zip(PEOPLE, (by_item, by_item, against, by_item), strict=True):
        bench.label(name, 8, say)
    groups = {group.name: group for group in Figures(engine, "r").refresh().groups}
    assert set(groups) == {"north", "south"}
    assert (groups["north"].labelers, groups["north"].labels) == (2, 16)
    assert groups["north"].agreement["north"].value == 1
    assert groups["north"].agreement["south"].value == groups["south"].agreement["north"].value == 0
    assert groups["south"].agreement["south"].reason == "no item has two labels"


def test_axes_and_ratings(engine: Engine) -> None:
    config = CampaignConfig(axes=("helpful", 'it\'s "safe"'), ratings=True, overlap=2, calibration=0, shared_share=0)
    bench = Bench(engine, config, items=6)
    unsafe = config.axes[1]
    for name, rating in (("ada", 7), ("bob", 5)):
        for task in [bench.desk.next_task(bench.campaign, name) for _ in range(1)]:
            assert task is not None
        while task := bench.desk.next_task(bench.campaign, name):
            turn = 1 if task.shown[0] else -1
            odd = int(task.comparison.id[1:]) % 2
            axes = {"helpful": turn, unsafe: turn * (1 if odd or name == "ada" else -1)}
            ratings = [rating, 1] if task.shown[0] == 0 else [1, rating]
            bench.submit(task, name, Answer(axes=axes, ratings=ratings))
    found = Figures(engine, "r").refresh()
    assert found.axes["helpful"].percent.value == 1
    assert found.axes[unsafe].percent.value == 0.5
    assert found.axes["helpful"].cohen.reason == "all labels that can be compared are the same"
    assert found.axes[unsafe].cohen.value == 0
    assert found.ratings is not None
    assert (found.ratings.labels, found.ratings.percent.n, found.ratings.percent.value) == (24, 12, 0.5)
    values = np.array([[7, 1] * 6, [5, 1] * 6], dtype=float)
    expected = krippendorff.alpha(reliability_data=values, level_of_measurement="ordinal")
    assert found.ratings.alpha_ordinal.value == pytest.approx(expected, abs=1e-9)
    bench.campaigns.change("r", config.model_copy(update={"axes": ("helpful",)}), by="admin")
    figures = Figures(engine, "r")
    assert list(figures.refresh().axes) == ["helpful"]
    bench.campaigns.change("r", config, by="admin")
    assert plain(figures.refresh()) == plain(found)


def test_rankings_count_as_their_pairs(engine: Engine) -> None:
    bench = Bench(engine, CampaignConfig(overlap=2, calibration=0, shared_share=0, gold_share=0), items=5, size=4)

    def ranked(*ranks: int) -> Callable[[Task], Answer]:
        return lambda task: Answer(ranks=[ranks[item] for item in task.shown])

    bench.label("ada", 5, ranked(0, 1, 2, 3))
    bench.label("bob", 5, ranked(1, 0, 2, 2))
    found = Figures(engine, "r").refresh()
    overall = found.axes["overall"]
    # of six pairs one is turned and one is a tie for bob
    assert (overall.labels, overall.percent.n) == (60, 30)
    assert overall.percent.value == pytest.approx(4 / 6)
    assert overall.apart_from_ties.value == pytest.approx(4 / 5)
    assert overall.percent.low == overall.percent.high == overall.percent.value  # all items are alike
    assert overall.cohen.n == 30
    assert [one.disagreement for one in found.review] == pytest.approx([(1 + 0.5) / 6] * 5)
    assert (found.labels, found.items, by_name(found)["bob"].ties.value) == (10, 5, pytest.approx(1 / 6))


def test_gold_rankings_and_gold_that_comes_later(engine: Engine) -> None:
    config = CampaignConfig(calibration=3, gold_share=0, repeat_share=0, shared_share=0)
    bench = Bench(engine, config, items=6, size=4, gold=3)
    figures = Figures(engine, "r")
    figures.refresh()
    orders = iter([(0, 1, 2, 3), (0, 1, 3, 2), (0, 0, 1, 2)])

    def say(task: Task) -> Answer:
        ranks = next(orders)
        return Answer(ranks=[ranks[item] for item in task.shown])

    bench.label("ada", 3, say)
    ada = by_name(figures.refresh())["ada"]
    assert (ada.gold.n, ada.gold.value, ada.labels) == (3, pytest.approx(1 / 3), 0)
    Store(engine).add_comparisons("r", [comparison("100", 4)])
    known = {"ranking": [0, 1, 2, 3], "note": ""}
    bench.campaigns.add_items("r", [Item(comparison_id="c100", gold=known)], by="admin")
    bench.label("bob", 4, lambda task: Answer(ranks=list(task.shown)))
    assert by_name(figures.refresh())["bob"].gold.value == 1
    assert plain(figures.refresh()) == plain(Figures(engine, "r").refresh())


def test_the_first_try_at_a_known_answer_counts(engine: Engine) -> None:
    bench = Bench(engine, CampaignConfig(calibration=1, repeat_share=0), items=3, gold=1)
    wrong, right = ((lambda task, s=s: Answer(axes={"overall": s if task.shown[0] else -s})) for s in (-1, 1))
    [task] = bench.label("ada", 1, wrong)
    again = bench.answers.withdraw(bench.campaign, "ada")
    assert again is not None and again.id == task.id
    bench.submit(again, "ada", right(again))
    assert by_name(Figures(engine, "r").refresh())["ada"].gold.value == 0


def test_pace_is_that_of_the_last_hours(engine: Engine) -> None:
    bench = Bench(engine, CampaignConfig(calibration=0, shared_share=0, repeat_share=0), items=12)
    for hours in (0.0, 10.0, 10.5, 11.0, 12.0):
        bench.clock.now = 1_000_000 + hours * 3600
        task = bench.desk.next_task(bench.campaign, "ada")
        assert task is not None
        bench.clock.now += 20 + hours
        bench.nonce += 1
        bench.answers.submit(task.id, "ada", Answer(axes={"overall": 1}), nonce=f"n{bench.nonce}")
    ada = by_name(Figures(engine, "r").refresh())["ada"]
    assert ada.seconds == pytest.approx(30.5)
    assert ada.per_hour == pytest.approx(3 / 2, rel=1e-3)  # four within eight hours, over two


def test_a_run_without_campaign_and_one_without_labels(engine: Engine) -> None:
    store = Store(engine)
    store.add_comparisons("stage", [comparison("1"), comparison("2")])
    empty = Figures(engine, "stage").refresh()
    assert (empty.labels, empty.labelers, empty.models, empty.review) == (0, [], {}, [])
    assert empty.axes["overall"].alpha.reason == "no item has two labels"
    made = [
        Judgment(comparison_id=f"c{i}", annotator=name, ranking=(0, 1), shown_order=(0, 1), axes={"safe": True})
        for i in (1, 2)
        for name in ("x", "y")
    ]
    store.add_judgments("stage", [*made, Judgment(comparison_id="c1", annotator="z", probability=0.7)], simulated=True)
    found = Figures(engine, "stage").refresh()
    assert (found.labels, found.axes["overall"].labels, found.axes["overall"].percent.value) == (5, 4, 1)
    x = by_name(found)["x"]
    assert math.isnan(x.seconds) and math.isnan(x.per_hour) and x.left.value == 1
    assert x.reliability.n == 2
    assert Figures(engine, "other").refresh().labels == 0


def test_many_threads_get_one_answer(engine: Engine) -> None:
    bench = Bench(engine, CONFIG, items=10)
    bench.label("ada", 5, bench.say)
    figures, found = Figures(engine, "r"), list[CampaignFigures]()
    threads = [threading.Thread(target=lambda: found.append(figures.refresh())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(one is figures.latest() for one in found)


def test_labels_that_become_visible_out_of_order_are_not_missed(postgres_url: str) -> None:
    """A transaction takes its number first and commits last."""
    engine = db.connect(postgres_url)
    Bench(engine, CONFIG, items=4)
    figures = Figures(engine, "r")
    figures.refresh()

    def add(connection: Any, name: str) -> int:
        content = {"shown_order": [0, 1], "axes": {"overall": 1}}
        row = {"run": "r", "comparison_id": "c1", "annotator": name, "choice": 1, "at": 0.0, "content": content}
        made = connection.execute(insert(tables.judgments).values(row))
        return int(made.inserted_primary_key[0])

    with db.transaction(engine, write=True, turns=False) as slow:
        first = add(slow, "ada")
        with db.transaction(engine, write=True, turns=False) as quick:
            second = add(quick, "bob")
            audit.append(quick, at=0.0, actor="bob", kind="label", judged=[second])
        assert second > first
        assert figures.refresh().labels == 1
        audit.append(slow, at=0.0, actor="ada", kind="label", judged=[first])
    assert figures.refresh().labels == 2
    engine.dispose()
