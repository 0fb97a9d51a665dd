"""Where everybody arrives: their campaigns, or for a first visitor how to begin."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from prefloop.web.security import allowed
from prefloop.web.templating import page, workspace


@allowed("labeler")
def home(request: Request) -> Response:
    return page(request, "home.html", campaigns=workspace(request).campaigns.all())


ROUTES = [Route("/", home)]
