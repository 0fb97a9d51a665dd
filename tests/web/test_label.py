from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefloop.store.answers import Answer
from prefloop.store.campaigns import Item
from prefloop.types import CANT_JUDGE, to_json
from prefloop.web import answerform
from prefloop.web.workspace import Workspace
from tests.store.scene import plain
from tests.web.labeling import PLANTED, RUN, Client, Page, Served, comparison, many, served

Stage = Callable[..., Served]
JSON = {"accept": "application/json"}


@pytest.fixture
def stage(workspace: Workspace) -> Iterator[Stage]:
    """Makes the scene of a test, served: stage(config, comparisons, items)."""
    with ExitStack() as stack:
        yield lambda *scene: stack.enter_context(served(workspace, *scene))


def test_the_first_page_says_what_is_asked_and_leads_to_a_task(stage: Stage) -> None:
    here = stage(plain(title="Which <b> is better?", guidelines="Be **fair**."), many(3))
    client = here.client()
    page = client.get(here.home)
    assert "Which <b> is better?" in page.said and "version 1" in page.said
    assert "<strong>fair</strong>" in page.body and "0 done, about 3 left for you" in page.said
    assert "Start" in page.said and not here.rows("tasks")
    task = client.next()
    assert task.status == 200 and task.task == here.rows("tasks")[0]["id"]
    assert client.next().task == task.task
    client.submit(task, {"axis:overall": "2"})
    assert "1 done, about 2 left" in client.get(here.home).said


@pytest.mark.parametrize("size", [2, 3, 9])
def test_answers_stand_where_the_server_says_that_they_do(stage: Stage, size: int) -> None:
    here = stage(plain(), many(6, size))
    client, orders = here.client(), set()
    page = client.next()
    for _ in range(6):
        row = here.task(page.address)
        number = row["comparison_id"].removeprefix("cmp-")
        assert page.texts == [f"answer {item} of {number}" for item in row["shown"]]
        orders.add(tuple(row["shown"]))
        ranks = {f"rank:{place}": str((place + 1) % size) for place in range(size)}
        reply = client.submit(page, {"axis:overall": "1"} if size == 2 else ranks)
        page = client.get(reply.headers["location"])
    assert len(orders) > 1
    for judgment in here.judgments().values():
        shown = judgment.shown_order
        assert judgment.ranking is not None
        if size == 2:  # the right one was called better
            assert judgment.ranking.index(0) == shown[1]
        else:  # the last place was called the best, then from the first to the last but one
            assert [judgment.ranking[item] for item in shown] == [*range(1, size), 0]


@pytest.mark.parametrize("value", range(-4, 5))
def test_every_choice_is_kept_as_it_was_made(stage: Stage, value: int) -> None:
    here = stage(plain(axes=("helpful", "style")), many(2))
    client = here.client()
    page = client.next()
    for _ in range(2):  # once in each order
        reply = client.submit(page, {"axis:helpful": str(value), "axis:style": str(-value)})
        page = client.get(reply.headers["location"])
    made = list(here.judgments().values())
    assert {judgment.shown_order for judgment in made} == {(0, 1), (1, 0)}
    for judgment in made:
        sign = -1 if judgment.shown_order == (0, 1) else 1
        assert judgment.axes == {"helpful": sign * value, "style": -sign * value}
        assert judgment.strength == (abs(value) or None)


FULL = {
    "axes": ("overall",),
    "rubric": ("cites", "short"),
    "ratings": True,
    "flags": ("both bad", "unsafe"),
    "rationale": "optional",
}


