from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from prefloop.store.answers import Answer
from prefloop.store.campaigns import Campaign, Item
from prefloop.store.overview import PAGE
from prefloop.types import CANT_JUDGE, Judgment
from prefloop.web.pages.items import verdict
from prefloop.web.workspace import Workspace, open_workspace
from tests.web.campaigns import campaign, label, rows, send
from tests.web.serving import Visitor, running

Client = Callable[..., Visitor]
NONCE = "n" * 22
EMPTY = {"axes": {}, "flags": [], "ranking": None, "probability": None, "strength": None}


def listed(page: str) -> list[str]:
    """The numbers of the items in a list."""
    return re.findall(r'/items/(\d+)">\d+</a>', page)


def number(workspace: Workspace, made: Campaign, id_: str) -> int:
    return workspace.overview.items_by_id(made.run, [id_])[id_].number


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"axes": {"overall": 3, "truth": -1}}, [("overall", "answer 1, clearly"), ("truth", "answer 2, barely")]),
        ({"axes": {"overall": 0}}, [("overall", "a tie")]),
        ({"flags": [CANT_JUDGE], "axes": {"overall": 3}}, [("", CANT_JUDGE)]),
        ({"ranking": [1, 0]}, [("", "answer 2")]),
        ({"ranking": [0, 1], "strength": 4}, [("", "answer 1, much")]),
        ({"ranking": [0, 0]}, [("", "a tie")]),
        ({"ranking": [1, 0, 1, 2]}, [("", "2 > 1 = 3 > 4")]),
        ({"probability": 0.75}, [("", "answer 1 is better with 75%")]),
    ],
)
def test_what_a_judgment_says(content: dict[str, object], said: list[tuple[str, str]]) -> None:
    assert verdict({**EMPTY, **content}) == said


def test_who_is_no_person_is_named_for_what_it_is(workspace: Workspace, client: Client) -> None:
    made = campaign(workspace, names=["a"])
    votes = [
        Judgment(comparison_id="a", annotator="simulated-1", ranking=(0, 1)),
        Judgment(comparison_id="a", annotator="judge-1", probability=0.75),
    ]
    workspace.store.add_judgments(made.run, votes, simulated=True)
    page = client("reviewer").get(f"/c/{made.id}/items/{number(workspace, made, 'a')}").text
    for name, kind in (("simulated-1", "simulated"), ("judge-1", "model")):
        assert f'<bdi>{name}</bdi> <span class="hint">{kind}</span>' in page


def test_the_list_goes_on_page_by_page(workspace: Workspace, client: Client) -> None:
    made = campaign(workspace, names=[f"i{n:03d}" for n in range(2 * PAGE + 5)])
    reviewer, address, seen = client("reviewer"), f"/c/{made.id}/items", []
    while address:
        page = reviewer.get(address).text
        seen += listed(page)
        following = re.search(r'href="([^"]+)">Next', page)
        address = following[1].replace("&amp;", "&") if following else ""
    assert len(seen) == len(set(seen)) == 2 * PAGE + 5


def test_filters(workspace: Workspace, client: Client) -> None:
    items = [Item(comparison_id=name, mix=mix) for name, mix in (("a", "easy"), ("b", "hard"), ("c", "hard"))]
    made = campaign(workspace, items=items)
    workspace.campaigns.hold(made.run, "c", "identical", by="prefloop")
    reviewer = client("reviewer")
    home = f"/c/{made.id}/items"
    held = str(number(workspace, made, "c"))
    assert listed(reviewer.get(f"{home}?state=held").text) == [held]
    assert len(listed(reviewer.get(f"{home}?mix=hard").text)) == 2
    assert listed(reviewer.get(f"{home}?mix=hard&state=waiting").text) == [str(number(workspace, made, "b"))]
    assert "No item fits" in reviewer.get(f"{home}?slice=nothing").text


@pytest.mark.parametrize(
    "query",
    [
        "state=waiting'--",
        "state=__class__",
        "slice=' OR '1'='1",
        "slice=%25",
        "mix=_",
        "after=1 OR 1=1",
        "after=99999999999999999999",
        "after=-1",
        "after=²",
        "order=password",
        "filter[account__password]=x",
        "slice=a%00b",
        "slice=%ed%a0%80",
        "slice=" + "x" * 3000,
        "state=held&state=gold",
        "after=1e3",
        "slice=$.prompt",
        'mix={"$ne": 1}',
    ],
)
def test_line_18_what_is_asked_for_is_only_ever_a_value(workspace: Workspace, client: Client, query: str) -> None:
    made = campaign(workspace)
    before = rows(workspace, "comparisons")
    reply = client("reviewer").get(f"/c/{made.id}/items?{query}")
    assert (
        reply.status_code == (404 if "%00" in query else 200)
        and "sqlite" not in reply.text.lower()
        and len(listed(reply.text)) in (0, 3)
    )
    if query.startswith(("slice", "mix")):
        assert listed(reply.text) == []
    assert rows(workspace, "comparisons") == before


