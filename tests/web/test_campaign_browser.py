"""The reviewers' pages in Chromium: every control is used, and what it did is looked up in the store."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from prefloop.store.answers import Answer
from prefloop.store.campaigns import Campaign, Item
from prefloop.store.overview import Filter
from prefloop.web import example, live
from tests.store.scene import comparison, plain
from tests.web.campaigns import campaign, collect, label, rows
from tests.web.serving import Server
from tests.web.test_setup import pairs

HOSTILE = [
    "<script>document.title='pwned'</script>",
    "<img src=x onerror=\"document.title='pwned'\">",
    "<svg onload=\"document.title='pwned'\">",
    "[link](javascript:document.title='pwned')",
    '"><form action="/example" method="post"><button>go</button></form>',
    "<style>body{display:none}</style><base href='https://example.com'>",
    "![x](https://example.com/pixel.png)",
    "\u202egnp.exe\u202c \u200b zero",
]


class Desk:
    """A browser in which somebody is signed in; what its console complains about, and what it asks other hosts for."""

    def __init__(self, server: Server, browser: Browser, role: str, **named: Any) -> None:
        visitor = server.visitor(role, name=named.pop("name", ""))
        self.name, self.said, self.foreign = visitor.name, [], []
        self._context = browser.new_context(base_url=server.url, **named)
        self._context.set_default_timeout(60_000)
        self._context.set_default_navigation_timeout(60_000)  # charts take some seconds where all cores are busy
        cookies = [{"name": key, "value": value, "url": server.url} for key, value in visitor.cookies.items()]
        self._context.add_cookies(cookies)  # type: ignore[arg-type]
        self.page = self._context.new_page()
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("console", lambda one: self._hear(one.text) if one.type in ("error", "warning") else None)
        self.page.on("request", lambda asked: None if asked.url.startswith(server.url) else self._note(asked.url))

    def _hear(self, text: str) -> None:
        if "Failed to load resource" not in text:  # a refused form is a page too
            self.said.append(text)

    def _note(self, address: str) -> None:
        self.foreign.append(address)

    def close(self) -> None:
        self._context.close()


@pytest.fixture
def sit(server: Server, browser: Browser) -> Iterator[Callable[..., Desk]]:
    """sit("reviewer"): a browser in which a reviewer is signed in."""
    made: list[Desk] = []

    def begin(role: str = "reviewer", **named: Any) -> Desk:
        made.append(Desk(server, browser, role, **named))
        return made[-1]

    yield begin
    for desk in made:
        desk.close()
        assert desk.said == [] and [one for one in desk.foreign if not one.startswith(("data:", "about:"))] == []


Sit = Callable[..., Desk]


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()
    page.wait_for_load_state()


def test_from_nothing_to_a_first_task_in_three_clicks(server: Server, sit: Sit) -> None:
    desk = sit("admin")
    desk.page.goto("/")
    press(desk.page, "Try it")
    press(desk.page, "Start")
    expect(desk.page.locator("#task")).to_be_visible()
    desk.page.locator("label", has=desk.page.locator('input[name="axis:overall"]')).first.click()
    desk.page.keyboard.press("Enter")
    desk.page.wait_for_url("**/known")
    (row,) = rows(server.workspace, "judgments")
    assert row["run"] == example.RUN and row["status"] == "gold"


def test_every_field_of_a_new_campaign(server: Server, sit: Sit) -> None:
    page = sit("admin").page
    page.goto("/new")
    page.get_by_label("Name", exact=True).fill("team/kind-1")
    for text, value in {
        "Title": "Which is kinder?",
        "Guidelines": "Be **kind**.",
        "Axes, one a line": "kindness\ntruth",
        "Flags, one a line": "rude",
        "Rubric, one box a line": "greets\nthanks",
    }.items():
        page.get_by_label(text, exact=True).fill(value)
    page.get_by_label("Rationale", exact=True).select_option("required")
    for text in ("Ties", "Better answers", "Feedback"):
        if text == "Feedback":
            for title in ("How many label each item", "Checks on the labels", "Order and leases"):
                page.locator("summary", has_text=title).click()
        page.get_by_label(text, exact=True).uncheck()
    page.get_by_label("Ratings", exact=True).check()
    numbers = {
        "Labels per item": "2",
        "Calibration pool, %": "10",
        "Labels per item of the pool": "4",
        "Tasks of the calibration round": "5",
        "Gold items, %": "2.5",
        "Items shown again, %": "3",
        "Uniform picks, %": "25",
        "Mix of prompts, one kind a line": "easy = 60\nhard = 40",
        "Lease in minutes": "7.5",
        "Longest hold in hours": "2",
    }
    for text, value in numbers.items():
        page.get_by_label(text, exact=True).fill(value)
    press(page, "Preview the guidelines")
    expect(page.locator("#preview strong")).to_have_text("kind")
    expect(page.get_by_label("Labels per item", exact=True)).to_have_value("2")
    press(page, "Create the campaign")
    made = server.workspace.campaigns.by_run("team/kind-1").config
    assert (made.title, made.guidelines, made.axes) == ("Which is kinder?", "Be **kind**.", ("kindness", "truth"))
    assert (made.flags, made.rubric, made.rationale) == (("rude",), ("greets", "thanks"), "required")
    assert (made.ties, made.ratings, made.edits, made.feedback) == (False, True, False, False)
    assert (made.overlap, made.shared_share, made.shared_overlap, made.calibration) == (2, 0.1, 4, 5)
    assert (made.gold_share, made.repeat_share, made.uniform_share) == (0.025, 0.03, 0.25)
    assert (made.mix, made.lease_minutes, made.hold_hours) == ({"easy": 0.6, "hard": 0.4}, 7.5, 2)


def test_mistakes_lead_to_their_fields(server: Server, sit: Sit) -> None:
    page = sit("admin").page
    page.goto("/new")
    page.get_by_label("Title", exact=True).fill("Mine")
    page.locator("summary", has_text="How many label each item").click()
    page.get_by_label("Labels per item", exact=True).fill("none")
    with page.expect_response("**/new") as told:
        press(page, "Create the campaign")
    assert told.value.status == 400
    page.get_by_role("link", name="Write a whole number.").click()
    expect(page.locator("#f-overlap")).to_be_focused()
    expect(page.locator("#f-overlap")).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_label("Title", exact=True)).to_have_value("Mine")


def test_items_come_from_each_source(server: Server, sit: Sit) -> None:
    work, page = server.workspace, sit("admin").page
    (work.folder / "here.jsonl").write_bytes(pairs(2))
    run = collect(work)
    page.goto("/new")
    page.get_by_label("Name", exact=True).fill("up")
    page.get_by_label("A file of this computer").set_input_files(
        {"name": "p.jsonl", "mimeType": "", "buffer": pairs(3)}
    )
    press(page, "Create the campaign")
    expect(page.locator(".good")).to_contain_text("3 new items")
    page.goto("/new")
    page.get_by_label("Name", exact=True).fill("path")
    page.get_by_label("A file in the workspace folder").fill("here.jsonl")
    press(page, "Create the campaign")
    expect(page.locator(".good")).to_contain_text("2 new items")
    page.goto("/")
    page.get_by_role("link", name=f"Label {run}").click()
    expect(page.get_by_label("Answers that a run collected")).to_have_value(run)
    page.locator("summary", has_text="Answers that come on their own").click()
    page.get_by_label("Comparisons to draw for each prompt").fill("1")
    page.get_by_label("Answers at a time").fill("4")
    press(page, "Create the campaign")
    expect(page.locator(".good")).to_contain_text("3 new items")
    ranked = work.overview.items("runs/quickstart/label", Filter())
    assert {len(row.comparison.items) for row in ranked} == {4}


def test_state_version_and_edit(server: Server, sit: Sit) -> None:
    made, desk = campaign(server.workspace), sit()
    page = desk.page
    page.goto(f"/c/{made.id}/manage")
    for button, state in (("Pause", "paused"), ("Close", "closed"), ("Open again", "open")):
        press(page, button)
        assert server.workspace.campaigns.by_run(made.run).state == state
        expect(page.locator("header .tag")).to_have_text(state)
    page.get_by_role("link", name="Edit").click()
    page.get_by_label("Title", exact=True).fill("Renamed")
    press(page, "Save as version 2")
    expect(page.locator("#v2")).to_be_visible()
    assert "Renamed" in page.locator(".changes").inner_text()
    now = server.workspace.campaigns.by_run(made.run)
    assert (now.version, now.config.title) == (2, "Renamed")
    assert rows(server.workspace, "campaign_versions")[-1]["by"] == desk.name


def test_the_list_is_filtered_and_turned(server: Server, sit: Sit) -> None:
    names = [f"i{n:02d}" for n in range(60)]
    items = [Item(comparison_id=name, mix="hard" if n % 2 else "easy") for n, name in enumerate(names)]
    made, page = campaign(server.workspace, names=names, items=items), sit().page
    page.goto(f"/c/{made.id}/manage")
    page.get_by_role("link", name="Items", exact=True).click()
    expect(page.locator("tbody tr")).to_have_count(50)
    page.get_by_role("link", name="Next 50").click()
    expect(page.locator("tbody tr")).to_have_count(10)
    page.get_by_role("link", name="To the first").click()
    expect(page.locator("tbody tr")).to_have_count(50)
    page.get_by_label("Mix").select_option("hard")
    press(page, "Show")
    expect(page.locator("tbody tr")).to_have_count(30)
    expect(page.get_by_label("Mix")).to_have_value("hard")
    page.get_by_label("State").select_option("done")
    press(page, "Show")
    expect(page.get_by_text("No item fits.")).to_be_visible()


def test_an_item_is_judged_held_and_moved(server: Server, sit: Sit) -> None:
    work = server.workspace
    work.accounts.create("ann", "labeler", by="prefloop")
    made = campaign(work, names=["a"], axes=("overall", "truth"), ratings=True, rubric=("cites",), overlap=2)
    task = work.desk.next_task(made, "ann")
    assert task is not None
    work.answers.submit(
        task.id, "ann", Answer(axes={"overall": -1, "truth": 0}, ratings=[4, 4], rationale="Hm."), nonce="a"
    )
    desk = sit()
    page = desk.page
    page.goto(f"/c/{made.id}/items/1")
    expect(page.locator("table")).to_contain_text("Hm.")
    page.get_by_role("group", name="overall").get_by_label("2 much").check()
    page.get_by_role("group", name="truth").get_by_label("1 barely").check()
    for place, rating in enumerate(("3", "7")):
        page.locator(f'select[name="rating:{place}"]').select_option(rating)
    page.get_by_role("group", name="Rubric").get_by_label("answer 2").check()
    page.get_by_label("both bad").check()
    page.get_by_label("Why", exact=True).first.fill("The second cites.")
    press(page, "Save my label")
    expect(page.locator("table")).to_contain_text("The second cites.")
    content = rows(work, "judgments")[-1]["content"]
    assert content["axes"] == {"overall": -4, "truth": 1} and content["ratings"] == [3, 7]
    assert content["checks"] == {"cites": [False, True]} and content["flags"] == ["both bad"]
    assert (content["annotator"], content["rationale"]) == (desk.name, "The second cites.")
    page.get_by_label("The highest go first").fill("3.5")
    press(page, "Set")
    assert work.overview.item(made.run, 1).priority == 3.5
    page.locator('input[name="reason"]').fill("a duplicate")
    press(page, "Hold back")
    expect(page.locator(".notice")).to_have_text("Held back: a duplicate")
    assert work.overview.item(made.run, 1).held == "a duplicate"
    press(page, "Hand it out again")
    assert work.overview.item(made.run, 1).held == ""


def test_a_ranking_is_judged(server: Server, sit: Sit) -> None:
    made, page = campaign(server.workspace, names=["a"], size=4), sit().page
    page.goto(f"/c/{made.id}/items/1")
    for place, rank in enumerate(("3", "1", "1", "2")):
        page.locator(f'select[name="rank:{place}"]').select_option(label=rank)
    press(page, "Save my label")
    expect(page.locator("table")).to_contain_text("2 = 3 > 4 > 1")
    assert rows(server.workspace, "judgments")[0]["content"]["ranking"] == [2, 0, 0, 1]


def test_files_go_in_and_out(server: Server, sit: Sit) -> None:
    work = server.workspace
    work.accounts.create("ann", "labeler", by="prefloop")
    made, page = campaign(work, names=["a"]), sit().page
    label(work, made, "ann", -3)
    page.goto(f"/c/{made.id}/manage")
    page.get_by_role("link", name="Files").click()
    page.get_by_label("File of this computer").set_input_files({"name": "p.jsonl", "mimeType": "", "buffer": pairs(2)})
    press(page, "Import")
    expect(page.locator(".good")).to_contain_text("2 new items")
    page.get_by_label("Format").select_option("jsonl")
    press(page, "Export")
    expect(page.locator(".good").last).to_contain_text("3 items with 3 labels")
    with page.expect_download() as began:
        page.locator("td a").first.click()
    content = Path(began.value.path()).read_text()
    first = json.loads(content.splitlines()[0])
    assert first["labels"][0]["judgment"]["axes"] == rows(work, "judgments")[0]["content"]["axes"]


def test_what_is_typed_stays_while_a_job_runs(server: Server, sit: Sit) -> None:
    made, page, go = campaign(server.workspace, names=["a"]), sit().page, threading.Event()
    server.workspace.jobs.start(f"export {made.run}", "Export", lambda: f"all {go.wait(60)}")
    page.goto(f"/c/{made.id}/transfer")
    page.get_by_label("or a file in the workspace folder").fill("typed")
    expect(page.locator(".notice")).to_contain_text("under way")
    go.set()
    expect(page.locator(".good")).to_contain_text("all True")
    expect(page.get_by_label("or a file in the workspace folder")).to_have_value("typed")


def test_hostile_text_stays_text(server: Server, sit: Sit) -> None:
    work, made_up = server.workspace, []
    for n, text in enumerate(HOSTILE):
        base = comparison(f"h{n}", slice=text)
        answers = tuple(replace(item, text=f"{text} {i}") for i, item in enumerate(base.items))
        messages = tuple(replace(message, content=text) for message in base.prompt.messages)
        made_up.append(replace(base, prompt=replace(base.prompt, messages=messages), items=answers))
    work.store.add_comparisons("evil", made_up)
    config = plain(title=HOSTILE[0], guidelines="\n\n".join(HOSTILE), axes=(HOSTILE[1][:80],), flags=(HOSTILE[2][:80],))
    made = work.campaigns.create("evil", config, by=HOSTILE[0])
    work.campaigns.add_items("evil", [Item(comparison_id=c.id, mix=HOSTILE[4]) for c in made_up], by="prefloop")
    work.campaigns.hold("evil", "h0", HOSTILE[1], by="prefloop")
    work.campaigns.change("evil", config.model_copy(update={"title": HOSTILE[4]}), by="prefloop")
    page = sit("admin").page
    places = ["manage", "items", "versions", "transfer", "edit", *(f"items/{n + 1}" for n in range(len(HOSTILE)))]
    for place in ("/", "/new", *(f"/c/{made.id}/{place}" for place in places)):
        page.goto(place)
        page.wait_for_timeout(50)
        assert "pwned" not in page.title()
        assert page.locator("body").is_visible() and page.evaluate("document.baseURI").startswith("http://127.0.0.1")
        assert page.locator("img, base, form[action='/example'] button:text('go'), a[href^=javascript]").count() == 0


def drawn(page: Page) -> int:
    """Scroll to each chart and wait until it is drawn; how many there are."""
    frames = page.locator("iframe.chart").all()
    for frame in frames:
        frame.scroll_into_view_if_needed()
        expect(frame.content_frame.locator(".main-svg").first).to_be_visible()
    return len(frames)


@pytest.fixture
def judged(server: Server) -> Campaign:
    """Ann and Bob labeled both items, and differ on one."""
    work = server.workspace
    for name, group in (("ann", "nurses"), ("bob", "teachers")):
        work.accounts.create(name, "labeler", group, by="prefloop")
    made = campaign(work, names=["a", "b"], overlap=2, title="Which one?")
    for name in ("ann", "bob"):
        while task := work.desk.next_task(made, name):
            item = 0 if name == "ann" or task.comparison.id == "a" else 1
            side = -2 if task.shown[0] == item else 2
            work.answers.submit(task.id, name, Answer(axes={"overall": side}), nonce=task.id)
    return made


def test_figures_charts_and_what_comes_by_itself(
    server: Server, sit: Sit, judged: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_SOONEST", 0.0)
    monkeypatch.setattr(live, "_SHARE", 1.0)
    page = sit().page
    page.goto(f"/c/{judged.id}/manage")
    expect(page.locator("#live[data-number='4']")).to_be_visible()
    expect(page.get_by_role("region", name="Agreement by axis")).to_contain_text("50 %")
    assert drawn(page) >= 3
    for frame in page.frames[1:]:
        text = frame.locator("body").inner_text()
        assert "ann" not in text and "bob" not in text and frame.evaluate("document.title") == "Chart"
    page.evaluate("scrollTo(0, 0)")
    page.locator("summary", has_text="Agreement by pair of labelers").click()
    page.evaluate("document.activeElement.blur()")
    server.workspace.answers.review(judged, "b", "bob", Answer(axes={"overall": -1}), nonce="again")
    expect(page.locator("#live[data-number='5']")).to_be_visible()
    expect(page.get_by_role("region", name="Agreement by axis")).to_contain_text("100 %")
    expect(page.get_by_role("region", name="Agreement by pair of labelers")).to_be_visible()  # it stayed open
    assert drawn(page) >= 3


def test_a_labeler_is_looked_at_and_paused(server: Server, sit: Sit, judged: Campaign) -> None:
    page = sit("admin").page
    page.goto(f"/c/{judged.id}/manage")
    page.get_by_role("region", name="Labelers").get_by_role("link", name="ann").click()
    expect(page.get_by_role("heading", name="ann")).to_be_visible()
    assert drawn(page) >= 1
    page.evaluate("scrollTo(0, 0)")
    press(page, "Pause")
    account = server.workspace.accounts.find("ann")
    assert account is not None and account.paused
    press(page, "Hand out tasks again")
    account = server.workspace.accounts.find("ann")
    assert account is not None and not account.paused


def test_the_review_queue_is_worked_through(server: Server, sit: Sit, judged: Campaign) -> None:
    desk = sit()
    page = desk.page
    page.goto(f"/c/{judged.id}/manage")
    page.get_by_role("link", name="Review", exact=True).click()
    page.get_by_role("link", name="Begin with the first").click()
    expect(page.get_by_role("region", name="Labels")).to_contain_text("bob")
    page.get_by_label("1 clearly").check()
    page.get_by_label("Why", exact=True).first.fill("It is right.")
    press(page, "Save my label and go on")
    expect(page.get_by_text("Nothing waits.")).to_be_visible()
    last = rows(server.workspace, "judgments")[-1]
    assert (last["annotator"], last["choice"], last["status"]) == (desk.name, 3, "extra")
    assert last["content"]["rationale"] == "It is right."


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (320, "dark")])
def test_axe_finds_nothing_and_nothing_is_cut_off(
    server: Server, sit: Sit, judged: Campaign, width: int, scheme: str
) -> None:
    work, made = server.workspace, judged
    changed = made.config.model_copy(update={"title": "Renamed", "ratings": True, "rubric": ("cites its sources",)})
    work.campaigns.change(made.run, changed, by="ann")
    work.campaigns.hold(made.run, "b", "a very long reason " * 8, by="ann")
    page = sit("admin", viewport={"width": width, "height": 900}, color_scheme=scheme).page
    places = ["manage", "items", "items/1", "items/2", "review", "labelers/ann", "versions", "transfer", "edit"]
    for place in ("/", "/new", *(f"/c/{made.id}/{place}" for place in places)):
        page.goto(place)
        page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        found = Axe().run(page).response["violations"]
        assert [one for one in found if one["impact"] in ("serious", "critical")] == [], place
        assert page.evaluate("document.documentElement.scrollWidth") <= width, place


def test_without_scripts_all_of_it_works(server: Server, sit: Sit) -> None:
    made, page = campaign(server.workspace, names=["a"]), sit(java_script_enabled=False).page
    page.goto(f"/c/{made.id}/items/1")
    page.get_by_label("1 much").check()
    press(page, "Save my label")
    assert rows(server.workspace, "judgments")[0]["choice"] == 4
    page.get_by_role("link", name="Overview").click()
    press(page, "Pause")
    assert server.workspace.campaigns.by_run(made.run).state == "paused"