def test_all_else_is_kept_as_it_was_said(stage: Stage) -> None:
    here = stage(plain(**FULL), many(1))
    client = here.client()
    page = client.next()
    said = {
        "axis:overall": "-4",
        "flag": ["both bad", "unsafe"],
        "check:cites:0": "1",
        "check:short:1": "1",
        "rating:0": "7",
        "rating:1": "2",
        "rationale": "\r\n because\r\n of \u202e it",
        "edit": "better <b>",
        "seconds": "12.5",
    }
    assert client.submit(page, said).status_code == 303
    (judgment,) = here.judgments().values()
    left, right = judgment.shown_order
    assert judgment.ranking is not None and judgment.ranking[left] == 0
    assert judgment.flags == ("both bad", "unsafe")
    assert (judgment.checks["cites"][left], judgment.checks["cites"][right]) == (True, False)
    assert (judgment.checks["short"][left], judgment.checks["short"][right]) == (False, True)
    assert (judgment.ratings[left], judgment.ratings[right]) == (7, 2)
    assert judgment.rationale == "\n because\n of \u202e it" and judgment.edit == "better <b>"
    assert judgment.seconds == 12.5


def test_cant_judge_needs_nothing_else(stage: Stage) -> None:
    here = stage(plain(**FULL), many(1))
    client = here.client()
    assert client.submit(client.next(), {"flag": [CANT_JUDGE]}).status_code == 303
    assert [row["status"] for row in here.rows("judgments")] == ["unjudged"]


def test_an_answer_that_lacks_something_comes_back_as_it_was_with_what_to_mend(stage: Stage) -> None:
    here = stage(plain(**{**FULL, "axes": ("helpful", "style"), "rationale": "required"}), many(1))
    client = here.client()
    page = client.next()
    said = {"axis:helpful": "3", "flag": ["unsafe"], "check:cites:1": "1", "rating:1": "5", "edit": "\nmine\n"}
    reply = client.submit(page, said)
    assert reply.status_code == 400 and not here.rows("judgments")
    back = Page.of(reply)
    assert "Choose an answer for 'style'" in back.said and "Rate each answer" in back.said
    assert "this campaign asks for a reason" in back.said and "answer for 'helpful'" not in back.said
    kept = {name: back.form.get(name) for name in said}
    assert kept == said and back.form["nonce"] == page.form["nonce"]
    mended = {"axis:style": "0", "rating:0": "1", "rationale": "so"}
    assert client.submit(back, mended).status_code == 303
    (judgment,) = here.judgments().values()
    assert judgment.edit == "\nmine\n" and set(judgment.axes) == {"helpful", "style"}


def test_a_script_gets_the_same_as_json(stage: Stage) -> None:
    here = stage(plain(), many(2))
    client = here.client()
    page = client.next()
    reply = client.submit(page, headers=JSON)
    assert reply.status_code == 400
    assert reply.json() == {"problems": {"axis overall": "Choose an answer for 'overall', please."}, "confirm": ""}
    reply = client.submit(page, {"axis:overall": "1"}, headers=JSON)
    assert reply.status_code == 200 and client.get(reply.json()["to"]).task != page.task


@pytest.mark.parametrize(
    "changes",
    [
        {"axis:overall": "99"},
        {"axis:overall": "5"},
        {"axis:overall": "x"},
        {"axis:overall": "٣"},
        {"axis:overall": "1", "nonce": "short"},
        {"axis:overall": "1", "nonce": "x" * 65},
        {"axis:overall": "1", "nonce": "nul\0" * 5},
        {"axis:overall": "1", "version": "2"},
        {"axis:overall": "1", "version": None},
        {"axis:overall": "1", "flag": ["mine"]},
        {"axis:overall": "1", "flag": ["unsafe", "unsafe"]},
        {"axis:overall": "1", "rationale": "x" * 100_001},
    ],
)
def test_what_no_page_of_ours_sends_is_refused(stage: Stage, changes: dict[str, Any]) -> None:
    here = stage(plain(), many(1))
    client = here.client()
    assert client.submit(client.next(), changes).status_code == 400
    assert not here.rows("judgments")


@pytest.mark.parametrize("seconds", ["nan", "inf", "-3", "", "1e999", "٣ x"])
def test_seconds_that_are_none_are_left_out_or_cut(stage: Stage, seconds: str) -> None:
    here = stage(plain(), many(1))
    client = here.client()
    assert client.submit(client.next(), {"axis:overall": "1", "seconds": seconds}).status_code == 303
    (judgment,) = here.judgments().values()
    assert judgment.seconds in (None, 0.0)