@pytest.mark.parametrize("place", ["0", "99", "abc", "1'--", "²", "9" * 30, "1%2e0", "-1", "1%00"])
def test_line_18_no_item_elsewhere(workspace: Workspace, client: Client, place: str) -> None:
    made = campaign(workspace)
    campaign(workspace, "other", ["z"])
    reviewer = client("reviewer")
    assert reviewer.get(f"/c/{made.id}/items/{place}").status_code == 404
    assert reviewer.get(f"/c/{made.id}/items/4").status_code == 404  # the other campaign's
    for what in ("hold", "priority", "judge"):
        assert send(reviewer, f"/c/{made.id}/items/4/{what}", {"nonce": NONCE}).status_code == 404


@pytest.mark.parametrize("id_", ["nothing", "' OR ''='", "..", "%2e%2e", "%", "a%00b"])
def test_line_18_no_campaign_but_by_its_id(workspace: Workspace, client: Client, id_: str) -> None:
    campaign(workspace)
    reviewer = client("reviewer")
    for page in ("manage", "items", "review", "versions", "transfer", "edit"):
        assert reviewer.get(f"/c/{id_}/{page}").status_code == 404


def test_an_item_shows_every_label_and_no_model(workspace: Workspace, client: Client) -> None:
    made = campaign(workspace, names=["a"], overlap=3)
    for name in ("ann", "bob", "cy"):
        workspace.accounts.create(name, "labeler", by="prefloop")
    label(workspace, made, "ann", -3)
    label(workspace, made, "bob", 0)
    workspace.answers.withdraw(workspace.campaigns.by_run(made.run), "bob")
    task = workspace.desk.next_task(workspace.campaigns.by_run(made.run), "cy")
    assert task is not None
    workspace.clock._start += 3600  # type: ignore[attr-defined]
    late = Answer(axes={"overall": 2}, rationale="<b>because</b>", edit="Better.", flags=["unsafe"])
    workspace.answers.submit(task.id, "cy", late, nonce="cy")
    page = client("reviewer").get(f"/c/{made.id}/items/{number(workspace, made, 'a')}").text
    assert "Question a?" in page and "Answer 0 to a." in page and "secret-model" not in page
    assert page.count("clearly") >= 1 and "&lt;b&gt;because&lt;/b&gt;" in page and "Better." in page
    assert '<span class="tag bad">withdrawn</span>' in page and '<span class="tag warn">late</span>' in page
    assert '<span class="tag">replaced</span>' in page and '<span class="tag warn"><bdi>unsafe</bdi></span>' in page


def test_a_gold_item_shows_its_answer_to_reviewers(workspace: Workspace, client: Client) -> None:
    gold = {"ranking": [1, 0], "note": "The second is right."}
    made = campaign(workspace, names=["a"], items=[Item(comparison_id="a", gold=gold)])
    page = client("reviewer").get(f"/c/{made.id}/items/1").text
    assert "known rank 2" in page and "The second is right." in page and "Save my label" not in page


def test_a_reviewers_label_is_what_they_chose(workspace: Workspace, client: Client) -> None:
    made = campaign(workspace, names=["a"], axes=("overall", "truth"), ratings=True, rubric=("cites",))
    reviewer = client("reviewer")
    fields = {
        "nonce": NONCE,
        "axis:overall": "-3",
        "axis:truth": "1",
        "rating:0": "6",
        "rating:1": "2",
        "check:cites:0": "on",
        "flag": "unsafe",
        "rationale": "Says why.",
    }
    reply = send(reviewer, f"/c/{made.id}/items/1/judge", fields)
    assert reply.status_code == 303 and reply.headers["location"] == f"/c/{made.id}/items/1"
    (row,) = rows(workspace, "judgments")
    content = row["content"]
    assert (row["annotator"], row["status"], row["choice"]) == (reviewer.name, "counted", 3)
    assert content["axes"] == {"overall": 3, "truth": -1} and content["ratings"] == [6, 2]
    assert content["checks"] == {"cites": [True, False]} and content["flags"] == ["unsafe"]
    assert content["rationale"] == "Says why."
    send(reviewer, f"/c/{made.id}/items/1/judge", fields)  # a double click
    assert len(rows(workspace, "judgments")) == 1
    assert rows(workspace, "events")[-1]["kind"] == "review"


