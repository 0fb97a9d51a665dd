from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefloop.store.assignment import due
from prefloop.store.campaigns import Item, MissingError
from prefloop.store.queries import REPEAT_AFTER
from prefloop.types import PrefloopError
from tests.store.scene import RUN, Scene, answer, comparison, plain


def drain(here: Scene, annotator: str) -> list[str]:
    """Label until nothing is left; the items in the order in which they came."""
    done = []
    while made := here.label(annotator):
        done.append(made[0].comparison.id)
    return done


@given(st.floats(0.001, 1), st.integers(0, 10_000), st.integers(0, 50))
@settings(max_examples=200, deadline=None)
def test_a_share_of_tasks_is_met_exactly_up_to_one_block(share: float, start: int, seed: int) -> None:
    count = round(20 / share)
    hits = sum(due(str(seed), n, share) for n in range(start, start + count))
    assert abs(hits - 20) <= 2


def test_a_share_of_nothing_and_of_all() -> None:
    assert not any(due("s", n, 0.0) for n in range(100))
    assert all(due("s", n, 1.0) for n in range(100))


def test_each_item_is_handed_out_as_often_as_it_is_needed_and_never_twice_to_one(stage: Callable[..., Scene]) -> None:
    here = stage(plain(overlap=2), [comparison(f"c{i}") for i in range(12)])
    seen = {name: drain(here, name) for name in ("ada", "bob", "eve")}
    assert all(len(set(mine)) == len(mine) for mine in seen.values())
    assert Counter(c for mine in seen.values() for c in mine) == {f"c{i}": 2 for i in range(12)}
    assert not seen["eve"]
    assert {here.item(f"c{i}")["counted"] for i in range(12)} == {2}


def test_an_open_task_comes_back_until_it_is_answered(stage: Callable[..., Scene]) -> None:
    here = stage(plain(), [comparison("a"), comparison("b")])
    first, again = here.next("ada"), here.next("ada")
    assert first is not None and again is not None and first.id == again.id and first.shown == again.shown
    other = here.next("bob")
    assert other is not None and other.comparison.id != first.comparison.id


def test_a_lease_that_ends_frees_the_place_and_the_task_stays_the_labelers(stage: Callable[..., Scene]) -> None:
    here = stage(plain(lease_minutes=5), [comparison("a")])
    mine = here.next("ada")
    assert mine is not None and here.next("bob") is None
    here.clock.now += 301
    theirs = here.next("bob")
    assert theirs is not None and theirs.comparison.id == "a"
    assert here.desk.renew(mine.id, "ada") == 0.0  # the place went to bob
    assert here.item("a")["taken"] == 1
    assert here.desk.task(mine.id, "ada").state == "expired"


def test_a_heartbeat_keeps_a_lease_up_to_its_longest(stage: Callable[..., Scene]) -> None:
    here = stage(plain(lease_minutes=5, hold_hours=1), [comparison("a")])
    mine = here.next("ada")
    assert mine is not None
    for _ in range(14):
        here.clock.now += 240
        assert here.desk.renew(mine.id, "ada") > 0
        assert here.next("bob") is None
    here.clock.now += 3600
    assert here.desk.renew(mine.id, "ada") == 0.0
    assert here.next("bob") is not None


def test_an_ended_lease_is_taken_up_again_where_nobody_came(stage: Callable[..., Scene]) -> None:
    here = stage(plain(), [comparison("a")])
    mine = here.next("ada")
    assert mine is not None
    here.clock.now += 1000
    here.next("bob")  # bob gets it: one item only
    here.clock.now += 1000
    again = here.next("ada")
    assert again is not None and again.id == mine.id and again.shown == mine.shown
    assert here.item("a")["taken"] == 1 and here.item("a")["shown"] == 2


def test_a_clock_set_back_or_forward_moves_no_lease() -> None:
    from prefloop.store.clock import Clock

    ahead = Clock(seen=4e9)
    assert 4e9 <= ahead() < 4e9 + 5
    assert ahead() <= ahead()


@pytest.mark.parametrize("overlap", [1, 2, 4])
def test_sides_are_balanced_for_each_labeler_and_each_item(stage: Callable[..., Scene], overlap: int) -> None:
    names = [f"l{i}" for i in range(4)]
    made = [comparison(f"c{i:02}") for i in range(24)]
    here = stage(plain(overlap=overlap), made, labelers=names)
    left: dict[str, list[int]] = {name: [] for name in names}
    turned: dict[str, list[int]] = {c.id: [] for c in made}
    busy = list(names)
    while busy:
        for name in list(busy):
            made_ = here.label(name)
            if made_ is None:
                busy.remove(name)
                continue
            left[name].append(made_[0].shown[0])
            turned[made_[0].comparison.id].append(made_[0].shown[0])
    for sides in left.values():
        assert abs(2 * sum(sides) - len(sides)) <= 3
    assert sum(abs(2 * sum(sides) - len(sides)) > 1 for sides in turned.values()) <= 2


def test_places_of_a_ranking_form_a_latin_square(stage: Callable[..., Scene]) -> None:
    names = [f"l{i}" for i in range(5)]
    here = stage(plain(overlap=5), [comparison("k", size=5)], labelers=names)
    orders = []
    for name in names:
        task, _ = here.label(name) or pytest.fail("nothing to label")
        orders.append(task.shown)
    for place in range(5):
        assert sorted(order[place] for order in orders) == list(range(5))


