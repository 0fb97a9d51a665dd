"""Disks that are full or read-only, and a database that another program holds (line 28 of the survey's checklist)."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prefloop.store import health
from prefloop.web.workspace import open_workspace
from tests.patience import until
from tests.web.serving import Server, Visitor, fresh, running


def report(visitor: Visitor) -> tuple[int, bool, str]:
    response = visitor.get("/health")
    found = response.json()
    return response.status_code, found["ok"], found["reason"]


def until_green(visitor: Visitor) -> None:
    until(lambda: report(visitor) == (200, True, ""))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB of our own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root can mount the small disk that this test fills")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def on_small_disk(small_disk: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(health, "ROOM", 0)
    with fresh(small_disk, empty_database) as workspace, running(workspace) as server:
        yield server


def test_a_database_that_takes_labels_is_green(client: Callable[..., Visitor]) -> None:
    assert report(client()) == (200, True, "")


def test_little_room_is_red(client: Callable[..., Visitor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "ROOM", 2**62)
    status, ok, reason = report(client())
    assert (status, ok) == (503, False) and "MiB are left on the disk" in reason


def test_28_a_database_that_another_program_holds_is_red_and_its_pages_are_readable(
    server: Server, client: Callable[..., Visitor]
) -> None:
    admin = client("admin")
    with contextlib.closing(sqlite3.connect(server.workspace.folder / "prefloop.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        assert report(client()) == (503, False, "another program holds the database")
        assert admin.get("/people").status_code == 200
        other.rollback()
    until_green(client())


def test_28_a_full_disk_is_red_and_loses_nothing(on_small_disk: Server) -> None:
    admin, folder = on_small_disk.visitor("admin"), on_small_disk.workspace.folder
    csrf, ballast = admin.csrf, folder / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    response = None
    for _ in range(400):  # until what SQLite has of room in its log is used up
        response = admin.post("/people/invite", data={"csrf": csrf, "role": "labeler"})
        if response.status_code != 200:
            break
    assert response is not None and response.status_code == 503
    assert "because the disk" in response.text and str(folder) not in response.text
    status, ok, reason = report(admin)
    assert (status, ok) == (503, False) and reason in ("the disk is full", "the disk cannot be written")
    assert admin.get("/people").status_code == 200
    ballast.unlink()
    until_green(admin)
    assert admin.post("/people/invite", data={"csrf": csrf, "role": "labeler"}).status_code == 200


def test_28_a_disk_that_can_only_be_read_is_red_and_its_pages_are_readable(
    on_small_disk: Server, tmp_path: Path
) -> None:
    disk, view = on_small_disk.workspace.folder, tmp_path / "view"
    view.mkdir()
    subprocess.run(["mount", "--bind", str(disk), str(view)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(view)], check=True)
    try:
        with contextlib.closing(open_workspace(view, bytes(32))) as workspace, running(workspace) as server:
            admin = on_small_disk.visitor("admin")
            token = on_small_disk.workspace.accounts.new_token(admin.name, by="prefloop")
            visitor = server.visitor(headers={"authorization": f"Bearer {token}"})
            assert visitor.get("/people").status_code == 200
            response = visitor.post("/people/invite", data={"role": "labeler"})
            assert response.status_code == 503 and "because the database can only be read" in response.json()["error"]
            assert report(visitor) == (503, False, "the database can only be read")
            assert report(admin) == (200, True, "")
    finally:
        subprocess.run(["umount", "--lazy", str(view)], check=True)
