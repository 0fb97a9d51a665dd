"""Only our own pages, and programs with a token, may change anything."""

from __future__ import annotations

import hmac

from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from prefloop.web import bodies
from prefloop.web.limits import Limits

SAFE = ("GET", "HEAD")


class OwnForms:
    """Refuses a request of another method than SAFE that was not made by a page of ours, or by an API token.

    Reads what it brings, and puts it into the request's state: `form` (fields by name) and `json` (None without).
    Files are in `form` alone; other bodies can be read again."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in SAFE:
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        _check_origin(request)
        kind = bodies.media_type(request)
        if kind not in (bodies.FORM, bodies.FILES, bodies.JSON) and (kind or not _empty(request)):
            raise HTTPException(403, "Only forms and JSON are taken here.")
        limit = self._limits.of_body(request)
        if bodies.announced(request) > limit + bodies.SPARE:
            raise bodies.too_large(limit)
        intake = bodies.Intake(receive, limit, self._limits.patience)
        state, form = scope["state"], FormData()
        state["json"] = None
        try:
            if kind == bodies.FILES:
                form = await Request(scope, intake).form(max_files=bodies.MAX_FILES, max_fields=bodies.MAX_FIELDS)
            else:
                body = await bodies.read(intake)
                receive = bodies.again(body, receive)
                if kind == bodies.FORM:
                    form = await Request(scope, bodies.again(body, receive)).form(max_fields=bodies.MAX_FIELDS)
                elif kind == bodies.JSON:
                    state["json"] = bodies.parse_json(body)
            state["form"] = form
            _check_token(request)
            await self._app(scope, receive, send)
        finally:
            await form.close()


def field(request: Request, name: str) -> str:
    """What a field of the form holds; empty where there is none."""
    value = request.state.form.get(name, "")
    return value if isinstance(value, str) else ""


def own_origin(request: Request) -> str:
    """What a browser calls this server: by the proxy that it came through, where there is one."""
    return str(request.state.origin or f"{request.url.scheme}://{request.headers['host']}").lower()


def _check_origin(request: Request) -> None:
    """Origin and Sec-Fetch-Site come from the browser, whatever the page wants; programs send neither."""
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site", "same-origin")
    if site not in ("same-origin", "none") or (origin is not None and origin.lower() != own_origin(request)):
        raise HTTPException(403, "This came from another site, so nothing was done.")


def _check_token(request: Request) -> None:
    by_program = request.state.account is not None and request.state.session is None
    given = request.headers.get("x-csrf-token") or field(request, "csrf")
    if not by_program and not hmac.compare_digest(given.encode("utf-8", "replace"), request.state.csrf.encode()):
        raise HTTPException(403, "You signed in or out since this page was made, so nothing was done; reload it.")


def _empty(request: Request) -> bool:
    return bodies.announced(request) == 0 and "transfer-encoding" not in request.headers
