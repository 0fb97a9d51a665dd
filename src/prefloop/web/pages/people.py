"""Who may come in, for admins: invitations, roles, groups, pauses, links and tokens."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from prefloop.store.accounts import ROLES
from prefloop.types import PrefloopError
from prefloop.web.errors import sentence
from prefloop.web.forms import field, own_origin
from prefloop.web.security import allowed
from prefloop.web.templating import page, workspace
from prefloop.web.workspace import Workspace

_Act = Callable[[Workspace, Request, str], None]


@allowed("admin")
def people(request: Request) -> Response:
    return _people(request)


@allowed("admin")
def invite(request: Request) -> Response:
    role, group = field(request, "role"), field(request, "group").strip()
    try:
        token = workspace(request).invites.new(role, group, by=request.state.account.name)
    except PrefloopError as error:
        return _people(request, status=400, error=sentence(error))
    return _people(request, secret=_address(request, token), secret_of=f"the new {role}'s link, for 7 days")


@allowed("admin")
def link(request: Request) -> Response:
    name = field(request, "name")
    token = workspace(request).invites.again(name, by=request.state.account.name)
    return _people(request, secret=_address(request, token), secret_of=f"{name}'s link, for 24 hours")


@allowed("admin")
def new_token(request: Request) -> Response:
    name = field(request, "name")
    token = workspace(request).accounts.new_token(name, by=request.state.account.name)
    return _people(request, secret=token, secret_of=f"{name}'s API token")


def _acting(act: _Act) -> Callable[[Request], Response]:
    """An endpoint that does something to the account that the form names, and shows what came of it."""

    @allowed("admin")
    def endpoint(request: Request) -> Response:
        try:
            act(workspace(request), request, request.state.account.name)
        except PrefloopError as error:
            return _people(request, status=400, error=sentence(error))
        return RedirectResponse("/people", 303)

    return endpoint


def _role(found: Workspace, request: Request, by: str) -> None:
    found.accounts.set_role(field(request, "name"), field(request, "role"), by=by)


def _group(found: Workspace, request: Request, by: str) -> None:
    found.accounts.set_group(field(request, "name"), field(request, "group").strip(), by=by)


def _pause(found: Workspace, request: Request, by: str) -> None:
    found.accounts.pause(field(request, "name"), field(request, "paused") == "yes", by=by)


def _shut_out(found: Workspace, request: Request, by: str) -> None:
    found.accounts.shut_out(field(request, "name"), by=by)


def _drop_token(found: Workspace, request: Request, by: str) -> None:
    found.accounts.drop_token(field(request, "name"), by=by)


def _withdraw(found: Workspace, request: Request, by: str) -> None:
    found.invites.withdraw(field(request, "link"), by=by)


def _address(request: Request, token: str) -> str:
    return f"{own_origin(request)}/invite/{token}"


def _people(request: Request, *, status: int = 200, error: str = "", secret: str = "", secret_of: str = "") -> Response:
    """The page; `secret`: what is shown now and never again."""
    found = workspace(request)
    return page(
        request,
        "entry/people.html",
        status=status,
        people=found.accounts.all(),
        links=found.invites.open(),
        now=found.clock(),
        roles=ROLES,
        error=error,
        secret=secret,
        secret_of=secret_of,
    )


ROUTES = [
    Route("/people", people),
    Route("/people/invite", invite, methods=["POST"]),
    Route("/people/link", link, methods=["POST"]),
    Route("/people/token", new_token, methods=["POST"]),
    Route("/people/token/drop", _acting(_drop_token), methods=["POST"]),
    Route("/people/role", _acting(_role), methods=["POST"]),
    Route("/people/group", _acting(_group), methods=["POST"]),
    Route("/people/pause", _acting(_pause), methods=["POST"]),
    Route("/people/shut-out", _acting(_shut_out), methods=["POST"]),
    Route("/people/withdraw", _acting(_withdraw), methods=["POST"]),
]
