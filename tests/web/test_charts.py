from __future__ import annotations

import json
import math
import re
from html import unescape
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.web import charts
from prefloop.web.charts import POINTS, Series

EVIL = "<script>alert(1)</script>"


def data(figure: str) -> Any:
    return json.loads(unescape(re.findall(r'data-chart="([^"]*)"', figure)[0]))


def cells(figure: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", figure, re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(?:<bdi>)?(.*?)(?:</bdi>)?</t[hd]>", row, re.DOTALL) for row in rows]


def words(value: Any) -> set[str]:
    """All text in a JSON value but the names of fields."""
    if isinstance(value, dict):
        return set().union(*map(words, value.values())) if value else set()
    if isinstance(value, list):
        return set().union(*map(words, value)) if value else set()
    return {value} if isinstance(value, str) else set()


def test_a_line_with_its_numbers_as_a_table() -> None:
    one = Series(name="ann", x=[0, 3600], y=[0.5, None], low=[0.25, None], high=[0.75, math.nan])
    figure = charts.line("Agreement", [one, Series(name="bob", x=[0], y=[1.0])], x="time", y="share", reference=0.5)
    assert data(figure) == {
        "kind": "line",
        "x": "time",
        "y": "share",
        "reference": 0.5,
        "log": False,
        "series": [
            {"x": [0.0, 3600.0], "y": [0.5, None], "low": [0.25, None], "high": [0.75, None]},
            {"x": [0.0], "y": [1.0]},
        ],
    }
    assert cells(figure) == [
        ["line", "time (UTC)", "value", "low", "high"],
        ["1", "1970-01-01 00:00", "50.0 %", "25.0 %", "75.0 %"],
        ["1", "1970-01-01 01:00", "-", "-", "-"],
        ["2", "1970-01-01 00:00", "100.0 %", "", ""],
    ]


def test_bars_and_a_heatmap() -> None:
    figure = charts.bars("By slice", ["x", "y"], [0.5, None], low=[0.4, None], high=[0.6, None], unit="signed")
    assert data(figure)["values"] == [0.5, None] and data(figure)["low"] == [0.4, None]
    assert cells(figure)[1:] == [["1", "x", "0.500", "0.400", "0.600"], ["2", "y", "-", "-", "-"]]
    figure = charts.heatmap("Pairs", ["ann", "bob"], ["ann", "bob"], [[None, 0.75], [0.75, None]])
    assert data(figure) == {"kind": "heatmap", "y": "share", "values": [[None, 0.75], [0.75, None]], "apart": False}
    assert cells(figure) == [["", "ann", "bob"], ["ann", "-", "75.0 %"], ["bob", "75.0 %", "-"]]


@pytest.mark.parametrize("kind", ["line", "bars", "heatmap"])
def test_no_name_reaches_a_frame(kind: str) -> None:
    figure = {
        "line": lambda: charts.line(
            EVIL, [Series(name=EVIL, x=[1], y=[2]), Series(name=EVIL, x=[1], y=[2])], x_name=EVIL
        ),
        "bars": lambda: charts.bars(EVIL, [EVIL, EVIL], [1, 2]),
        "heatmap": lambda: charts.heatmap(EVIL, [EVIL], [EVIL, "x"], [[1, 2]]),
    }[kind]()
    assert words(data(figure)) <= {"line", "bars", "heatmap", "number", "share", "signed", "time"}
    assert "<script" not in figure and EVIL in unescape(figure)


@given(st.integers(1, 3000), st.integers(0, 5))
def test_a_long_line_keeps_its_ends_and_its_extremes(count: int, seed: int) -> None:
    values = [math.sin(seed + i * 0.37) * (1 + i % 17) for i in range(count)]
    shown = data(charts.line("x", [Series(name="a", x=range(count), y=values)]))["series"][0]
    assert len(shown["x"]) <= POINTS + 2 and shown["x"] == sorted(set(shown["x"]))
    assert {0.0, float(count - 1)} <= set(shown["x"])
    assert max(shown["y"]) == pytest.approx(max(values)) and min(shown["y"]) == pytest.approx(min(values))
    assert all(y == pytest.approx(values[int(x)]) for x, y in zip(shown["x"], shown["y"], strict=True))


def test_numbers_that_are_none_stay_gaps() -> None:
    shown = data(charts.line("x", [Series(name="a", x=range(3), y=[math.inf, -math.inf, math.nan])]))
    assert shown["series"][0]["y"] == [None, None, None]
