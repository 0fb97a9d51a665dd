"""Coming in and going out: the login, and links that work once."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from prefloop.store.accounts import TooManyTriesError
from prefloop.store.campaigns import MissingError
from prefloop.types import Json, PrefloopError
from prefloop.web.errors import sentence
from prefloop.web.forms import field
from prefloop.web.identity import address, cookies, signed_in
from prefloop.web.security import local_path
from prefloop.web.templating import page, workspace

_HOUR = 3600
_USED_UP = "This link was used, has expired or was withdrawn; ask for a new one."


def login_page(request: Request) -> Response:
    wanted = local_path(request.query_params.get("next", "/"))
    if request.state.account is not None:
        return RedirectResponse(wanted, 303)
    return page(request, "entry/login.html", next=wanted, name="", error="")


def login(request: Request) -> Response:
    name, wanted = field(request, "name").strip(), local_path(field(request, "next"))
    status, error = 401, "There is no account with this name and this password."
    headers: dict[str, str] = {}
    try:
        account = workspace(request).accounts.check_password(name, field(request, "password"), address(request))
        if account is not None:
            return signed_in(request, account.name, wanted)
    except TooManyTriesError as refused:
        status, error, headers = 429, str(refused), {"retry-after": refused.seconds}
    response = page(request, "entry/login.html", status=status, next=wanted, name=name, error=error)
    response.headers.update(headers)
    return response


def logout(request: Request) -> Response:
    if request.state.session is not None:
        workspace(request).sessions.end(request.state.session.id)
    response = RedirectResponse("/login", 303)
    cookies(request).drop(response, "session")
    return response


def link(request: Request) -> Response:
    """A link was opened, perhaps by a mail program that looks ahead: nothing happens but that the browser keeps it in a
    cookie, and no longer in its address."""
    token = request.path_params["token"]
    if workspace(request).invites.find(token) is None:
        raise MissingError(_USED_UP)
    response = RedirectResponse("/invite", 303)
    cookies(request).set(response, "link", token, _HOUR)
    return response


def invite_page(request: Request) -> Response:
    return _invite(request, status=200, name="", error="")


def invite(request: Request) -> Response:
    name, password, token = field(request, "name").strip(), field(request, "password"), cookies(request).get("link")
    try:
        account = workspace(request).invites.redeem(token, name, password=password or None)
    except MissingError:
        raise
    except PrefloopError as error:
        return _invite(request, status=400, name=name, error=sentence(error))
    response = signed_in(request, account.name, "/")
    cookies(request).drop(response, "link")
    return response


def _invite(request: Request, *, status: int, **shown: Json) -> Response:
    found = workspace(request).invites.find(cookies(request).get("link"))
    if found is None:
        raise MissingError(_USED_UP)
    return page(request, "entry/invite.html", status=status, invite=found, **shown)


ROUTES = [
    Route("/login", login_page),
    Route("/login", login, methods=["POST"]),
    Route("/logout", logout, methods=["POST"]),
    Route("/invite/{token}", link),
    Route("/start/{token}", link),
    Route("/invite", invite_page),
    Route("/invite", invite, methods=["POST"]),
]
