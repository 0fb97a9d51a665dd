"""What goes wrong, as a page or as JSON: the sentence of what a user can mend, and nothing about what they cannot."""

from __future__ import annotations

import logging
import secrets
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prefloop.store.accounts import TooManyTriesError
from prefloop.store.campaigns import MissingError
from prefloop.store.db import DatabaseError
from prefloop.store.passwords import BusyError
from prefloop.types import PrefloopError
from prefloop.web import templating

_log = logging.getLogger("prefloop.web")


class Caught:
    """Answers what the app, or a check before it, raises."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as error:
            if begun or scope["type"] != "http":
                raise
            await answer(Request(scope), error)(scope, receive, send)


def answer(request: Request, error: Exception) -> Response:
    """The response to an error."""
    headers = {}
    match error:
        case HTTPException():
            status, text, headers = error.status_code, error.detail, dict(error.headers or {})
        case TooManyTriesError():
            status, text, headers = 429, str(error), {"retry-after": error.seconds}
        case BusyError():
            status, text, headers = 503, str(error), {"retry-after": "3"}
        case MissingError():
            status, text = 404, str(error)
        case DatabaseError():
            _log.error("%s", error)
            status, text = 503, f"Nothing was saved, because {error.public}. Keep what you wrote, and try again."
        case PrefloopError():
            status, text = 400, str(error)
        case _:
            code = secrets.token_hex(4)
            _log.error("Error %s at %s", code, request.method, exc_info=error)
            status, text = 500, f"Something broke that should not; its code in the server's output is {code}."
    if wants_json(request):
        return JSONResponse({"error": text}, status, headers)
    title = HTTPStatus(status).phrase.capitalize()
    response = templating.page(request, "message.html", status=status, title=title, text=text)
    response.headers.update(headers)
    return response


def sentence(error: PrefloopError) -> str:
    """What to show beside a form of an error that its sender can mend; raises one that is not theirs again."""
    if isinstance(error, DatabaseError | BusyError):
        raise error
    return str(error)


def wants_json(request: Request) -> bool:
    """Whether a program asks, or a script of a page."""
    wanted = request.headers.get("accept", "")
    return "application/json" in wanted or "authorization" in request.headers