def test_a_ranking_as_it_was_shown_is_asked_about_once(stage: Stage) -> None:
    here = stage(plain(), many(1, 4))
    client = here.client()
    page = client.next()
    assert "Rank all 4 answers" in Page.of(client.submit(page)).said
    ranks = {f"rank:{place}": str(place) for place in range(4)}
    back = Page.of(client.submit(page, ranks))
    assert back.status == 400 and "the order in which the answers were shown" in back.said
    assert client.submit(back).status_code == 303  # the page itself says that it is meant
    (judgment,) = here.judgments().values()
    assert judgment.ranking is not None
    assert [judgment.ranking[item] for item in judgment.shown_order] == [0, 1, 2, 3]


def test_equal_ranks_are_ties(stage: Stage) -> None:
    here = stage(plain(), many(1, 4))
    client = here.client()
    assert client.submit(client.next(), {"rank:0": "1", "rank:1": "0", "rank:2": "1", "rank:3": "3"}).status_code == 303
    (judgment,) = here.judgments().values()
    assert judgment.ranking is not None
    assert [judgment.ranking[item] for item in judgment.shown_order] == [1, 0, 1, 2]


def test_line_23_the_same_form_sent_again_is_one_label(stage: Stage) -> None:
    here = stage(plain(), many(3))
    client = here.client()
    page = client.next()
    first = client.submit(page, {"axis:overall": "2"})
    again = client.submit(page, {"axis:overall": "2"})
    assert (again.status_code, again.headers["location"]) == (first.status_code, first.headers["location"])
    here.pass_time(86_400)
    assert client.submit(page, {"axis:overall": "2"}).status_code == 303
    assert len(here.rows("judgments")) == 1


def test_line_23_a_second_tab_replaces_an_answer_only_when_told_to(stage: Stage) -> None:
    here = stage(plain(), many(2))
    client = here.client()
    one = client.next()
    two = client.get(f"/t/{one.task}")
    assert one.form["nonce"] != two.form["nonce"]
    client.submit(one, {"axis:overall": "2"})
    back = Page.of(client.submit(two, {"axis:overall": "-3", "rationale": "from the other tab"}))
    assert back.status == 400 and "answered this task already" in back.said
    assert back.form["rationale"] == "from the other tab" and len(here.rows("judgments")) == 1
    assert client.submit(back).status_code == 303
    (judgment,) = here.judgments().values()
    assert (judgment.strength, judgment.rationale) == (3, "from the other tab")
    assert [row["version"] for row in here.rows("judgments")] == [1, 2]


def test_a_finished_task_shows_what_was_said_and_can_be_changed(stage: Stage) -> None:
    here = stage(plain(), many(2))
    client = here.client()
    page = client.next()
    client.submit(page, {"axis:overall": "-2", "rationale": "first"})
    done = client.get(f"/t/{page.task}")
    assert "This is what you said" in done.said and not [n for n in done.form if n.startswith("axis")]
    assert re.search(r'value="-2" data-key="3" checked', done.body)
    change = client.get(f"/t/{page.task}?change")
    assert change.form["axis:overall"] == "-2" and change.form["rationale"] == "first"
    assert client.submit(change, {"axis:overall": "4"}).status_code == 303
    assert [j.strength for j in here.judgments().values()] == [4]


def test_line_25_late_work_is_kept_even_where_another_has_the_place(stage: Stage) -> None:
    here = stage(plain(lease_minutes=5), many(1))
    ada, bob = here.client("ada"), here.client("bob")
    page = ada.next()
    here.pass_time(200)
    assert ada.post(f"/t/{page.task}/renew", {"csrf": ada.csrf()}).json()["seconds"] == pytest.approx(300, abs=1)
    here.pass_time(301)
    theirs = bob.next()
    assert theirs.texts and theirs.task != page.task
    assert ada.post(f"/t/{page.task}/renew", {"csrf": ada.csrf()}).json() == {"seconds": 0.0}
    draft = {**page.form, "axis:overall": "1", "rationale": "still typing"}
    assert ada.post(f"/t/{page.task}/draft", draft).status_code == 204
    assert bob.submit(theirs, {"axis:overall": "-1"}).status_code == 303
    back = ada.get(f"/t/{page.task}")
    assert back.status == 200 and back.form["rationale"] == "still typing"
    reply = ada.submit(back)
    assert reply.status_code == 303 and "nothing" in reply.headers["location"]
    assert [(row["annotator"], row["status"], row["late"]) for row in here.rows("judgments")] == [
        ("bob", "counted", False),
        ("ada", "extra", True),
    ]