def test_priorities_go_first_and_a_fifth_is_picked_uniformly_and_marked(stage: Callable[..., Scene]) -> None:
    made = [comparison(f"c{i:02}") for i in range(40)]
    items = [Item(comparison_id=c.id, priority=float(i)) for i, c in enumerate(made)]
    here = stage(plain(uniform_share=0.2), made, items)
    picked = []
    for _ in range(20):
        task, _ = here.label("ada") or pytest.fail("nothing to label")
        picked.append((task.comparison.id, here.rows("tasks")[-1]["uniform"]))
    uniform = [name for name, by_chance in picked if by_chance]
    targeted = [name for name, by_chance in picked if not by_chance]
    assert len(uniform) == 4
    assert targeted == sorted(targeted, reverse=True)
    assert min(targeted) >= "c20"
    assert [row["uniform"] for row in here.rows()] == [by_chance for _, by_chance in picked]


def test_equal_priorities_cover_slices_evenly(stage: Callable[..., Scene]) -> None:
    made = [comparison(f"{s}{i}", slice=s) for s, n in (("big", 30), ("small", 6)) for i in range(n)]
    here = stage(plain(), made)
    first = [made_[0].comparison.prompt.slice for _ in range(18) if (made_ := here.label("ada"))]
    assert 2 <= Counter(first)["small"] <= 5


def test_kinds_of_prompts_are_mixed_by_their_shares(stage: Callable[..., Scene]) -> None:
    mix = {"easy": 0.5, "hard": 0.25, "adversarial": 0.25}
    made = [comparison(f"{kind}{i}") for kind in mix for i in range(20)]
    items = [Item(comparison_id=c.id, mix=c.id.rstrip("0123456789")) for c in made]
    here = stage(plain(mix=mix), made, items)
    kinds = [made_[0].comparison.id.rstrip("0123456789") for _ in range(24) if (made_ := here.label("ada"))]
    found = Counter(kinds)
    assert abs(found["easy"] - 12) <= 2 and abs(found["hard"] - 6) <= 2 and abs(found["adversarial"] - 6) <= 2


def test_the_calibration_round_is_gold_first_then_shared(stage: Callable[..., Scene]) -> None:
    made = [comparison(f"c{i:02}") for i in range(30)]
    items = [
        Item(comparison_id=c.id, gold={"ranking": [0, 1], "note": "n"} if i < 2 else None) for i, c in enumerate(made)
    ]
    here = stage(plain(calibration=4, shared_share=0.5), made, items)
    kinds = [made_[0].kind for _ in range(6) if (made_ := here.label("ada"))]
    assert kinds == ["gold", "gold", "shared", "shared", "item", "item"]
    assert [row["status"] for row in here.rows()][:2] == ["gold", "gold"]
    assert len(here.store.judgments(RUN)) == 4


def test_some_items_come_back_swapped_later_and_do_not_count(stage: Callable[..., Scene]) -> None:
    here = stage(plain(repeat_share=0.1), [comparison(f"c{i:02}") for i in range(60)])
    drain(here, "ada")
    rows = here.rows("tasks")
    again = [row for row in rows if row["repeat"]]
    assert 5 <= len(again) <= 7
    for row in again:
        first = next(r for r in rows if r["comparison_id"] == row["comparison_id"] and not r["repeat"])
        assert row["shown"] == first["shown"][::-1]
        assert row["number"] - first["number"] > REPEAT_AFTER
    assert all(here.item(row["comparison_id"])["counted"] == 1 for row in again)
    assert len(here.store.judgments(RUN)) == 60


def test_a_held_item_waits(stage: Callable[..., Scene]) -> None:
    here = stage(plain(), [comparison("a")], [Item(comparison_id="a", held="names a model")])
    assert here.next("ada") is None
    here.campaigns.hold(RUN, "a", "", by="ada")
    assert here.next("ada") is not None


def test_nothing_is_handed_out_while_paused(stage: Callable[..., Scene]) -> None:
    here = stage(plain(), [comparison("a")])
    here.campaigns.set_state(RUN, "paused", by="ada")
    with pytest.raises(PrefloopError, match="paused"):
        here.next("ada")


def test_anothers_task_is_not_there(stage: Callable[..., Scene]) -> None:
    here = stage(plain(), [comparison("a")])
    task = here.next("ada")
    assert task is not None
    for ask in (here.desk.task, here.desk.renew):
        with pytest.raises(MissingError):
            ask(task.id, "bob")
    with pytest.raises(MissingError):
        here.answers.submit(task.id, "bob", answer(task), nonce="n")
    with pytest.raises(MissingError):
        here.desk.save_draft(task.id, "bob", {"rationale": "mine now"})


def test_racing_labelers_never_share_the_last_place(stage: Callable[..., Scene]) -> None:
    names = [f"l{i}" for i in range(6)]
    here = stage(plain(overlap=2), [comparison(f"c{i}") for i in range(10)], labelers=names)
    seen: dict[str, list[str]] = {}
    failed: list[BaseException] = []

    def work(name: str) -> None:
        try:
            seen[name] = drain(here, name)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert Counter(c for mine in seen.values() for c in mine) == {f"c{i}": 2 for i in range(10)}
    assert all(len(set(mine)) == len(mine) for mine in seen.values())
    assert all(row["taken"] == row["counted"] == 2 for row in here.rows("comparisons"))


def test_two_tabs_of_one_labeler_get_one_task(stage: Callable[..., Scene]) -> None:
    here = stage(plain(), [comparison(f"c{i}") for i in range(10)])
    got: list[str] = []
    threads = [threading.Thread(target=lambda: got.append(getattr(here.next("ada"), "id", ""))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 5 and len(set(got)) == 1
