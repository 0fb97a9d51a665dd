"""Whether the server can keep labels: for whoever watches over it."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from prefloop.web.templating import workspace


def health(request: Request) -> Response:
    reason = workspace(request).health.reason()
    return JSONResponse({"ok": not reason, "reason": reason}, 503 if reason else 200)


ROUTES = [Route("/health", health)]
