"""One's own account: password, API token, and where one is signed in."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from prefloop.types import PrefloopError
from prefloop.web.errors import sentence
from prefloop.web.forms import field
from prefloop.web.identity import address, signed_in
from prefloop.web.security import allowed
from prefloop.web.templating import page, workspace


@allowed("labeler")
def me(request: Request) -> Response:
    return _me(request)


@allowed("labeler")
def set_password(request: Request) -> Response:
    """A new password ends all sessions, and begins this browser's anew."""
    accounts, account = workspace(request).accounts, request.state.account
    _in_browser(request)
    try:
        if account.has_password and not accounts.check_password(
            account.name, field(request, "current"), address(request)
        ):
            raise PrefloopError("This is not your current password.")
        accounts.set_password(account.name, field(request, "password"), by=account.name)
    except PrefloopError as error:
        return _me(request, status=400, error=sentence(error))
    return signed_in(request, account.name, "/me")


@allowed("labeler")
def new_token(request: Request) -> Response:
    _in_browser(request)
    name = request.state.account.name
    return _me(request, token=workspace(request).accounts.new_token(name, by=name))


@allowed("labeler")
def drop_token(request: Request) -> Response:
    name = request.state.account.name
    workspace(request).accounts.drop_token(name, by=name)
    return RedirectResponse("/me", 303)


@allowed("labeler")
def end_session(request: Request) -> Response:
    sessions, name = workspace(request).sessions, request.state.account.name
    for session in sessions.of(name):
        if session.id == field(request, "session"):
            sessions.end(session.id)
    return RedirectResponse("/me", 303)


@allowed("labeler")
def end_sessions(request: Request) -> Response:
    name = request.state.account.name
    workspace(request).sessions.end_all(name, by=name)
    return RedirectResponse("/login", 303)


def _in_browser(request: Request) -> None:
    if request.state.session is None:
        raise HTTPException(403, "A token cannot make a password or a token; sign in with a browser.")


def _me(request: Request, *, status: int = 200, error: str = "", token: str = "") -> Response:
    found = workspace(request)
    who = found.accounts.get(request.state.account.name)
    session = request.state.session
    return page(
        request,
        "entry/me.html",
        status=status,
        who=who,
        sessions=found.sessions.of(who.name),
        current=session.id if session else "",
        now=found.clock(),
        error=error,
        token=token,
    )


ROUTES = [
    Route("/me", me),
    Route("/me/password", set_password, methods=["POST"]),
    Route("/me/token", new_token, methods=["POST"]),
    Route("/me/token/drop", drop_token, methods=["POST"]),
    Route("/me/sessions/end", end_session, methods=["POST"]),
    Route("/me/sessions/end-all", end_sessions, methods=["POST"]),
]
