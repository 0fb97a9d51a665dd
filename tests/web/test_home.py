from __future__ import annotations

from collections.abc import Callable

from prefloop.web.workspace import Workspace
from tests.web.campaigns import campaign, collect, label
from tests.web.serving import Visitor

Client = Callable[..., Visitor]


def test_an_empty_workspace_offers_three_ways_to_begin(workspace: Workspace, client: Client) -> None:
    admin = client("admin")
    page = admin.get("/").text
    assert "Try it with example answers" in page and "Bring your own" in page and "No run in this folder" in page
    collect(workspace)
    assert 'href="/new?run=runs/quickstart/collect"' in admin.get("/").text
    assert workspace.campaigns.all() == []  # looking changes nothing


def test_one_click_makes_the_example_and_leads_to_it(workspace: Workspace, client: Client) -> None:
    reply = client("admin").submit("/example")
    made = workspace.campaigns.by_run("example")
    assert reply.status_code == 303 and reply.headers["location"] == f"/c/{made.id}"
    assert workspace.progress.campaign("example").items == 21


def test_only_admins_may_begin(workspace: Workspace, client: Client) -> None:
    for role in ("labeler", "reviewer"):
        visitor = client(role)
        page = visitor.get("/").text
        assert "Try it" not in page and "/new" not in page and "There is no campaign yet" in page
        assert visitor.submit("/example").status_code == 404
        assert visitor.get("/new").status_code == 404
    assert workspace.campaigns.all() == []


def test_a_labeler_sees_their_part_and_one_way_on(workspace: Workspace, client: Client) -> None:
    first, second = campaign(workspace), campaign(workspace, "more", "de", title="And these?")
    labeler = client("labeler", name="ada")
    page = labeler.get("/").text
    assert page.count("button primary") == 1 and page.count(">Start</a>") == 2
    label(workspace, first, "ada")
    page = labeler.get("/").text
    assert f'action="/c/{first.id}/next"' in page and ">Continue</button>" in page
    assert "You have done 1; about 2 are left for you" in page and "of 3 labels" not in page
    assert "Manage" not in page and "secret" not in page
    workspace.campaigns.set_state(first.run, "paused", by="prefloop")
    page = labeler.get("/").text
    assert page.index(second.id) < page.index(first.id) and f'action="/c/{first.id}/next"' not in page


def test_reviewers_and_admins_manage(workspace: Workspace, client: Client) -> None:
    made = campaign(workspace)
    page = client("reviewer").get("/").text
    assert f'href="/c/{made.id}/manage"' in page and "0 of 3 labels" in page
    assert 'href="/new"' in client("admin").get("/").text and 'href="/new"' not in client("reviewer").get("/").text


def test_line_15_nothing_of_a_run_stands_on_a_labelers_page(workspace: Workspace, client: Client) -> None:
    collect(workspace, "mammoth-13b")
    campaign(workspace, "runs/mammoth-13b/label")
    reply = client("labeler").get("/")
    assert "mammoth" not in reply.text and "secret-model" not in reply.text
    assert "mammoth" not in str(reply.headers)