def test_line_31_labels_keep_the_version_that_their_page_showed(stage: Stage) -> None:
    here = stage(plain(axes=("overall",), guidelines="Old guidelines."), many(2))
    client = here.client()
    page = client.next()
    here.workspace.campaigns.change(RUN, plain(axes=("honest", "kind"), guidelines="New guidelines."), by="prefloop")
    assert "Old guidelines" in client.get(f"/t/{page.task}").said
    assert client.submit(page, {"axis:overall": "2"}).status_code == 303
    new = client.next()
    assert "New guidelines" in new.said and "version 2" in new.said
    assert client.submit(new, {"axis:honest": "1", "axis:kind": "2"}).status_code == 303
    assert [row["campaign_version"] for row in here.rows("judgments")] == [1, 2]


def test_line_31_a_page_of_an_older_version_is_asked_to_look_again(stage: Stage) -> None:
    """Its lease ended, and the task was handed out again under a newer version."""
    here = stage(plain(axes=("overall",)), many(1))
    client = here.client()
    page = client.next()
    here.pass_time(1000)
    here.workspace.campaigns.change(RUN, plain(axes=("overall", "kind")), by="prefloop")
    assert client.next().task == page.task
    back = Page.of(client.submit(page, {"axis:overall": "2", "rationale": "kept"}))
    assert back.status == 400 and "has changed" in back.said
    assert back.form["rationale"] == "kept" and back.form["version"] == "2"
    assert client.submit(back, {"axis:kind": "-1"}).status_code == 303
    (row,) = here.rows("judgments")
    assert row["campaign_version"] == 2 and row["content"]["rationale"] == "kept"


def test_line_32_undo_opens_the_last_tasks_again_with_what_was_said(stage: Stage) -> None:
    here = stage(plain(), many(3))
    client = here.client()
    pages = []
    page = client.next()
    for strength in ("1", "-2", "3"):
        pages.append(page.task)
        page = client.get(client.submit(page, {"axis:overall": strength}).headers["location"])
    assert here.rows("comparisons")[0]["counted"] == 1  # an item that has all its labels
    for task, said in zip(reversed(pages), ("3", "-2", "1"), strict=True):
        reply = client.post(f"{here.home}/undo", {"csrf": client.csrf()})
        assert reply.headers["location"] == f"/t/{task}"
        assert client.get(f"/t/{task}").form["axis:overall"] == said
    assert not here.judgments()
    reply = client.post(f"{here.home}/undo", {"csrf": client.csrf()})
    assert "no answer to take back" in client.get(reply.headers["location"]).said
    again = client.get(f"/t/{pages[0]}")
    assert client.submit(again, {"axis:overall": "4"}).status_code == 303
    assert [judgment.strength for judgment in here.judgments().values()] == [4]


def gold(*ranking: int, note: str = "") -> dict[str, Any]:
    return {"ranking": list(ranking), "note": note}


def practice(stage: Stage, *made: Any, **changes: Any) -> Served:
    """Gold items in the practice round, then plain ones."""
    items = [Item(comparison_id=c.id, gold=g) for c, g in made] + [Item(comparison_id=c.id) for c in many(3)]
    config = plain(**{"calibration": len(made), "feedback": True, **changes})
    return stage(config, [*(c for c, _ in made), *many(3)], items)


