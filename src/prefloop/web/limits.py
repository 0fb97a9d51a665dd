"""How much one visitor may ask for."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_VISITORS = 10_000
_PIECE = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Names of this server, and what it takes. Sizes in bytes; rates in requests a second, and how many at once."""

    names: tuple[str, ...] = ("127.0.0.1", "localhost", "::1")
    secure: bool = False  # served by TLS
    origin: str = ""  # under which a proxy that speaks TLS is known, such as https://labels.example.org
    anonymous_body: int = 64 * 1024
    body: int = 2 * 2**20
    uploads: tuple[str, ...] = ("/import", "/new")  # where files come in
    upload: int = 512 * 2**20  # from reviewers and admins
    patience: float = 10.0  # seconds for a body to begin, and beyond its size at a slow line's pace
    session_rate: tuple[float, float] = (30.0, 300.0)
    address_rate: tuple[float, float] = (10.0, 100.0)

    def of_body(self, request: Request) -> int:
        """The largest body that a request may have."""
        account = request.state.account
        if account is None:
            return self.anonymous_body
        return self.upload if request.url.path in self.uploads and account.may("reviewer") else self.body


class Pieces:
    """Sends large bodies piece by piece: of what a slow reader asked for, one piece waits in memory."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            body = message.get("body", b"")
            for start in range(0, len(body) - _PIECE, _PIECE):
                piece = body[start : start + _PIECE]
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            if len(body) > _PIECE:
                message = {**message, "body": body[(len(body) - 1) // _PIECE * _PIECE :]}
            await send(message)

        await self._app(scope, receive, sending)


class Rates:
    """Refuses what comes too often: for each session, API token, or address of nobody known, a bucket of tokens that
    fills at a rate (429, with the seconds to wait). Static files are free."""

    def __init__(self, app: ASGIApp, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._app, self._limits, self._clock = app, limits, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what is left, and since when

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not scope["path"].startswith("/static/"):
            account, session = scope["state"]["account"], scope["state"]["session"]
            if account is None:
                key, rate = f"address {(scope.get('client') or [''])[0]}", self._limits.address_rate
            else:
                key, rate = f"session {session.id if session else account.name}", self._limits.session_rate
            if (wait := self._take(key, *rate)) > 0:
                raise HTTPException(429, "That was too much at once; wait a little.", {"retry-after": f"{wait:.0f}"})
        await self._app(scope, receive, send)

    def _take(self, key: str, rate: float, most: float) -> float:
        """Take a token; else the seconds until there is one, at least 1."""
        now = self._clock()
        left, since = self._buckets.pop(key, (most, now))
        left = min(left + (now - since) * rate, most)
        self._buckets[key] = (left - 1 if left >= 1 else left, now)
        if len(self._buckets) > _VISITORS:
            self._buckets.popitem(last=False)
        return 0.0 if left >= 1 else max((1 - left) / rate, 1.0)
