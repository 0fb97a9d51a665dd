from __future__ import annotations

import csv
import io
import json
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from prefloop.store.overview import Filter
from prefloop.web.pages.transfer import FORMATS
from prefloop.web.workspace import Workspace
from tests.web.campaigns import campaign, label, rows, send
from tests.web.serving import Visitor
from tests.web.test_setup import pairs

Client = Callable[..., Visitor]


@pytest.fixture
def labeled(workspace: Workspace) -> str:
    """A campaign's address; Ann labeled all three items."""
    workspace.accounts.create("ann", "labeler", by="prefloop")
    made = campaign(workspace)
    for axes in (-3, 0, 2):
        label(workspace, made, "ann", axes)
    return f"/c/{made.id}"


def exported(workspace: Workspace) -> list[Path]:
    assert workspace.jobs.wait(60)
    return sorted(path for path in (workspace.folder / "exports").iterdir() if "manifest" not in path.name)


def test_every_format_is_written_and_can_be_downloaded(workspace: Workspace, client: Client, labeled: str) -> None:
    reviewer = client("reviewer")
    for kind in FORMATS:
        if kind == "demonstrations":  # nobody wrote one
            continue
        assert send(reviewer, f"{labeled}/export", {"format": kind}).status_code == 303
        assert workspace.jobs.wait(60)
        page = reviewer.get(f"{labeled}/transfer").text
        assert 'class="good"' in page, kind
    assert len(exported(workspace)) == len(FORMATS) - 1
    page = reviewer.get(f"{labeled}/transfer").text
    for path in exported(workspace):
        assert f'href="{labeled}/exports/{path.name}"' in page
        reply = reviewer.get(f"{labeled}/exports/{path.name}")
        assert reply.status_code == 200 and reply.content == path.read_bytes()
        assert reply.headers["content-disposition"] == f'attachment; filename="{path.name}"'
        assert reply.headers["content-type"] == "application/octet-stream"
        assert reply.headers["x-content-type-options"] == "nosniff"


def test_an_export_is_what_was_chosen_and_names_nobody(workspace: Workspace, client: Client, labeled: str) -> None:
    reviewer = client("reviewer")
    send(reviewer, f"{labeled}/export", {"format": "jsonl"})
    (path,) = exported(workspace)
    text = path.read_text()
    made = [json.loads(line) for line in text.splitlines()]
    chosen = {row["comparison_id"]: row["choice"] for row in rows(workspace, "judgments")}
    assert {row["comparison"]["id"]: row["labels"][0]["judgment"]["axes"]["overall"] for row in made} == chosen
    assert '"ann"' not in text and len(made) == 3


def test_a_page_of_a_job_that_runs_follows_it_without_loading_anew(
    workspace: Workspace, client: Client, labeled: str
) -> None:
    go, (made,) = threading.Event(), workspace.campaigns.all()
    workspace.jobs.start(f"export {made.run}", "Export", lambda: f"all {go.wait(60)}")
    reviewer = client("reviewer")
    page = reviewer.get(f"{labeled}/transfer").text
    assert "under way" in page and "/transfer.js" in page and "http-equiv" not in page
    go.set()
    assert workspace.jobs.wait(60)
    page = reviewer.get(f"{labeled}/transfer").text
    assert "all True" in page and "/transfer.js" not in page and "data-busy" not in page


def test_an_export_that_comes_back_adds_nothing(workspace: Workspace, client: Client, labeled: str) -> None:
    reviewer = client("reviewer")
    send(reviewer, f"{labeled}/export", {"format": "jsonl"})
    (path,) = exported(workspace)
    how = {"campaign": labeled.rpartition("/")[2], "path": "", "pairs": "1", "ways": "2"}
    send(reviewer, "/import", how, ("back.jsonl", path.read_bytes()))
    assert workspace.jobs.wait(60)
    page = reviewer.get(f"{labeled}/transfer").text
    assert "3 labels that were there already" in page and "new labels" not in page
    assert len(rows(workspace, "judgments")) == 3


def test_a_datasets_folder_comes_as_a_zip(workspace: Workspace, client: Client, labeled: str) -> None:
    send(client("reviewer"), f"{labeled}/export", {"format": "datasets"})
    assert workspace.jobs.wait(60)
    (path,) = exported(workspace)
    with zipfile.ZipFile(path) as packed:
        assert packed.testzip() is None and "data/dataset_info.json" in packed.namelist()
    assert not list(workspace.folder.glob(".export*"))


def test_a_spreadsheet_opens_without_formulas(workspace: Workspace, client: Client) -> None:
    workspace.accounts.create("ann", "labeler", by="prefloop")
    made = campaign(workspace, names=["a"])
    label(workspace, made, "ann")
    send(client("reviewer"), f"/c/{made.id}/export", {"format": "csv"})
    (path,) = exported(workspace)
    cells = [cell for row in csv.reader(io.StringIO(path.read_text())) for cell in row]
    assert cells and not [cell for cell in cells if cell[:1] in "=+@" and cell]