def test_the_practice_round_shows_the_known_answer_afterwards(stage: Stage) -> None:
    made = comparison("g", "wrong", "right"), gold(1, 0, note="It is **right**.")
    here = practice(stage, made)
    client = here.client()
    page = client.next()
    wrong = "-2" if here.task(page.address)["shown"][0] == 0 else "2"
    to = client.submit(page, {"axis:overall": wrong}).headers["location"]
    assert to == f"/t/{page.task}/known"
    known = client.get(to)
    better = "Left" if here.task(page.address)["shown"][0] == 1 else "Right"
    assert f"{better} is better." in known.said and "You said otherwise." in known.said
    assert "<strong>right</strong>" in known.body and "Continue" in known.said
    assert "agreed with the known answers in 0 of 1" in client.get(here.home).said
    other = client.next()
    assert client.get(f"/t/{other.task}/known").status == 404  # not of the practice round
    assert client.submit(other, {"axis:overall": "1"}).headers["location"] != f"/t/{other.task}/known"


def test_the_practice_round_ranks_too(stage: Stage) -> None:
    here = practice(stage, (comparison("g", "best", "middle", "also", "worst"), gold(0, 1, 1, 2)))
    client = here.client()
    page = client.next()
    shown = here.task(page.address)["shown"]
    said = [1, 0, 2, 3]  # best and middle swapped, middle before also
    reply = client.submit(page, {f"rank:{place}": str(said[item]) for place, item in enumerate(shown)})
    known = client.get(reply.headers["location"])
    names = {item: f"Answer {'ABCD'[place]}" for place, item in enumerate(shown)}
    tied = sorted([names[1], names[2]])
    assert f"{names[0]} > {tied[0]} = {tied[1]} > {names[3]}" in known.said
    assert "You ordered 4 of 6 pairs the same." in known.said


@pytest.mark.parametrize("changes", [{"feedback": False}, {"calibration": 0, "gold_share": 0.5}])
def test_line_15_no_known_answer_is_shown_otherwise(stage: Stage, changes: dict[str, Any]) -> None:
    here = practice(stage, (comparison("g", "wrong", "right"), gold(1, 0, note="secret note")), **changes)
    client = here.client()
    page, said = client.next(), client.get(here.home).said
    while page.texts:
        to = client.submit(page, {"axis:overall": "1"}).headers["location"]
        assert not to.endswith("/known") and client.get(f"/t/{page.task}/known").status == 404
        page = client.get(to)
        said += page.said
    assert any(row["kind"] == "gold" for row in here.rows("tasks"))
    assert "secret note" not in said and "known answer" not in said + client.get(here.home).said


def walk(here: Served, client: Client) -> Iterator[Any]:
    """Every response of a labeler who goes through all tasks and does all that can be done, well and badly, with two of
    each kind."""

    def get(address: str) -> Page:
        seen.append(reply := client.http.get(address))
        return Page.of(reply)

    def post(address: str, fields: dict[str, Any]) -> Any:
        seen.append(reply := client.post(address, fields))
        return reply

    def onward() -> str:
        return str(post(f"{here.home}/next", {"csrf": csrf}).headers["location"])

    seen: list[Any] = []
    csrf, kinds = client.csrf(), Counter[str]()
    for address in ("/", here.home, "/t/none", "/c/none", f"/c/{RUN}"):
        get(address)
    to = onward()
    while to.startswith("/t/"):
        page = get(to)
        pair = len(page.texts) == 2
        said = {"axis:overall": "1"} if pair else {f"rank:{p}": str(len(page.texts) - 1 - p) for p in range(9)}
        kind = here.task(to)["kind"]
        kinds[kind] += 1
        curious = kinds[kind] <= 2
        if curious:
            post(f"/t/{page.task}/draft", {**page.form, "rationale": "why"})
            post(f"/t/{page.task}/renew", {"csrf": csrf})
            seen.append(client.submit(page, headers=JSON))
            seen.append(client.submit(page))
            seen.append(client.submit(page, said, headers=JSON))
            post(f"{here.home}/undo", {"csrf": csrf})
            page = get(f"/t/{page.task}")
        seen.append(reply := client.submit(page, said))
        to = reply.headers["location"]
        if curious:
            get(f"/t/{page.task}"), get(f"/t/{page.task}?change"), get(f"/t/{page.task}/known")
        if to.endswith("/known"):
            to = onward()
    get(to)
    yield from seen


