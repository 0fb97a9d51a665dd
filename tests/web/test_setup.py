from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from prefloop.configs.campaign import CampaignConfig
from prefloop.store.overview import Filter
from prefloop.web.workspace import Workspace
from tests.web.campaigns import campaign, collect, filled, rows, send
from tests.web.serving import Visitor

Client = Callable[..., Visitor]
EVIL = "<img src=x onerror=alert(1)>"


def pairs(count: int) -> bytes:
    rows = [{"prompt": f"Q{i}?", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(count)]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_a_campaign_is_what_the_form_says(workspace: Workspace, client: Client) -> None:
    wanted = CampaignConfig(
        title="Which is kinder?",
        guidelines="Be **kind**.\n\nAlways.",
        axes=("kindness", "truth"),
        ties=False,
        rationale="required",
        flags=("rude",),
        rubric=("greets",),
        ratings=True,
        edits=False,
        overlap=2,
        shared_share=0.1,
        shared_overlap=4,
        gold_share=0.02,
        repeat_share=0.03,
        uniform_share=0.25,
        calibration=5,
        feedback=False,
        mix={"easy": 0.6, "hard": 0.4},
        lease_minutes=7.5,
        hold_hours=2,
    )
    reply = send(client("admin"), "/new", filled(wanted, run="kind/2"))
    made = workspace.campaigns.by_run("kind/2")
    assert reply.status_code == 303 and reply.headers["location"] == f"/c/{made.id}/manage"
    assert made.config == wanted and made.version == 1 and made.state == "open"


def test_what_is_wrong_is_said_and_what_was_typed_stays(workspace: Workspace, client: Client) -> None:
    typed = filled(title=EVIL, guidelines="my\nwords </textarea>", overlap="0", run="../up", axes="a\nb")
    reply = send(client("admin"), "/new", typed)
    assert reply.status_code == 400 and workspace.campaigns.all() == []
    assert "It must be at least 1." in reply.text and "letters, digits" in reply.text
    assert EVIL not in reply.text and "&lt;img src=x onerror=alert(1)&gt;" in reply.text
    assert "my\nwords &lt;/textarea&gt;" in reply.text and 'value="../up"' in reply.text
    assert 'href="#f-overlap"' in reply.text and 'aria-describedby="h-overlap e-overlap"' in reply.text


def test_the_guidelines_can_be_seen_before_anything_is_saved(workspace: Workspace, client: Client) -> None:
    reply = send(client("admin"), "/new", filled(guidelines="Be **kind**. <script>x</script>", do="preview"))
    assert reply.status_code == 200 and "<strong>kind</strong>" in reply.text and "<script>x" not in reply.text
    assert workspace.campaigns.all() == []


def test_items_from_an_upload(workspace: Workspace, client: Client) -> None:
    admin = client("admin")
    reply = send(admin, "/new", filled(run="up"), ("../pairs.jsonl", pairs(4)))
    made = workspace.campaigns.by_run("up")
    assert reply.status_code == 303 and reply.headers["location"] == f"/c/{made.id}/transfer"
    assert "4 new items, 4 new labels" in admin.get(f"/c/{made.id}/transfer").text
    assert len(workspace.overview.items("up", Filter())) == 4
    assert [path.parent for path in workspace.folder.rglob("*pairs.jsonl")] == [workspace.folder / "uploads"]


def test_an_upload_outlives_another_mistake(workspace: Workspace, client: Client) -> None:
    admin = client("admin")
    reply = send(admin, "/new", filled(overlap="x"), ("pairs.jsonl", pairs(2)))
    assert reply.status_code == 400
    kept = str(next((workspace.folder / "uploads").iterdir()).relative_to(workspace.folder))
    assert f'value="{kept}"' in reply.text
    assert send(admin, "/new", filled(path=kept)).status_code == 303
    assert len(workspace.overview.items("mine", Filter())) == 2


def test_items_from_a_file_of_the_workspace(workspace: Workspace, client: Client) -> None:
    (workspace.folder / "data").mkdir()
    (workspace.folder / "data" / "p.jsonl").write_bytes(pairs(3))
    admin = client("admin")
    assert '<option value="data/p.jsonl">' in admin.get("/new").text
    send(admin, "/new", filled(path="data/p.jsonl"))
    assert len(workspace.overview.items("mine", Filter())) == 3


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "prefloop.db", "%2e%2e/x.jsonl", "x\0.jsonl"])
def test_line_19_no_file_elsewhere_is_imported(workspace: Workspace, client: Client, path: str) -> None:
    reply = send(client("admin"), "/new", filled(path=path))
    assert reply.status_code == 400 and "There is no such file here" in reply.text and workspace.campaigns.all() == []


@pytest.mark.parametrize("run", ["../x", "a/../../x", "/etc", "a\r\nx", "a\0", "..\\x", "a" * 200])
def test_line_19_no_campaign_has_a_path_for_a_name(workspace: Workspace, client: Client, run: str) -> None:
    reply = send(client("admin"), "/new", filled(run=run))
    assert reply.status_code == 400 and workspace.campaigns.all() == []
    assert not list(workspace.folder.parent.glob("x*"))