def test_a_ranking_by_a_reviewer(workspace: Workspace, client: Client) -> None:
    made = campaign(workspace, names=["a"], size=4)
    ranks = {f"rank:{item}": str(rank) for item, rank in enumerate([2, 0, 1, 0])}
    send(client("reviewer"), f"/c/{made.id}/items/1/judge", {"nonce": NONCE, **ranks})
    assert rows(workspace, "judgments")[0]["content"]["ranking"] == [2, 0, 1, 0]


def test_what_a_label_lacks_is_said_and_the_rest_stays(workspace: Workspace, client: Client) -> None:
    made = campaign(workspace, names=["a"], axes=("overall", "truth"))
    fields = {"nonce": NONCE, "axis:truth": "1", "rationale": "My <reason>."}
    reply = send(client("reviewer"), f"/c/{made.id}/items/1/judge", fields)
    assert reply.status_code == 400 and rows(workspace, "judgments") == []
    assert "Choose an answer for" in reply.text and "My &lt;reason&gt;." in reply.text
    assert re.search(r'name="axis:truth" value="1" checked', reply.text)
    assert send(client("reviewer"), f"/c/{made.id}/items/1/judge", {"nonce": "x"}).status_code == 400


def test_holding_back_and_handing_out_again(workspace: Workspace, client: Client) -> None:
    made, reviewer = campaign(workspace, names=["a"]), client("reviewer")
    assert send(reviewer, f"/c/{made.id}/items/1/hold", {"do": "hold", "reason": " "}).status_code == 400
    assert workspace.overview.item(made.run, 1).held == ""
    send(reviewer, f"/c/{made.id}/items/1/hold", {"do": "hold", "reason": "names a place"})
    assert workspace.overview.item(made.run, 1).held == "names a place"
    assert "Held back: <bdi>names a place</bdi>" in reviewer.get(f"/c/{made.id}/items/1").text
    send(reviewer, f"/c/{made.id}/items/1/hold", {"do": "release"})
    assert workspace.overview.item(made.run, 1).held == ""
    held = [event for event in rows(workspace, "events") if event["kind"] == "hold"]
    assert [event["actor"] for event in held] == [reviewer.name] * 2


def test_priorities(workspace: Workspace, client: Client) -> None:
    made, reviewer = campaign(workspace, names=["a"]), client("reviewer")
    send(reviewer, f"/c/{made.id}/items/1/priority", {"priority": "-2.5"})
    assert workspace.overview.item(made.run, 1).priority == -2.5
    for odd in ("nan", "inf", "1e999", "high", ""):
        assert send(reviewer, f"/c/{made.id}/items/1/priority", {"priority": odd}).status_code == 400
    assert workspace.overview.item(made.run, 1).priority == -2.5


def test_line_14_labelers_see_and_change_nothing_here(workspace: Workspace, client: Client) -> None:
    gold = {"ranking": [1, 0], "note": "The second is right."}
    made = campaign(workspace, names=["a"], items=[Item(comparison_id="a", gold=gold)])
    labeler, before = client("labeler"), rows(workspace, "comparisons")
    for address in ("items", "items/1", "review"):
        reply = labeler.get(f"/c/{made.id}/{address}")
        assert reply.status_code == 404 and "Question" not in reply.text
    for what in ("hold", "priority", "judge"):
        fields = {"do": "hold", "reason": "x", "priority": "3", "nonce": NONCE, "axis:overall": "1"}
        assert send(labeler, f"/c/{made.id}/items/1/{what}", fields).status_code == 404
    assert rows(workspace, "comparisons") == before and rows(workspace, "judgments") == []
    nobody = client()
    assert nobody.get(f"/c/{made.id}/items").headers["location"].startswith("/login")


def test_line_18_the_same_on_postgresql(tmp_path: Path, postgres_url: str) -> None:
    """PostgreSQL takes no NUL in a text and no number beyond 32 bits."""
    work = open_workspace(tmp_path, bytes(32), postgres_url)
    with running(work) as server:
        made, reviewer = campaign(work), server.visitor("reviewer")
        for query in ("slice=a%00b", "mix=%00", "after=99999999999", "slice=%ed%a0%80", "state=%00", "slice=%25"):
            assert reviewer.get(f"/c/{made.id}/items?{query}").status_code in (200, 404), query
        for place in ("/c/%00/manage", f"/c/{made.id}/items/99999999999", f"/c/{made.id}/labelers/a%00b"):
            assert reviewer.get(place).status_code in (400, 404), place
        reply = send(reviewer, f"/c/{made.id}/items/1/hold", {"do": "hold", "reason": "a\0b"})
        assert reply.status_code in (303, 400)
        assert len(listed(reviewer.get(f"/c/{made.id}/items?state=waiting").text)) in (2, 3)
    work.close()