TOKEN = re.compile(r"(?<![\w-])(?:nonce-)?(?:[\w-]{22}|[\w-]{43})(?![\w-])")
"""Chance may spell a short word in one."""


def test_line_7_and_15_nothing_of_models_ids_or_kinds_reaches_a_labeler(stage: Stage) -> None:
    size_two = [comparison("g", "first answer", "other answer"), *many(14)]
    three = [comparison("k", "one", "two", "three")]
    known = {"cmp-g": gold(0, 1, note="see")}
    items = [Item(comparison_id=c.id, gold=known.get(c.id), mix="mixname") for c in size_two + three]
    config = plain(
        calibration=3, gold_share=0.1, repeat_share=0.5, shared_share=0.5, overlap=2, feedback=True, ratings=False
    )
    here = stage(config, size_two + three, items)
    bob = here.client("bob")
    for _ in range(6):
        page = bob.next()
        said = {"axis:overall": "1"} if len(page.texts) == 2 else {f"rank:{p}": str(2 - p) for p in range(3)}
        assert bob.submit(page, {**said, "rationale": "zebra, says bob"}).status_code == 303
    replies = list(walk(here, here.client("ada")))
    assert {row["kind"] for row in here.rows("tasks") if row["annotator"] == "ada"} == {
        "item",
        "gold",
        "shared",
        "repeat",
    }
    hidden = [*PLANTED, "bob", "eve"]
    kinds = re.compile(r"\b(gold|repeat|shared|uniform|calibration|priority|slice|seed|checkpoint)\b", re.I)
    assert len(replies) > 100
    for reply in replies:
        sent = reply.text + "".join(f"{name}: {value}\n" for name, value in reply.headers.items())
        sent = TOKEN.sub("", sent)
        assert not [word for word in hidden if word in sent], reply.url
        assert not kinds.search(sent), reply.url
        assert not [name for name in reply.headers if name in ("etag", "server", "last-modified")]


def test_line_14_anothers_task_is_not_there(stage: Stage) -> None:
    here = stage(plain(), many(2))
    ada, bob = here.client("ada"), here.client("bob")
    page = ada.next()
    for address in (f"/t/{page.task}", f"/t/{page.task}?change", f"/t/{page.task}/known"):
        assert bob.get(address).status == 404
    fields = {**page.form, "csrf": bob.csrf(), "axis:overall": "1"}
    for verb in ("submit", "draft", "renew"):
        assert bob.post(f"/t/{page.task}/{verb}", fields).status_code == 404
    assert not here.rows("judgments") and here.task(page.address)["draft"] is None


def test_line_10_reading_changes_nothing(stage: Stage) -> None:
    here = stage(plain(), many(2))
    client = here.client()
    page = client.next()
    names = ("tasks", "judgments", "comparisons", "events")
    before = {name: here.rows(name) for name in names}
    for address in (here.home, f"{here.home}?nothing", f"/t/{page.task}", f"/t/{page.task}?change"):
        client.get(address)
    for verb in ("next", "undo"):
        assert client.get(f"{here.home}/{verb}").status in (404, 405)
    assert {name: here.rows(name) for name in names} == before


def test_a_paused_or_closed_campaign_says_so_and_keeps_late_answers(stage: Stage) -> None:
    here = stage(plain(), many(3))
    client = here.client()
    page = client.next()
    for state, says in (("paused", "This campaign is paused."), ("closed", "This campaign is closed.")):
        here.workspace.campaigns.set_state(RUN, state, by="prefloop")
        reply = client.post(f"{here.home}/next", {"csrf": client.csrf()})
        assert says in client.get(reply.headers["location"]).said
        assert "Start" not in client.get(here.home).said
    reply = client.submit(page, {"axis:overall": "1"})
    assert reply.status_code == 303 and reply.headers["location"].startswith(here.home)
    assert len(here.judgments()) == 1


def test_what_is_left_for_nobody_says_so(stage: Stage) -> None:
    here = stage(plain(), many(1))
    client = here.client()
    reply = client.submit(client.next(), {"axis:overall": "1"})
    assert "Nothing is left for you" in client.get(reply.headers["location"]).said


