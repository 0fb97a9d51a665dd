"""Which hosts are served, and what every response says to the browser about it."""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CHARTS = "/charts/"
"""Where pages of numbers live, which plotly draws in a frame: it sets styles of its own."""
_YEAR = 365 * 24 * 3600
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")
_SHUT = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_PAGE = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'self'; img-src 'self'; font-src 'self';"
    " connect-src 'self'; frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_CHART = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:;"
    " font-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'self'"
)
_ALWAYS = {
    "x-content-type-options": "nosniff",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=(), browsing-topics=()",
}


class Hardened:
    """Adds the headers; puts the nonce that scripts need, that nobody is signed in yet, and a proxy's origin into the
    request's state.

    Pages send their own site its full addresses (`same-origin`), since a browser that sends none has no Origin in its
    forms either; all else sends none."""

    def __init__(self, app: ASGIApp, secure: bool, origin: str) -> None:
        self._app, self._secure, self._origin = app, secure, origin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        nonce = secrets.token_urlsafe(16)
        scope.setdefault("state", {}).update(nonce=nonce, account=None, session=None, csrf="", origin=self._origin)

        async def hardened(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._add(MutableHeaders(scope=message), scope["path"], nonce)
            await send(message)

        await self._app(scope, receive, hardened)

    def _add(self, headers: MutableHeaders, path: str, nonce: str) -> None:
        html = headers.get("content-type", "").startswith("text/html")
        chart = path.startswith(CHARTS)
        policy = _SHUT if not html else _CHART if chart else _PAGE
        headers.update(_ALWAYS)
        headers["content-security-policy"] = policy.format(nonce=nonce)
        headers["x-frame-options"] = "SAMEORIGIN" if html and chart else "DENY"
        headers["referrer-policy"] = "same-origin" if html else "no-referrer"
        headers.setdefault("cache-control", "no-store")
        if self._secure:
            headers["strict-transport-security"] = f"max-age={_YEAR}"


class KnownHosts:
    """Refuses requests for a host that is none of ours: a name of somebody else's that leads here (DNS rebinding) would
    let their pages read ours. Any port: a tunnel may have another. The address that a connection came in on is ours.
    And addresses with a NUL, which PostgreSQL takes in no text."""

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self._app, self._names = app, frozenset(name.lower() for name in names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = Headers(scope=scope).get("host", "").lower()
            parsed = _HOST.fullmatch(given)
            if parsed is None or parsed[1].strip("[]") not in {*self._names, (scope.get("server") or [""])[0]}:
                refusal = PlainTextResponse("This server does not go by that name: prefloop serve --name NAME.", 400)
                await refusal(scope, receive, send)
                return
            if "\0" in scope["path"] or b"%00" in scope["query_string"]:
                await PlainTextResponse("There is no such page.", 404)(scope, receive, send)
                return
        await self._app(scope, receive, send)