@pytest.mark.parametrize(
    "name",
    [
        "..%2f..%2fprefloop.db",
        "%2e%2e%2fprefloop.db",
        "..\\prefloop.db",
        "prefloop.db",
        "%2fetc%2fpasswd",
        "x%00.jsonl",
        "link.jsonl",
        "folder",
        "a" * 5000,
        "%0d%0aset-cookie:x",
        ".hidden",
    ],
)
def test_line_19_only_listed_exports_are_sent(workspace: Workspace, client: Client, labeled: str, name: str) -> None:
    exports, id_ = workspace.folder / "exports", labeled.rpartition("/")[2]
    exports.mkdir()
    (exports / f"{id_}-link.jsonl").symlink_to(workspace.folder / "prefloop.db")
    (exports / f"{id_}-folder").mkdir()
    reviewer = client("reviewer")
    for asked in (name, f"{id_}-{name}"):
        reply = reviewer.get(f"{labeled}/exports/{asked}")
        assert reply.status_code in (400, 404) and b"SQLite" not in reply.content
        assert "set-cookie" not in {key for key in reply.headers if reply.headers[key].startswith("x")}


def test_line_14_another_campaigns_exports_are_not_this_ones(
    workspace: Workspace, client: Client, labeled: str
) -> None:
    reviewer = client("reviewer")
    send(reviewer, f"{labeled}/export", {"format": "jsonl"})
    (path,) = exported(workspace)
    other = campaign(workspace, "other", ["z"])
    assert reviewer.get(f"/c/{other.id}/exports/{path.name}").status_code == 404
    labeler = client("labeler")
    assert labeler.get(f"{labeled}/exports/{path.name}").status_code == 404
    assert labeler.get(f"{labeled}/transfer").status_code == 404
    assert send(labeler, f"{labeled}/export", {"format": "jsonl"}).status_code == 404
    fields = {"campaign": other.id, "path": "", "pairs": "1", "ways": "2"}
    assert send(labeler, "/import", fields, ("x.jsonl", pairs(1))).status_code == 404
    assert len(exported(workspace)) == 1 and not (workspace.folder / "uploads").exists()


def test_line_6_bytes_of_odd_texts_come_back_whole(workspace: Workspace, client: Client) -> None:
    """What terminals and spreadsheets would run: lossless in JSON lines, harmless as CSV."""
    made, admin = campaign(workspace, "odd", ["z"]), client("admin")
    odd = ["\x1b[31mred\x1b[0m", '=cmd|"/c calc"!A1', "+1+1", "@SUM(A1)", "-2", "\t=1", "\u202ertl", "e\u0301"]
    made_rows = [
        {"prompt": f"{text} {i}?", "chosen": f"{text} good", "rejected": f"{text} bad"} for i, text in enumerate(odd)
    ]
    content = "".join(json.dumps(row) + "\n" for row in made_rows).encode()
    send(admin, "/import", {"campaign": made.id, "path": "", "pairs": "1", "ways": "2"}, ("odd.jsonl", content))
    for kind in ("jsonl", "csv"):
        send(admin, f"/c/{made.id}/export", {"format": kind})
        assert workspace.jobs.wait(60)
    found = {path.suffix: path for path in exported(workspace)}
    whole = [json.loads(line)["comparison"] for line in found[".jsonl"].read_text().splitlines()]
    texts = {item["text"] for comparison in whole for item in comparison["items"]}
    assert {f"{text} good".strip() for text in odd} <= {text.strip() for text in texts}
    assert "\x1b" not in found[".csv"].read_text()
    cells = [cell for row in csv.reader(io.StringIO(found[".csv"].read_text())) for cell in row]
    assert not [cell for cell in cells if cell and cell[0] in "=+@\t\r"]


def test_an_import_adds_and_says_what_it_did(workspace: Workspace, client: Client) -> None:
    made, reviewer = campaign(workspace), client("reviewer")
    how = {"campaign": made.id, "path": "", "pairs": "3", "ways": "2"}
    reply = send(reviewer, "/import", how, ("more.jsonl", pairs(4)))
    assert reply.status_code == 303
    assert "4 new items" in reviewer.get(reply.headers["location"]).text
    assert len(workspace.overview.items(made.run, Filter())) == 7
    send(reviewer, "/import", how, ("more.jsonl", pairs(4)))
    page = reviewer.get(f"/c/{made.id}/transfer").text
    assert "4 labels that were there already" in page and "new items" not in page
    bad = pairs(2) + b'{"odd": 1}\n'
    send(reviewer, "/import", how, ("bad.jsonl", bad))
    assert "unknown layout" in reviewer.get(f"/c/{made.id}/transfer").text
    send(reviewer, "/import", {**how, "skip_bad": "on"}, ("bad.jsonl", bad))
    assert "1 rows left out" in reviewer.get(f"/c/{made.id}/transfer").text


def test_an_import_that_cannot_begin_keeps_what_was_typed(workspace: Workspace, client: Client) -> None:
    made, reviewer = campaign(workspace), client("reviewer")
    for fields in ({"path": "../x.jsonl"}, {"path": "x.jsonl", "pairs": "0"}, {"path": ""}):
        reply = send(reviewer, "/import", {"campaign": made.id, "pairs": "1", "ways": "2", **fields})
        assert reply.status_code == 400 and f'value="{fields["path"]}"' in reply.text
    assert send(reviewer, "/import", {"campaign": "nothing", "path": ""}).status_code == 404
    assert send(reviewer, f"/c/{made.id}/export", {"format": "pickle"}).status_code == 400
