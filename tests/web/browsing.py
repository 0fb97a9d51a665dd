"""Chromium that is watched: what a page does beyond what it should, and every byte that reaches it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page

from tests.web.serving import Server, Visitor

PATIENCE = 60_000
_TELL = "addEventListener('securitypolicyviolation', e => told(`${e.effectiveDirective} ${e.blockedURI}`), true)"


@dataclass
class Watch:
    """A browser's context and what happened in it that must not: dialogs, requests to other hosts, errors of scripts,
    violations of the policy that the sanitiser should have made needless."""

    context: BrowserContext
    home: str
    dialogs: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    @property
    def faults(self) -> list[list[str]]:
        return [found for found in (self.dialogs, self.foreign, self.errors, self.violations) if found]

    def page(self) -> Page:
        made = self.context.new_page()
        made.on("dialog", self._refuse)
        made.on("pageerror", lambda error: self.errors.append(str(error)))
        return made

    def _refuse(self, dialog: Any) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((f"{self.home}/", "data:", "blob:")):
            self.foreign.append(request.url)


@contextmanager
def watched(browser: Browser, visitor: Visitor, home: str = "") -> Iterator[Watch]:
    """A context in which a visitor is signed in. `home`: the server's address, where it is not the visitor's own."""
    home = home or str(visitor.base_url).rstrip("/")
    context = browser.new_context(base_url=home, accept_downloads=True)
    context.set_default_timeout(PATIENCE)
    context.add_cookies([{"name": key, "value": value, "url": home} for key, value in visitor.cookies.items()])
    made = Watch(context, home)
    context.expose_function("told", lambda what: made.violations.append(what))
    context.add_init_script(_TELL)
    context.on("request", made._asked)
    try:
        yield made
    finally:
        context.close()


class Tap:
    """Forwards connections to a server, and keeps every byte that comes back."""

    def __init__(self, port: int, listener: socket.socket) -> None:
        self._port, self._listener = port, listener
        self.address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._kept: list[bytearray] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def sent(self) -> bytes:
        """What the server sent, connection by connection."""
        return b"\n".join(bytes(kept) for kept in self._kept)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                visitor = self._listener.accept()[0]
                server = socket.create_connection(("127.0.0.1", self._port))
                self._kept.append(bytearray())
                for source, to, kept in ((visitor, server, None), (server, visitor, self._kept[-1])):
                    threading.Thread(target=_pipe, args=(source, to, kept), daemon=True).start()


@contextmanager
def tapped(server: Server) -> Iterator[Tap]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield Tap(server.port, listener)


def _pipe(source: socket.socket, to: socket.socket, kept: bytearray | None) -> None:
    with suppress(OSError), source, to:
        while part := source.recv(65536):
            if kept is not None:
                kept += part
            to.sendall(part)
