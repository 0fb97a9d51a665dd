from __future__ import annotations

import re
import threading
from collections.abc import Callable

import pytest

from prefloop.store.answers import Answer
from prefloop.store.campaigns import Campaign, Item
from prefloop.store.figures import Figures
from prefloop.types import Judgment
from prefloop.web import live
from prefloop.web.pages.labelers import weight
from prefloop.web.workspace import Workspace
from tests.patience import until
from tests.web.campaigns import campaign, label, rows, send
from tests.web.page import Page
from tests.web.serving import Visitor

Client = Callable[..., Visitor]
NONCE = "n" * 22
JSON = {"accept": "application/json"}


def figures(visitor: Visitor, made: Campaign, after: int = 0) -> int:
    """Wait for figures newer than label number `after`; theirs."""
    known: list[int] = []

    def come() -> bool:
        number = visitor.get(f"/c/{made.id}/figures", headers=JSON).json()["number"]
        known[:] = [] if number is None else [number]
        return bool(known) and known[0] > after

    until(come)
    return known[0]


def answers(workspace: Workspace, made: Campaign, name: str, chosen: dict[str, int]) -> None:
    """What somebody says of each item: above 0 for item 0."""
    while task := workspace.desk.next_task(workspace.campaigns.by_run(made.run), name):
        value = chosen[task.comparison.id]
        axes = {"overall": -value if task.shown == (0, 1) else value}
        workspace.answers.submit(task.id, name, Answer(axes=axes), nonce=f"{name}{task.id}")


@pytest.fixture
def disputed(workspace: Workspace) -> Campaign:
    """Ann and Bob, of two groups, agree on three items of four."""
    for name, group in (("ann", "nurses"), ("bob", "teachers")):
        workspace.accounts.create(name, "labeler", group, by="prefloop")
    made = campaign(workspace, names=["a", "b", "c", "d"], overlap=2)
    answers(workspace, made, "ann", {"a": 3, "b": 3, "c": -1, "d": 2})
    answers(workspace, made, "bob", {"a": 1, "b": 2, "c": -4, "d": -2})
    return made


def test_an_empty_campaign_has_a_page(workspace: Workspace, client: Client) -> None:
    made, reviewer = campaign(workspace, names=["a"]), client("reviewer")
    assert figures(reviewer, made, after=-1) == 0
    page = reviewer.get(f"/c/{made.id}/manage").text
    assert "There are no labels yet." in page and "of 1 wanted" in page and "no pace yet" in page


def test_agreement_is_shown_as_computed(workspace: Workspace, client: Client, disputed: Campaign) -> None:
    reviewer = client("reviewer")
    assert figures(reviewer, disputed) == rows(workspace, "judgments")[-1]["number"] == 8
    page = reviewer.get(f"/c/{disputed.id}/manage").text
    found = Figures(workspace.store.engine, disputed.run).refresh()
    overall = found.axes["overall"]
    assert overall.percent.value == 0.75  # by hand: 3 of 4 items
    row = re.findall(r'<th scope="row"><bdi>overall</bdi></th>(.*?)</tr>', page, re.DOTALL)[0]
    said = re.sub(r"<[^>]+>|\s+", " ", row).split()
    numbers = [word for word in said if re.fullmatch(r"-?[0-9.]+", word)]
    assert numbers[0] == "75" and f"{overall.alpha.value:.2f}" in numbers and f"{overall.ordinal.value:.2f}" in numbers
    assert f"{100 * overall.percent.low:.0f}" in numbers and numbers[-1] == "4"
    assert "As of label #8" in page and "8 of 8" not in page and "of 8 wanted" in page
    assert "nurses" in page and "teachers" in page and "Cohen" in page


def test_late_extra_skipped_and_withdrawn_labels_are_counted_apart(workspace: Workspace, client: Client) -> None:
    for name in ("ann", "bob", "cy"):
        workspace.accounts.create(name, "labeler", by="prefloop")
    made = campaign(workspace, names=["a"])
    first = workspace.desk.next_task(made, "ann")
    assert first is not None
    workspace.clock._start += 3600  # type: ignore[attr-defined]
    label(workspace, made, "bob")  # took the place
    workspace.answers.submit(first.id, "ann", Answer(axes={"overall": 1}), nonce="a")  # late, and extra
    workspace.answers.review(made, "a", "cy", Answer(flags=["can't judge"]), nonce="c")
    workspace.answers.withdraw(made, "bob")
    reviewer = client("reviewer")
    figures(reviewer, made)
    page = reviewer.get(f"/c/{made.id}/manage").text
    facts = dict(re.findall(r"<dt>([^<]+)</dt><dd>([^<]+)</dd>", page))
    assert facts == {
        "extra": "1",
        "late": "1",
        "can't judge": "1",
        "taken back": "1",
        "known answers": "0",
        "shown again": "0",
    }


