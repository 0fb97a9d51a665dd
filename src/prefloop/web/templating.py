"""Pages from templates, and the fixed list of files that they may ask for."""

from __future__ import annotations

import hashlib
import hmac
import mimetypes
from datetime import UTC, datetime
from pathlib import Path

import jinja2
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from prefloop.types import Json
from prefloop.web import code, render, visible
from prefloop.web.workspace import Workspace

_HERE = Path(__file__).parent
_FILES = {path.name: path.read_bytes() for path in sorted((_HERE / "static").iterdir())}
_FILES["highlight.css"] = code.highlight_css().encode()
_HASHES = {name: hashlib.sha256(content).hexdigest()[:16] for name, content in _FILES.items()}


def workspace(request: Request) -> Workspace:
    """The workspace that this server works on."""
    found: Workspace = request.app.state.workspace
    return found


def static(name: str) -> str:
    """The address of a file of this package, which changes with its content."""
    return f"/static/{_HASHES[name]}/{name}"


def page(request: Request, template: str, *, status: int = 200, **context: Json) -> HTMLResponse:
    """A page, with `account`, `csrf` and `nonce` of the request at hand, and `owner`, a mark of that account of this
    workspace, by which scripts keep what is somebody's from others at the same browser."""
    state = request.state
    given = {"account": state.account, "csrf": state.csrf, "nonce": state.nonce, "path": request.url.path}
    if state.account is not None:
        mark = hmac.new(workspace(request).key, b"owner" + state.account.name.encode(), hashlib.sha256)
        given["owner"] = mark.hexdigest()[:16]
    text = _templates.get_template(template).render(**given, **context)
    return HTMLResponse(text.encode(errors="replace"), status)  # lone surrogates of a text cannot be sent


def fragment(template: str, **context: Json) -> Markup:
    """A part of a page."""
    return Markup(_templates.get_template(template).render(**context))


async def _static(request: Request) -> Response:
    name = request.path_params["name"]
    if _HASHES.get(name) != request.path_params["hash"]:
        return PlainTextResponse("There is no such file.", 404)
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return Response(_FILES[name], media_type=kind, headers={"cache-control": "public, max-age=31536000, immutable"})


ROUTES = [Route("/static/{hash}/{name}", _static)]


def _duration(seconds: float | None) -> str:
    """90 -> 1 min 30 s"""
    if seconds is None:
        return "-"
    whole = round(seconds)
    parts = ((whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s"))
    shown = [f"{count} {unit}" for count, unit in parts if count][:2]
    return " ".join(shown) or "0 s"


def _percent(share: float | None) -> str:
    """0.123 -> 12 %"""
    return "-" if share is None or share != share else f"{100 * share:.0f} %"


def _moment(seconds: float | None) -> str:
    """1764111000 -> 2025-11-25 22:50, in UTC"""
    return "-" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def _bytes(count: int) -> str:
    """1500000 -> 1.5 MB"""
    size, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.3g} {units[0]}"


_templates = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_HERE / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.globals.update(static=static)
_templates.filters.update(duration=_duration, percent=_percent, moment=_moment, bytes=_bytes)
_templates.filters.update(markdown=render.markdown, plain=visible.plain, folded=render.folded)
