"""Fixtures of the web app's tests: a fresh workspace, a real server over it, visitors."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from prefloop.store import db
from prefloop.web.limits import Limits
from prefloop.web.workspace import Workspace
from tests.web.serving import Server, Visitor, fresh, running


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium: playwright's own download is not wanted."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        advice = "There is no Chromium: apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(advice)
        pytest.skip(advice)
    expect.set_options(timeout=60_000)  # not to find out how busy the machine is
    named = "--host-resolver-rules=MAP rebound.example 127.0.0.1"
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", named])
        yield made
        made.close()


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with the newest schema and nothing in it, to copy."""
    path = tmp_path_factory.mktemp("empty") / "prefloop.db"
    db.connect(f"sqlite:///{path}").dispose()
    return path


@pytest.fixture
def workspace(empty_database: Path, tmp_path: Path) -> Iterator[Workspace]:
    """A fresh workspace. Its passwords are hashed by argon2id with settings that cost little."""
    with fresh(tmp_path, empty_database) as made:
        yield made


@pytest.fixture
def server(workspace: Workspace) -> Iterator[Server]:
    """A running server over `workspace`."""
    with running(workspace) as made:
        yield made


@pytest.fixture
def client(server: Server) -> Callable[..., Visitor]:
    """client("labeler"): a visitor of `server` who is signed in with this role; client(): one who is not."""
    return server.visitor


@pytest.fixture(scope="module")
def shared(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for all tests of a file that leave nothing behind; it bears any number of requests."""
    much = (1e6, 1e6)
    with (
        fresh(tmp_path_factory.mktemp("shared"), empty_database) as workspace,
        running(workspace, Limits(address_rate=much, session_rate=much)) as made,
    ):
        yield made
