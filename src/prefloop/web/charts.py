"""Charts by plotly in frames that hold numbers only.

    figure = charts.line("Labels per hour", [Series("all", hours, counts)], x="time", y="number")

gives a <figure>: caption, frame, a numbered legend and the same numbers as a table. A page that shows one loads
`static("charts.js")` as a module and links `static("charts.css")`. The script hands each frame the numbers of its
`data-chart`, with words of the fixed lists below. No name or title goes over, because the frame's policy lets plotly
set styles; it lets nothing be sent anywhere. Lines, bars, rows and columns are numbered there, and the legend on the
page says who is who.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Literal

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from prefloop.types import Json
from prefloop.web.templating import fragment, page, static
from prefloop.web.visible import plain

Unit = Literal["number", "share", "signed", "time"]
"""number: as it is. share: 0 to 1, shown in percent. signed: -1 to 1, such as alpha. time: seconds since 1970."""
POINTS = 400
"""A line has at most about so many; of more, each bucket keeps its lowest and its highest."""

Values = Sequence[float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line. low, high: a band around it."""

    name: str
    x: Sequence[float]
    y: Values
    low: Values = ()
    high: Values = ()


def line(
    title: str,
    series: Sequence[Series],
    *,
    x: Unit = "number",
    y: Unit = "number",
    x_name: str = "",
    reference: float | None = None,
    log: bool = False,
) -> Markup:
    """Lines over a common axis. x_name: what x counts, such as "step". reference: a level to compare with."""
    thinned = [_thin(one) for one in series]
    data = {"kind": "line", "x": x, "y": y, "reference": reference, "log": log, "series": [_line(s) for s in thinned]}
    band = any(one.low for one in thinned)
    rows = [
        [str(number), _text(at, x), *(_text(value, y) for value in cells), *([""] * (2 * band + 1 - len(cells)))]
        for number, one in enumerate(thinned, 1)
        for at, *cells in zip(one.x, one.y, *((one.low, one.high) if one.low else ()), strict=True)
    ]
    head = ["line", "time (UTC)" if x == "time" else plain(x_name or "x"), "value", *(["low", "high"] if band else [])]
    return _figure(title, data, [one.name for one in series], head, rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Lines with an axis of their own. reference: a level to compare with."""

    series: Sequence[Series]
    y: Unit = "number"
    reference: float | None = None


def panels(title: str, shown: Sequence[Panel], *, x_name: str, mark: float | None = None) -> Markup:
    """Panels one below the other over a common axis, which counts `x_name`; what lies after `mark` is set off."""
    data = {
        "kind": "panels",
        "x": "number",
        "y": "number",
        "mark": mark,
        "panels": [{"y": p.y, "reference": p.reference, "series": [_line(_thin(s)) for s in p.series]} for p in shown],
    }
    lines = [(one, panel.y) for panel in shown for one in panel.series]
    rows = [
        [str(number), _text(at, "number"), _text(value, unit)]
        for number, (one, unit) in enumerate(lines, 1)
        for at, value in zip(one.x, one.y, strict=True)
    ]
    return _figure(title, data, [one.name for one, _ in lines], ["line", x_name, "value"], rows)


def bars(
    title: str,
    names: Sequence[str],
    values: Values,
    *,
    low: Values = (),
    high: Values = (),
    unit: Unit = "number",
    reference: float | None = None,
) -> Markup:
    """One bar a name; with `low` and `high` a dot with its interval instead."""
    ends = {"low": _plain(low), "high": _plain(high)} if low else {}
    data = {"kind": "bars", "y": unit, "reference": reference, "values": _plain(values), **ends}
    rows = [
        [str(number), plain(name), *(_text(value, unit) for value in cells)]
        for number, (name, *cells) in enumerate(zip(names, values, *((low, high) if low else ()), strict=True), 1)
    ]
    return _figure(title, data, names, ["number", "name", "value", *(["low", "high"] if low else [])], rows)


def heatmap(
    title: str, rows: Sequence[str], columns: Sequence[str], values: Sequence[Values], *, unit: Unit = "share"
) -> Markup:
    """values[row][column]. Where rows and columns are the same people or things, one legend names both."""
    data = {"kind": "heatmap", "y": unit, "values": [_plain(row) for row in values]}
    same = list(rows) == list(columns)
    legend = rows if same else [*(f"row: {name}" for name in rows), *(f"column: {name}" for name in columns)]
    table = [[plain(name), *(_text(value, unit) for value in cells)] for name, cells in zip(rows, values, strict=True)]
    return _figure(title, data | {"apart": not same}, legend, ["", *map(plain, columns)], table)


def _figure(
    title: str, data: Json, legend: Sequence[str], head: Sequence[str], rows: Sequence[Sequence[str]]
) -> Markup:
    numbers = json.dumps(data, allow_nan=False, separators=(",", ":"))
    given = {"title": title, "data": numbers, "legend": legend, "coloured": data["kind"] != "heatmap"}
    return fragment("chart.html", **given, head=head, rows=rows, frame=_frame_address())


def _line(one: Series) -> dict[str, Json]:
    band = {"low": _plain(one.low), "high": _plain(one.high)} if one.low else {}
    return {"x": _plain(one.x), "y": _plain(one.y), **band}


def _thin(one: Series) -> Series:
    if len(one.x) <= POINTS:
        return one
    width = math.ceil(2 * len(one.x) / POINTS)
    kept: set[int] = {0, len(one.x) - 1}
    for start in range(0, len(one.x), width):
        bucket = [i for i in range(start, min(start + width, len(one.x))) if _finite(one.y[i]) is not None]
        if bucket:
            kept |= {min(bucket, key=lambda i: one.y[i] or 0.0), max(bucket, key=lambda i: one.y[i] or 0.0)}
    order = sorted(kept)
    low, high = ([values[i] for i in order] if values else [] for values in (one.low, one.high))
    return Series(name=one.name, x=[one.x[i] for i in order], y=[one.y[i] for i in order], low=low, high=high)


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _plain(values: Values) -> list[float | None]:
    return [None if (found := _finite(value)) is None else float(f"{found:.12g}") for value in values]


def _text(value: float | None, unit: Unit) -> str:
    found = _finite(value)
    if found is None:
        return "-"
    if unit == "time":
        return datetime.fromtimestamp(found, UTC).strftime("%Y-%m-%d %H:%M")
    if unit == "share":
        return f"{100 * found:.1f} %"
    return f"{found:.3f}" if unit == "signed" else f"{found:.6g}"


@cache
def _plotly() -> tuple[str, bytes]:
    """The library's address, which changes with its content, and its content."""
    content = importlib.resources.files("plotly").joinpath("package_data", "plotly.min.js").read_bytes()
    return f"/charts/{hashlib.sha256(content).hexdigest()[:16]}/plotly.min.js", content


@cache
def _frame_address() -> str:
    """The frame's address, which changes with what it loads."""
    parts = _plotly()[0] + static("chart-frame.js")
    return f"/charts/{hashlib.sha256(parts.encode()).hexdigest()[:16]}/frame"


def _frame(request: Request) -> Response:
    return page(request, "chart-frame.html", plotly=_plotly()[0])


def _library(request: Request) -> Response:
    address, content = _plotly()
    if request.url.path != address:
        return PlainTextResponse("There is no such file.", 404)
    headers = {"cache-control": "public, max-age=31536000, immutable"}
    return Response(content, media_type="text/javascript", headers=headers)


ROUTES = [Route("/charts/{hash}/frame", _frame), Route("/charts/{hash}/plotly.min.js", _library)]
