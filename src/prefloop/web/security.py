"""The checks that stand before every page, in one place, and who may open which."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from prefloop.types import PrefloopError
from prefloop.web.errors import Caught, answer, wants_json
from prefloop.web.forms import SAFE, OwnForms
from prefloop.web.headers import Hardened, KnownHosts
from prefloop.web.identity import Identity
from prefloop.web.limits import Limits, Pieces, Rates
from prefloop.web.workspace import Workspace

__all__ = ["Limits", "allowed", "local_path", "protect"]
Endpoint = TypeVar("Endpoint", bound=Callable[[Request], Response | Awaitable[Response]])


def protect(app: Starlette, workspace: Workspace, limits: Limits) -> Starlette:
    """Put the checks before an app, the first one last."""
    app.add_exception_handler(HTTPException, answer)
    app.add_exception_handler(PrefloopError, answer)
    app.add_middleware(OwnForms, limits=limits)
    app.add_middleware(Rates, limits=limits)
    app.add_middleware(Identity, workspace=workspace, secure=limits.secure)
    app.add_middleware(KnownHosts, names=limits.names)
    app.add_middleware(Caught)
    app.add_middleware(Hardened, secure=limits.secure, origin=limits.origin)
    app.add_middleware(Pieces)
    return app


def allowed(role: str) -> Callable[[Endpoint], Endpoint]:
    """An endpoint for accounts that may do what `role` may. Others are sent to the login, or told that there is no such
    page. The endpoint's attribute `role` tells."""

    def wrap(endpoint: Endpoint) -> Endpoint:
        guarded: Any
        call: Any = endpoint
        if inspect.iscoroutinefunction(endpoint):

            @functools.wraps(endpoint)
            async def guarded(request: Request) -> Response:
                response: Response = _turn_away(request, role) or await call(request)
                return response
        else:

            @functools.wraps(endpoint)
            def guarded(request: Request) -> Response:
                response: Response = _turn_away(request, role) or call(request)
                return response

        guarded.role = role
        made: Endpoint = guarded
        return made

    return wrap


def local_path(address: str) -> str:
    """An address of this server that was asked for; the start page where it leads anywhere else."""
    plain = address.isascii() and address.isprintable() and "\\" not in address
    return address if plain and address.startswith("/") and not address.startswith("//") else "/"


def _turn_away(request: Request, role: str) -> Response | None:
    account = request.state.account
    if account is None:
        if request.method not in SAFE or wants_json(request):
            raise HTTPException(401, "Sign in first; what you wrote is still in the page that you came from.")
        wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return RedirectResponse(f"/login?next={quote(wanted, safe='/')}", 303)
    if not account.may(role):
        raise HTTPException(404, "There is no such page.")
    return None