def test_items_from_a_run(workspace: Workspace, client: Client) -> None:
    run, admin = collect(workspace), client("admin")
    page = admin.get(f"/new?run={run}").text
    assert 'value="runs/quickstart/label"' in page and f'<option value="{run}" selected>' in page
    send(admin, "/new", filled(collected=run, run="runs/quickstart/label", pairs="2"))
    found = workspace.overview.items("runs/quickstart/label", Filter())
    assert len(found) == 6 and {len(row.comparison.items) for row in found} == {2}
    assert 'value="runs/quickstart/label-2"' in admin.get(f"/new?run={run}").text
    assert send(admin, "/new", filled(collected="runs/../..", run="other")).status_code == 400


def test_answers_of_a_run_to_rank(workspace: Workspace, client: Client) -> None:
    run = collect(workspace)
    send(client("admin"), "/new", filled(collected=run, pairs="1", ways="4"))
    assert {len(row.comparison.items) for row in workspace.overview.items("mine", Filter())} == {4}


def test_a_file_that_cannot_be_read_says_so(workspace: Workspace, client: Client) -> None:
    admin = client("admin")
    reply = send(admin, "/new", filled(), ("bad.jsonl", b'{"prompt": 1}\n'))
    page = admin.get(reply.headers["location"]).text
    assert 'class="error"' in page and "bad.jsonl:1" in page
    assert send(admin, "/new", filled(run="b"), ("bad.exe", b"MZ")).status_code == 400


def test_a_name_is_taken_once(workspace: Workspace, client: Client) -> None:
    campaign(workspace)
    reply = send(client("admin"), "/new", filled(run="pairs"))
    assert reply.status_code == 400 and "There is a campaign pairs already" in reply.text


def test_an_odd_form_is_an_error_and_no_crash(workspace: Workspace, client: Client) -> None:
    admin = client("admin")
    assert send(admin, "/new", {}).status_code == 400
    assert send(admin, "/new", filled(path="x.jsonl", collected=collect(workspace))).status_code == 400
    for odd in ("0", "-1", "1e3", "²", "101", "9" * 100):
        assert send(admin, "/new", filled(pairs=odd)).status_code == 400
    assert workspace.campaigns.all() == []


def test_a_change_is_a_new_version_that_says_what_changed(workspace: Workspace, client: Client) -> None:
    made, reviewer = campaign(workspace), client("reviewer")
    typed = filled(made.config, title=f"New {EVIL}", ties="", overlap="2", do="save", version="1")
    typed.pop("ties")
    reply = send(reviewer, f"/c/{made.id}/edit", typed)
    assert reply.status_code == 303 and reply.headers["location"] == f"/c/{made.id}/versions"
    now = workspace.campaigns.by_run("pairs")
    assert (now.version, now.config.title, now.config.ties, now.config.overlap) == (2, f"New {EVIL}", False, 2)
    page = reviewer.get(f"/c/{made.id}/versions").text
    assert EVIL not in page and page.count('<th scope="row">') == 3
    assert "Labels per item" in page and "Title" in page and "Guidelines" not in page
    assert rows(workspace, "campaign_versions")[1]["by"] == reviewer.name


def test_nothing_changed_is_no_version(workspace: Workspace, client: Client) -> None:
    made = campaign(workspace, mix={"a": 1 / 3, "b": 2 / 3})
    send(client("reviewer"), f"/c/{made.id}/edit", filled(made.config, do="save", version="1"))
    assert workspace.campaigns.by_run("pairs").version == 1


def test_two_who_edit_at_once_do_not_undo_one_another(workspace: Workspace, client: Client) -> None:
    made, reviewer = campaign(workspace), client("reviewer")
    send(reviewer, f"/c/{made.id}/edit", filled(made.config, title="First", do="save", version="1"))
    reply = send(reviewer, f"/c/{made.id}/edit", filled(made.config, title="Second", do="save", version="1"))
    assert reply.status_code == 400 and "at version 2 by now" in reply.text and 'value="Second"' in reply.text
    assert workspace.campaigns.by_run("pairs").config.title == "First"


def test_line_14_labelers_open_none_of_this(workspace: Workspace, client: Client) -> None:
    made, labeler = campaign(workspace), client("labeler")
    for address in ("/new", f"/c/{made.id}/edit", f"/c/{made.id}/versions"):
        assert labeler.get(address).status_code == 404
    assert send(labeler, "/new", filled()).status_code == 404
    assert send(labeler, f"/c/{made.id}/edit", filled(do="save", version="1", title="Mine")).status_code == 404
    assert len(workspace.campaigns.all()) == 1 and workspace.campaigns.by_run("pairs").version == 1
    assert send(client("reviewer"), "/new", filled()).status_code == 404
    assert not Path(workspace.folder / "uploads").exists()