def test_newer_figures_come_by_themselves(
    workspace: Workspace, client: Client, disputed: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_SOONEST", 0.0)
    monkeypatch.setattr(live, "_SHARE", 1.0)
    reviewer = client("reviewer")
    before = figures(reviewer, disputed)
    workspace.answers.review(disputed, "d", "ann", Answer(axes={"overall": -1}), nonce="again")
    assert figures(reviewer, disputed, after=before) == before + 1


def test_a_page_does_not_wait_for_figures(
    workspace: Workspace, client: Client, disputed: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    refresh = Figures.refresh

    def slow(self: Figures) -> object:
        go.wait(240)
        return refresh(self)

    monkeypatch.setattr(Figures, "refresh", slow)
    reviewer = client("reviewer")
    page = reviewer.get(f"/c/{disputed.id}/manage").text
    assert "Being computed for the first time" in page and "of 8 wanted" in page
    go.set()
    figures(reviewer, disputed)


def test_figures_that_fail_leave_the_page_whole(
    workspace: Workspace, client: Client, disputed: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Figures) -> object:
        raise ZeroDivisionError

    monkeypatch.setattr(Figures, "refresh", broken)
    page = client("reviewer").get(f"/c/{disputed.id}/manage")
    assert page.status_code == 200 and "of 8 wanted" in page.text


def test_states(workspace: Workspace, client: Client) -> None:
    made, reviewer = campaign(workspace), client("reviewer")
    for state in ("paused", "closed", "open"):
        send(reviewer, f"/c/{made.id}/state", {"state": state})
        assert workspace.campaigns.by_run(made.run).state == state
    assert send(reviewer, f"/c/{made.id}/state", {"state": "gone"}).status_code == 400
    assert workspace.campaigns.by_run(made.run).state == "open"


def test_a_labelers_page(workspace: Workspace, client: Client, disputed: Campaign) -> None:
    reviewer = client("reviewer")
    figures(reviewer, disputed)
    page = reviewer.get(f"/c/{disputed.id}/labelers/ann").text
    words = re.sub(r"<[^>]+>|\s+", " ", page)
    words = re.sub(" +", " ", words)
    assert "nurses" in words and "Labels 4" in words and "Agreement with others 75 %" in words
    assert "Ties 0 %" in words and "no item came back" in words and "As of label #8" in words
    left = sum(row["content"]["shown_order"][0] == (row["choice"] < 0) for row in rows(workspace, "judgments")[:4])
    assert f"Left side {100 * left / 4:.0f} %" in words
    assert "No label is left out" in words and "nats" in words


def test_weights_are_log_odds() -> None:
    assert weight(0.5) == 0 and weight(None) is None and weight(1.0) is None
    assert weight(0.75) == pytest.approx(1.0986, abs=1e-4)


def test_labelers_without_an_account_have_a_page(workspace: Workspace, client: Client) -> None:
    odd = "../<b>eve</b>/x?y#z"
    made = campaign(workspace, names=["a"])
    judgment = Judgment(comparison_id="a", annotator=odd, ranking=(0, 1), shown_order=(0, 1))
    workspace.store.add_judgments(made.run, [judgment], simulated=False)
    reviewer = client("reviewer")
    figures(reviewer, made)
    page = reviewer.get(f"/c/{made.id}/manage").text
    address = re.findall(r'href="(/c/[^"]+/labelers/[^"]+)"', page)[0]
    reply = reviewer.get(address)
    assert reply.status_code == 200 and "<b>eve" not in reply.text and "has no account here" in reply.text
    assert send(reviewer, address, {"do": "pause"}).status_code == 404
    assert reviewer.get(f"/c/{made.id}/labelers/nobody").status_code == 404


def test_pausing_a_labeler(workspace: Workspace, client: Client, disputed: Campaign) -> None:
    reviewer, _ = client("reviewer"), client("admin")
    address = f"/c/{disputed.id}/labelers/ann"
    assert send(reviewer, address, {"do": "pause"}).status_code == 303
    account = workspace.accounts.find("ann")
    assert account is not None and account.paused
    assert "paused" in reviewer.get(address).text and "Hand out tasks again" in reviewer.get(address).text
    send(reviewer, address, {"do": "resume"})
    account = workspace.accounts.find("ann")
    assert account is not None and not account.paused


def test_line_14_reviewers_cannot_pause_those_above_them(
    workspace: Workspace, client: Client, disputed: Campaign
) -> None:
    reviewer, admin = client("reviewer"), client("admin", name="boss")
    reply = send(reviewer, f"/c/{disputed.id}/labelers/boss", {"do": "pause"})
    account = workspace.accounts.find("boss")
    assert reply.status_code == 400 and account is not None and not account.paused
    assert send(admin, f"/c/{disputed.id}/labelers/{reviewer.name}", {"do": "pause"}).status_code == 303


def test_the_review_queue_from_first_to_last(workspace: Workspace, client: Client) -> None:
    for name in ("ann", "bob", "cy"):
        workspace.accounts.create(name, "labeler", by="prefloop")
    disputed = campaign(workspace, names=["a", "b", "c", "d"], overlap=2)
    answers(workspace, disputed, "ann", {"a": 3, "b": 3, "c": -1, "d": 2})
    answers(workspace, disputed, "bob", {"a": 1, "b": -2, "c": -4, "d": -2})
    workspace.answers.review(disputed, "b", "cy", Answer(axes={"overall": 1}), nonce="cy")
    reviewer = client("reviewer")
    figures(reviewer, disputed)
    page = reviewer.get(f"/c/{disputed.id}/review").text
    ids = workspace.overview.items_by_id(disputed.run, ["a", "b", "c", "d"])
    waiting = [int(n) for n in re.findall(r'items/(\d+)\?queue=1">\d', page)]
    assert waiting == [ids["d"].number]  # b is disputed too, but was reviewed
    assert f'items/{ids["b"].number}">' in page
    reply = send(
        reviewer,
        f"/c/{disputed.id}/items/{ids['d'].number}/judge",
        {"nonce": NONCE, "axis:overall": "-2", "rationale": "The first is right.", "queue": "1"},
    )
    assert reply.headers["location"] == f"/c/{disputed.id}/review"
    assert "Nothing waits." in reviewer.get(reply.headers["location"]).text
    last = rows(workspace, "judgments")[-1]
    assert (last["annotator"], last["choice"], last["status"]) == (reviewer.name, 2, "extra")
    log = [event for event in rows(workspace, "events") if event["kind"] == "review"]
    assert [event["actor"] for event in log] == ["cy", reviewer.name]
    workspace.store.verify()


def test_the_queue_goes_on_to_the_next(workspace: Workspace, client: Client) -> None:
    for name in ("ann", "bob"):
        workspace.accounts.create(name, "labeler", by="prefloop")
    made = campaign(workspace, names=["a", "b"], overlap=2)
    answers(workspace, made, "ann", {"a": 1, "b": 1})
    answers(workspace, made, "bob", {"a": -1, "b": -1})
    reviewer = client("reviewer")
    figures(reviewer, made)
    fields = {"nonce": NONCE, "axis:overall": "-2", "queue": "1"}
    reply = send(reviewer, f"/c/{made.id}/items/1/judge", fields)
    assert reply.headers["location"] == f"/c/{made.id}/items/2?queue=1"


def test_line_14_labelers_see_no_figures(workspace: Workspace, client: Client, disputed: Campaign) -> None:
    labeler = client("labeler", name="ann")
    for place in ("manage", "figures", "review", "versions", "labelers/ann", "labelers/bob"):
        reply = labeler.get(f"/c/{disputed.id}/{place}")
        assert reply.status_code == 404 and "75" not in Page(reply.text).text()
    assert send(labeler, f"/c/{disputed.id}/state", {"state": "closed"}).status_code == 404
    assert send(labeler, f"/c/{disputed.id}/labelers/bob", {"do": "pause"}).status_code == 404
    assert workspace.campaigns.by_run(disputed.run).state == "open"


def test_line_10_looking_changes_nothing(workspace: Workspace, client: Client, disputed: Campaign) -> None:
    reviewer = client("admin")
    figures(reviewer, disputed)
    tables = ("campaigns", "campaign_versions", "comparisons", "judgments", "tasks", "events", "accounts", "desks")
    before = {name: rows(workspace, name) for name in tables}
    places = ["manage", "items", "items/1", "review", "versions", "transfer", "edit", "labelers/ann", "figures"]
    for address in ("/", "/new", *(f"/c/{disputed.id}/{place}" for place in places)):
        assert reviewer.get(address).status_code == 200
    for address in ("/example", "/import", *(f"/c/{disputed.id}/{place}" for place in ("state", "export"))):
        assert reviewer.get(address).status_code in (404, 405)
    assert {name: rows(workspace, name) for name in tables} == before
    assert sorted(path.name for path in workspace.folder.iterdir() if path.is_dir()) == []


def test_gold_and_side_figures_are_by_hand(workspace: Workspace, client: Client) -> None:
    """Of two known answers one is met: 50 %."""
    workspace.accounts.create("ann", "labeler", by="prefloop")
    gold = {"ranking": [0, 1], "note": "known"}
    items = [Item(comparison_id=name, gold=gold) for name in ("a", "b")]
    made = campaign(workspace, names=["a", "b"], items=items, calibration=2, feedback=False)
    answers(workspace, made, "ann", {"a": 2, "b": -2})
    reviewer = client("reviewer")
    figures(reviewer, made)
    page = re.sub(" +", " ", re.sub(r"<[^>]+>|\s+", " ", reviewer.get(f"/c/{made.id}/labelers/ann").text))
    assert "Known answers met 50 %" in page and "of 2 items with one" in page
