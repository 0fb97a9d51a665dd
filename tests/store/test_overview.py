from __future__ import annotations

from collections.abc import Callable

import pytest

from prefloop.store.answers import Answer
from prefloop.store.campaigns import Item, MissingError
from prefloop.store.overview import Counts, Filter, Overview, Stratum
from tests.store.scene import RUN, Scene, answer, comparison, plain

Stage = Callable[..., Scene]


def overview(here: Scene) -> Overview:
    return Overview(here.engine, here.clock)


@pytest.fixture
def mixed(stage: Stage) -> Scene:
    """Seven items: one gold, one held, one done, one leased; slices x and y."""
    made = [comparison(f"c{i}", slice="x" if i % 2 else "y") for i in range(7)]
    gold = {"ranking": [0, 1], "note": "known"}
    items = [
        Item(comparison_id=f"c{i}", mix="hard" if i > 4 else "easy", gold=gold if i == 6 else None) for i in range(7)
    ]
    here = stage(plain(), made, items)
    here.campaigns.hold(RUN, "c5", "identical answers", by="ada")
    here.campaigns.set_priorities(RUN, {"c0": 2.0, "c1": 1.0}, by="ada")
    here.answers.review(here.campaign, "c0", "eve", Answer(axes={"overall": 1}), nonce="r")
    here.next("bob")
    return here


def ids(here: Scene, where: Filter, **page: int) -> list[str]:
    return [row.comparison.id for row in overview(here).items(RUN, where, **page)]


def test_counts_and_strata(mixed: Scene) -> None:
    assert overview(mixed).counts(RUN) == Counts(leased=1, held=1, gold=1)
    mixed.clock.now += 3600  # the lease has run out
    assert overview(mixed).counts(RUN) == Counts(leased=0, held=1, gold=1)
    assert overview(mixed).strata(RUN) == [
        Stratum(slice="x", mix="easy", items=2, needed=2, counted=0),
        Stratum(slice="x", mix="hard", items=0, needed=0, counted=0),
        Stratum(slice="y", mix="easy", items=3, needed=3, counted=1),
    ]
    assert overview(mixed).counts("elsewhere") == Counts(leased=0, held=0, gold=0)


def test_items_by_filter(mixed: Scene) -> None:
    assert ids(mixed, Filter()) == [f"c{i}" for i in range(7)]
    assert ids(mixed, Filter(slice="x")) == ["c1", "c3", "c5"]
    assert ids(mixed, Filter(slice="x", mix="hard")) == ["c5"]
    assert ids(mixed, Filter(state="held")) == ["c5"]
    assert ids(mixed, Filter(state="gold")) == ["c6"]
    assert ids(mixed, Filter(state="done")) == ["c0"]
    assert ids(mixed, Filter(state="waiting")) == ["c1", "c2", "c3", "c4"]
    assert ids(mixed, Filter(state="shared")) == []
    assert ids(mixed, Filter(state="1=1; drop table comparisons")) == [f"c{i}" for i in range(7)]
    assert ids(mixed, Filter(slice="x' or '1'='1")) == ids(mixed, Filter(slice="%")) == []


def test_the_list_goes_on_after_a_number_and_misses_nothing(mixed: Scene) -> None:
    seen: list[str] = []
    after = 0
    while page := overview(mixed).items(RUN, Filter(), after=after, limit=3):
        seen += [row.comparison.id for row in page]
        after = page[-1].number
        if len(seen) == 3:
            mixed.store.add_comparisons(RUN, [comparison("late")])
    assert seen == [f"c{i}" for i in range(7)] + ["late"]
    assert overview(mixed).items(RUN, Filter(), after=10**18) == []


def test_an_item_knows_its_state(mixed: Scene) -> None:
    rows = {row.comparison.id: row for row in overview(mixed).items(RUN, Filter())}
    assert {id_: row.state for id_, row in rows.items()} == {
        "c0": "done", "c1": "waiting", "c2": "waiting", "c3": "waiting", "c4": "waiting", "c5": "held", "c6": "gold",
    }  # fmt: skip
    same = overview(mixed).item(RUN, rows["c6"].number)
    assert same == rows["c6"] and same.gold == {"ranking": [0, 1], "note": "known"}
    assert overview(mixed).items_by_id(RUN, ["c1", "nothing"]) == {"c1": rows["c1"]}
    for run, number in ((RUN, 99), ("elsewhere", same.number), (RUN, 10**30)):
        with pytest.raises(MissingError):
            overview(mixed).item(run, number)


def test_every_version_of_every_label_is_there(stage: Stage) -> None:
    here = stage(plain(overlap=2), [comparison("a")])
    made = here.label("ada", -1)
    assert made is not None
    here.answers.submit(made[0].id, "ada", answer(made[0], 3), nonce="second")
    here.answers.withdraw(here.campaign, "ada")
    here.answers.review(here.campaign, "a", "bob", Answer(axes={"overall": 0}, rationale="both fine"), nonce="r")
    rows = overview(here).labels(RUN, "a")
    assert [(row.annotator, row.version, row.latest, row.withdrawn, row.kind) for row in rows] == [
        ("ada", 1, False, False, "item"),
        ("ada", 2, False, False, "item"),
        ("ada", 3, True, True, "item"),
        ("bob", 1, True, False, "review"),
    ]
    assert rows[3].content["rationale"] == "both fine" and not rows[3].simulated
    assert overview(here).reviewed(RUN, ["a", "b"]) == {"a"}
    assert overview(here).labels(RUN, "b") == [] and overview(here).reviewed(RUN, ["b"]) == set()


def test_versions_newest_first(stage: Stage) -> None:
    here = stage(plain(), [comparison("a")])
    here.campaigns.change(RUN, plain(title="Second"), by="bob")
    found = overview(here).versions(RUN)
    assert [(one.version, one.by, one.config.title) for one in found] == [
        (2, "bob", "Second"),
        (1, "ada", "Which answer is better?"),
    ]


def test_labels_by_status(stage: Stage) -> None:
    here = stage(plain(), [comparison("a")])
    assert not any(overview(here).statuses(RUN).values())
    late = here.next("ada")
    here.clock.now += 1000
    here.label("bob")
    assert late is not None
    here.answers.submit(late.id, "ada", answer(late), nonce="late")
    here.answers.review(here.campaign, "a", "eve", Answer(flags=["can't judge"]), nonce="e")
    here.answers.withdraw(here.campaign, "bob")
    found = {name: count for name, count in overview(here).statuses(RUN).items() if count}
    assert found == {"extra": 1, "late": 1, "unjudged": 1, "withdrawn": 1}


def test_when_a_labelers_answers_came(stage: Stage) -> None:
    here = stage(plain(), [comparison(name) for name in "abc"])
    for _ in range(3):
        task = here.next("ada")
        assert task is not None
        here.clock.now += 10
        here.answers.submit(task.id, "ada", answer(task), nonce=task.id)
    times = overview(here).times(RUN, "ada")
    assert [round(seconds or 0) for _, seconds in times] == [10, 10, 10]
    assert times == sorted(times) and overview(here).times(RUN, "ada", limit=1) == times[-1:]
    assert overview(here).times(RUN, "bob") == []