def test_a_late_draft_is_harmless(stage: Stage) -> None:
    here = stage(plain(), many(2))
    client = here.client()
    page = client.next()
    client.submit(page, {"axis:overall": "1"})
    assert client.post(f"/t/{page.task}/draft", {**page.form, "axis:overall": "-4"}).status_code == 204
    assert here.task(page.address)["draft"] is None
    assert [judgment.strength for judgment in here.judgments().values()] == [1]


def test_line_30_a_form_from_before_a_new_session_is_refused_and_nothing_is_lost(stage: Stage) -> None:
    here = stage(plain(), many(1))
    client = here.client()
    page = client.next()
    client.post(f"/t/{page.task}/draft", {**page.form, "rationale": "half an answ"})
    cookie = next(name for name in client.http.cookies if name.endswith("session"))
    here.workspace.sessions.end_all("ada", by="prefloop")
    assert client.submit(page, {"axis:overall": "1"}, headers=JSON).status_code in (401, 403)
    client.http.cookies.set(cookie, here.workspace.sessions.begin("ada"), domain="127.0.0.1", path="/")
    assert client.submit(page, {"axis:overall": "1"}, headers=JSON).status_code == 403
    back = client.get(f"/t/{page.task}")
    assert back.form["rationale"] == "half an answ"
    assert client.submit(page, {"axis:overall": "1", "csrf": back.form["csrf"]}, headers=JSON).status_code == 200
    assert len(here.judgments()) == 1


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), max_size=40)
TEXTS = TEXTS.map(lambda text: text if text.strip() else "")
AXES, FLAGS, BOXES = ("a b", '"<x>&'), ("both bad", "it's <odd>"), ("cites", "is: odd")


@st.composite
def partial(draw: st.DrawFn, size: int) -> Answer:
    """An answer with gaps: a draft."""
    flags = draw(st.sets(st.sampled_from([*FLAGS, CANT_JUDGE])))
    ratings = draw(st.lists(st.integers(0, 7), min_size=size, max_size=size))
    ranks = draw(st.lists(st.integers(-1, size - 1), min_size=size, max_size=size))
    return Answer(
        axes=draw(st.dictionaries(st.sampled_from(AXES), st.integers(-4, 4))) if size == 2 else {},
        ranks=ranks if size > 2 and max(ranks) >= 0 else [],
        flags=[flag for flag in (*FLAGS, CANT_JUDGE) if flag in flags],
        ratings=ratings if any(ratings) else [],
        checks={name: draw(st.lists(st.booleans(), min_size=size, max_size=size)) for name in BOXES},
        edit=draw(TEXTS),
        rationale=draw(TEXTS),
        seconds=draw(st.integers(0, 10_000)) / 10,
    )


@pytest.mark.parametrize("size", [2, 4])
def test_a_form_sent_as_it_stands_says_what_the_draft_said(stage: Stage, size: int) -> None:
    here = stage(plain(axes=AXES, flags=FLAGS, rubric=BOXES, ratings=True), many(1, size))
    client = here.client()
    task = client.next().task

    @given(partial(size))
    @settings(max_examples=15)
    def check(said: Answer) -> None:
        here.workspace.desk.save_draft(task, "ada", to_json(said))
        page = client.get(f"/t/{task}")
        assert client.post(f"/t/{task}/draft", page.form).status_code == 204
        assert answerform.written(here.task(page.address)["draft"]) == said

    check()


def test_answers_that_are_ranked_come_first_and_the_rest_as_shown() -> None:
    assert answerform.order(Answer(ranks=[2, -1, 0, 2]), 4) == [2, 0, 3, 1]
    assert answerform.order(Answer(), 3) == [0, 1, 2]


def test_each_flag_has_a_key_of_its_own() -> None:
    keys = answerform.flag_keys(["unsafe", "user error", "eerie", "日本", "both bad", "bbb", "duke", "???"])
    assert keys == {
        "unsafe": "n",
        "user error": "s",
        "eerie": "i",
        "日本": "a",
        "both bad": "b",
        "bbb": "c",
        "duke": "f",
        "???": "h",
        CANT_JUDGE: "0",
    }
