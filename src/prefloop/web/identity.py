"""Who asks: the session of a cookie, or the account of an API token."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prefloop.store.accounts import Account
from prefloop.web.templating import workspace
from prefloop.web.workspace import Workspace

_VISIT = re.compile(r"[A-Za-z0-9_-]{22}")
_MONTH = 30 * 24 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Cookies:
    """What a browser keeps for one workspace: cookies of others on this host, at other ports, have other names."""

    prefix: str
    secure: bool
    given: Mapping[str, str]

    def get(self, name: str) -> str:
        """What a cookie holds; empty where there is none."""
        return self.given.get(self.prefix + name, "")

    def set(self, response: Response, name: str, value: str, seconds: int = _MONTH) -> None:
        """Set a cookie that no script can read, and that other sites' links send along but not their forms."""
        response.set_cookie(
            self.prefix + name, value, max_age=seconds, path="/", secure=self.secure, httponly=True, samesite="lax"
        )

    def drop(self, response: Response, name: str) -> None:
        """Have a cookie forgotten."""
        self.set(response, name, "", 0)


class Identity:
    """Puts into the request's state: `account` and `session` (or None), `cookies`, and `csrf`, which forms must bring.

    Before a login `csrf` is signed for a cookie of its own, so that nobody is signed in by somebody else's form."""

    def __init__(self, app: ASGIApp, workspace: Workspace, secure: bool) -> None:
        self._app, self._workspace, self._secure = app, workspace, secure
        own = hashlib.sha256(b"cookies" + workspace.key).hexdigest()[:8]
        self._prefix = f"{'__Host-' if secure else ''}prefloop-{own}-"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request, state = Request(scope), scope["state"]
        state["cookies"] = jar = Cookies(prefix=self._prefix, secure=self._secure, given=request.cookies)
        if "authorization" in request.headers:
            state["account"] = await self._by_token(request.headers["authorization"])
        elif token := jar.get("session"):
            session = await run_in_threadpool(self._workspace.sessions.find, token)
            if session is not None:
                state.update(account=session.account, session=session, csrf=session.csrf)
        if state["account"] is None:
            visit = jar.get("visit") if _VISIT.fullmatch(jar.get("visit")) else secrets.token_urlsafe(16)
            state["csrf"] = hmac.new(self._workspace.key, b"visit" + visit.encode(), hashlib.sha256).hexdigest()
            send = _with_visit(send, jar, visit)
        await self._app(scope, receive, send)

    async def _by_token(self, header: str) -> Account:
        kind, _, token = header.partition(" ")
        account = None
        if kind.lower() == "bearer":
            account = await run_in_threadpool(self._workspace.accounts.by_token, token.strip())
        if account is None:
            raise HTTPException(401, "This token lets nobody in.", {"www-authenticate": "Bearer"})
        return account


def cookies(request: Request) -> Cookies:
    """The cookies that a request brought."""
    found: Cookies = request.state.cookies
    return found


def signed_in(request: Request, name: str, to: str) -> Response:
    """A redirect that takes a browser along as another account, or as the same one anew: its session before ends."""
    before = request.state.session
    token = workspace(request).sessions.begin(name, instead_of=before.id if before else "")
    response = RedirectResponse(to, 303)
    cookies(request).set(response, "session", token)
    return response


def address(request: Request) -> str:
    """Where a request came from."""
    return request.client.host if request.client else ""


def _with_visit(send: Send, jar: Cookies, visit: str) -> Send:
    """Sends pages with the cookie that their `csrf` is signed for."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            if headers.get("content-type", "").startswith("text/html"):
                given = Response()
                jar.set(given, "visit", visit)
                headers.append("set-cookie", given.headers["set-cookie"])
        await send(message)

    return sending
