"""The pages of runs in Chromium: charts are drawn, and go on while a run does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from prefloop.configs.ppo import PPOConfig
from prefloop.run import Run
from tests.web.run_folders import write_run
from tests.web.serving import Server


@contextmanager
def seated(server: Server, browser: Browser, role: str, **named: object) -> Iterator[tuple[Page, list[str]]]:
    """A page in a browser in which somebody is signed in, and what its console complains about."""
    context = browser.new_context(base_url=server.url, **named)  # type: ignore[arg-type]
    visitor = server.visitor(role)
    context.add_cookies([{"name": k, "value": v, "url": server.url} for k, v in visitor.cookies.items()])  # type: ignore[arg-type]
    page, said = context.new_page(), list[str]()
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("console", lambda one: said.append(one.text) if one.type in ("error", "warning") else None)
    page.set_default_timeout(60_000)
    try:
        yield page, said
    finally:
        context.close()


def drawn(page: Page, number: int = 0) -> list[list[float]]:
    """The x values of the lines that the frame of a chart really shows."""
    frame = page.locator("iframe.chart").nth(number).element_handle().content_frame()
    assert frame is not None
    frame.wait_for_selector(".main-svg")
    return frame.evaluate("document.getElementById('chart').data.map((trace) => trace.x)")


def test_the_chart_shows_every_line_and_the_stretch_of_over_optimisation(server: Server, browser: Browser) -> None:
    write_run(server.workspace.folder / "runs" / "try")
    with seated(server, browser, "reviewer") as (page, said):
        page.goto("/runs")
        page.get_by_role("link", name="try", exact=True).click()
        assert [len(xs) for xs in drawn(page)] == [60] * 4
        expect(page.get_by_role("alert")).to_contain_text("Over-optimisation")
        frame = page.locator("iframe.chart").first.element_handle().content_frame()
        assert frame is not None
        shapes = frame.evaluate("document.getElementById('chart').layout.shapes")
        assert [shape["type"] for shape in shapes] == ["line", "rect"] and 15 < shapes[1]["x0"] < 45
        page.get_by_role("link", name="Next").click()
        expect(page.get_by_text("Prompt 2 of 6")).to_be_visible()
        page.get_by_role("link", name="base model").click()
        expect(page.get_by_role("region", name="Before: base model")).to_contain_text("base says")
        page.get_by_role("textbox", name="Prompt").fill("6")
        page.get_by_role("button", name="Go").click()
        expect(page.get_by_text("Prompt 6 of 6")).to_be_visible()
        assert said == []


def test_a_page_follows_a_run_that_goes_on_and_ends(server: Server, browser: Browser) -> None:
    path = write_run(server.workspace.folder / "runs" / "live", done=20, finished=False) / "ppo"
    config = PPOConfig(out=str(path), steps=60)
    (path / "config.json").write_text(config.model_dump_json())
    with Run.open(path, config, stage="ppo", parents={}) as run, seated(server, browser, "reviewer") as (page, said):
        page.goto("/runs/live")
        assert [len(xs) for xs in drawn(page)] == [20] * 4
        expect(page.locator("[data-step]")).to_have_text("20")
        for step in range(20, 23):
            values = {"reward/score": 9.0, "kl/response": 5.0, "kl/target": 6.0, "gold/win_rate": 0.9}
            run.log(step, values | {"policy/entropy": 1.0, "length/tokens": 40.0, "length/stopped_share": 1.0})
        expect(page.locator("[data-step]")).to_have_text("23")
        page.wait_for_function(
            "JSON.parse(document.querySelector('iframe.chart').dataset.chart).panels[0].series[0].x.at(-1) === 22"
        )
        frame = page.locator("iframe.chart").first.element_handle().content_frame()
        assert frame is not None
        frame.wait_for_function("document.getElementById('chart').data[0].x.at(-1) === 22")
        assert [xs[-1] for xs in drawn(page)] == [22] * 4 and [len(xs) for xs in drawn(page, 1)] == [23] * 3
        (path / "result.json").write_text(json.dumps({"seconds": 1.0, "kl_last_third": 5.0}))
        expect(page.get_by_role("row", name="ppo")).to_contain_text("finished")
        assert said == []


def test_axe_finds_nothing_and_nothing_is_cut_off(server: Server, browser: Browser) -> None:
    name = "a-rather-long-name-of-a-run-that-does-not-fit-on-a-phone"
    write_run(server.workspace.folder / "runs" / name)
    with seated(server, browser, "reviewer") as (page, said):
        for place in ("/runs", f"/runs/{name}"):
            page.goto(place)
            for scheme, width in (("light", 1280), ("dark", 320)):
                page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
                page.set_viewport_size({"width": width, "height": 800})
                found = Axe().run(page).response["violations"]
                assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == [], (place, scheme)
                assert page.evaluate("document.documentElement.scrollWidth") <= width, (place, width)
        assert said == []
