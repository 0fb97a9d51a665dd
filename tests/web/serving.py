"""A real server over a fresh workspace, and visitors who behave as browsers do."""

from __future__ import annotations

import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import uvicorn
from argon2 import PasswordHasher

from prefloop.store import passwords
from prefloop.web.limits import Limits
from prefloop.web.serve import server_config
from prefloop.web.workspace import Workspace, open_workspace


class Visitor(httpx.Client):
    """A browser, more or less: it keeps cookies, and sends forms with the page's token and its own origin."""

    name: str = ""

    @property
    def csrf(self) -> str:
        """The token in the forms of the page that is open to everybody, or to everybody signed in."""
        page = self.get("/me", follow_redirects=True).text
        return re.findall(r'name="csrf" value="([^"]+)"', page)[0]

    def submit(self, path: str, **fields: Any) -> httpx.Response:
        """Send a form; where it leads to is not followed."""
        origin = str(self.base_url).rstrip("/")
        headers = {"origin": origin, "sec-fetch-site": "same-origin"}
        return self.post(path, data={"csrf": self.csrf, **fields}, headers=headers)


class Answered(NamedTuple):
    """A request as it reached the server, and how it was answered."""

    path: str
    origin: str
    status: int


@dataclass
class Server:
    """A server that runs, and the workspace behind it."""

    url: str
    workspace: Workspace
    visitors: list[Visitor] = field(default_factory=list)
    answered: list[Answered] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def visitor(self, role: str = "", name: str = "", **named: Any) -> Visitor:
        """Somebody who is signed in with a role, or, without one, nobody known. `name`: of an account that is there, or
        is made."""
        visitor = Visitor(base_url=self.url, timeout=120, **named)
        self.visitors.append(visitor)
        if role:
            visitor.name = name or f"{role}{len(self.visitors)}"
            if self.workspace.accounts.find(visitor.name) is None:
                self.workspace.accounts.create(visitor.name, role, by="prefloop")
            visitor.get("/login")
            prefix = next(iter(visitor.cookies)).removesuffix("visit")
            token = self.workspace.sessions.begin(visitor.name)
            visitor.cookies.set(f"{prefix}session", token, domain="127.0.0.1", path="/")
        return visitor


@contextmanager
def fresh(folder: Path, database: Path) -> Iterator[Workspace]:
    """A workspace over a copy of a database. Its passwords are hashed by argon2id with settings that cost little."""
    shutil.copy(database, folder / "prefloop.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passwords, "_HASHER", PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))
        passwords._nobodys.cache_clear()
        made = open_workspace(folder, bytes(range(32)))
        try:
            yield made
        finally:
            made.close()
    passwords._nobodys.cache_clear()


@contextmanager
def running(workspace: Workspace, limits: Limits | None = None, patience: float = 15.0) -> Iterator[Server]:
    """Serve a workspace in a thread, by uvicorn, at a free port."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
    config, answered = server_config(workspace, limits or Limits(), patience), list[Answered]()
    app: Any = config.app

    async def noted(scope: Any, receive: Any, send: Any) -> None:
        async def note(message: Any) -> None:
            if message["type"] == "http.response.start":
                origin = dict(scope["headers"]).get(b"origin", b"").decode()
                answered.append(Answered(scope["path"], origin, message["status"]))
            await send(message)

        await app(scope, receive, note)

    config.app = noted
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    made = Server(f"http://127.0.0.1:{listener.getsockname()[1]}", workspace, answered=answered)
    try:
        yield made
    finally:
        for visitor in made.visitors:
            visitor.close()
        server.should_exit = True
        thread.join()
