"""The web app: a list of routes over a workspace, behind the checks of `security`."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from prefloop.web import charts, templating
from prefloop.web.pages import (
    campaign,
    entry,
    health,
    home,
    items,
    label,
    labelers,
    me,
    people,
    redteam,
    review,
    runs,
    setup,
    transfer,
)
from prefloop.web.security import Limits, protect
from prefloop.web.workspace import Workspace

PAGES = (
    entry,
    health,
    home,
    me,
    people,
    setup,
    campaign,
    labelers,
    items,
    review,
    transfer,
    label,
    redteam,
    runs,
    charts,
    templating,
)


def make_app(workspace: Workspace, limits: Limits) -> Starlette:
    """An ASGI application that serves one workspace."""
    routes = [route for module in PAGES for route in module.ROUTES]
    app = Starlette(routes=[*routes, Route("/{path:path}", _nothing)])
    app.state.workspace = workspace
    return protect(app, workspace, limits)


async def _nothing(request: Request) -> Response:
    return templating.page(request, "message.html", status=404, title="Not here", text="There is no such page.")
