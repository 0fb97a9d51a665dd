"""The label pages in Chromium: what is clicked and keyed is what is kept, whatever happens in between."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Route, expect

from prefloop.store.campaigns import Item
from prefloop.types import CANT_JUDGE
from prefloop.web.limits import Limits
from prefloop.web.serve import server_config
from prefloop.web.workspace import Workspace
from tests.patience import until
from tests.store.scene import plain
from tests.web.labeling import Labeling, comparison, make_labeling, many
from tests.web.serving import Server

WAIT = 60_000


class Site:
    """A scene, served at a port that it keeps over restarts."""

    def __init__(self, here: Labeling, browser: Browser) -> None:
        self.here, self._browser = here, browser
        self._kept = socket.socket()  # nobody else gets its port while it is stopped
        self._kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._kept.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._kept.getsockname()[1]}"
        self._contexts: list[BrowserContext] = []
        self.errors: list[str] = []
        self.start()

    def start(self) -> None:
        listener = socket.create_server(("127.0.0.1", int(self.url.rpartition(":")[2])))
        self._server = uvicorn.Server(server_config(self.here.workspace, Limits(), 15.0))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]})
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()

    def context(self, name: str = "ada", **named: Any) -> BrowserContext:
        """Its routes are set before a page begins: one that stands takes a moment to heed them."""
        made = self._browser.new_context(base_url=self.url, **named)
        made.set_default_timeout(WAIT)
        self._contexts.append(made)
        self.sign_in(made, name)
        return made

    def sign_in(self, context: BrowserContext, name: str = "ada") -> None:
        server = Server(self.url, self.here.workspace)
        visitor = server.visitor("labeler", name)
        context.add_cookies(
            [{"name": key, "value": value, "url": self.url} for key, value in visitor.cookies.items() if value]
        )
        visitor.close()

    def begin(self, context: BrowserContext | None = None, **named: Any) -> Page:
        """A page with the labeler's next task."""
        page = (context or self.context(**named)).new_page()
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda said: self.errors.append(said.text) if "Security Policy" in said.text else None)
        page.goto(self.here.home)
        page.locator("form[action$='/next'] button").click()
        expect(page.locator("#task")).to_be_visible()
        page.wait_for_load_state()  # its scripts take keys
        return page

    def close(self) -> None:
        for context in self._contexts:
            context.close()
        self.stop()
        self._kept.close()


Stage = Callable[..., Site]


@pytest.fixture
def stage(workspace: Workspace, browser: Browser) -> Iterator[Stage]:
    """Makes the scene of a test, served: stage(config, comparisons, items)."""
    made: list[Site] = []

    def make(*scene: Any) -> Site:
        made.append(Site(make_labeling(workspace, *scene), browser))
        return made[-1]

    yield make
    for site in made:
        site.close()
    assert not [error for site in made for error in site.errors]


def task_of(page: Page) -> str:
    return page.url.split("/")[4].split("?")[0]


def onward(page: Page, act: Callable[[], Any]) -> None:
    """Do what leads to another page, and wait for it."""
    before = page.url
    act()
    expect(page).not_to_have_url(before)
    page.wait_for_load_state()


def saved(site: Site, page: Page) -> dict[str, Any]:
    """The draft of the page's task, once the page says that the server has it."""
    expect(page.locator("#state")).to_have_text("Draft saved")
    draft: dict[str, Any] = site.here.task(f"/t/{task_of(page)}")["draft"]
    return draft


def problem(page: Page, text: str) -> Locator:
    """The line of the form that says so."""
    return page.locator("[data-problem]", has_text=text)


def shown(site: Site, page: Page) -> list[int]:
    """Which item stands where, as the page shows it; that it is what the store holds."""
    row = site.here.task(f"/t/{task_of(page)}")
    texts = page.locator("article.answer .text").all_inner_texts()
    number = row["comparison_id"].removeprefix("cmp-")
    assert texts == [f"answer {item} of {number}" for item in row["shown"]]
    return list(row["shown"])


def test_every_choice_by_key_and_by_click_is_kept_as_made(stage: Stage) -> None:
    site = stage(plain(), many(18))
    page, said = site.begin(), {}
    for n in range(18):
        value = n % 9 - 4
        order = shown(site, page)
        said[site.here.task(f"/t/{task_of(page)}")["comparison_id"]] = (order, value)
        if n < 9:
            page.keyboard.press(str(value + 5))
            onward(page, lambda: page.keyboard.press("Enter"))
        else:
            page.locator(f"label.step:has(input[value='{value}'])").click()
            onward(page, lambda: page.get_by_role("button", name="Submit").click())
    expect(page.get_by_text("Nothing is left for you")).to_be_visible()
    kept = site.here.judgments()
    assert len(kept) == 18
    assert {tuple(order) for order, _ in said.values()} == {(0, 1), (1, 0)}
    for id_, (order, value) in said.items():
        judgment = kept[id_]
        assert list(judgment.shown_order) == order
        assert judgment.strength == (abs(value) or None) and judgment.ranking is not None
        by_place = [judgment.ranking[item] for item in order]
        assert by_place == ([0, 0] if value == 0 else [0, 1] if value < 0 else [1, 0])


def test_all_controls_of_a_pair_by_mouse_and_by_key(stage: Stage) -> None:
    config = plain(
        axes=("helpful", "honest", "style"), rubric=("cites", "short"), ratings=True, flags=("both bad", "unsafe")
    )
    site = stage(config, many(2))
    page = site.begin()
    first = shown(site, page)
    for axis, value in (("helpful", -3), ("honest", 0), ("style", 2)):
        page.locator(f"[data-axis={axis}] label:has(input[value='{value}'])").click()
    page.locator("#answer-0").get_by_label("cites").check()
    page.locator("#answer-1").get_by_label("short").check()
    page.locator("#answer-0 .rating label").nth(6).click()
    page.locator("#answer-1 .rating label").nth(1).click()
    page.get_by_label("both bad").check()
    page.get_by_label("Why?").fill("clicked\nso")
    page.get_by_role("button", name="Start from the chosen answer").click()
    assert page.locator("#edit").input_value() == page.locator("#answer-0").get_attribute("data-text")
    page.locator("#edit").press("End")
    page.keyboard.type(", better")
    id_ = site.here.task(f"/t/{task_of(page)}")["comparison_id"]
    onward(page, lambda: page.get_by_role("button", name="Submit").click())
    judgment = site.here.judgments()[id_]
    sign = -1 if first == [0, 1] else 1
    assert judgment.axes == {"helpful": sign * -3, "honest": 0, "style": sign * 2}
    assert [judgment.checks["cites"][item] for item in first] == [True, False]
    assert [judgment.checks["short"][item] for item in first] == [False, True]
    assert [judgment.ratings[item] for item in first] == [7, 2]
    assert judgment.flags == ("both bad",) and judgment.rationale == "clicked\nso"
    assert judgment.edit == f"answer {first[0]} of {id_.removeprefix('cmp-')}, better"

    second = shown(site, page)
    for key in ("9", "5", "1", "Backspace", "6", "3"):  # style 1, then honest 6 instead of 5, then style 3
        page.keyboard.press(key)
    page.locator("#answer-0 .rating input").first.focus()
    page.keyboard.press("4")
    page.locator("#answer-1 .rating input").first.focus()
    page.keyboard.press("5")
    page.keyboard.press("n")
    page.keyboard.press("b")
    page.keyboard.press("b")
    page.keyboard.press("r")
    page.keyboard.type("keyed 1n0u?")
    page.keyboard.press("Escape")
    page.keyboard.press("e")
    page.keyboard.type("9")
    page.keyboard.press("Escape")
    (id_,) = {row["comparison_id"] for row in site.here.rows("tasks") if row["state"] == "open"}
    onward(page, lambda: page.keyboard.press("Enter"))
    judgment = site.here.judgments()[id_]
    sign = -1 if second == [0, 1] else 1
    assert judgment.axes == {"helpful": sign * 4, "honest": sign * 1, "style": sign * -2}
    assert [judgment.ratings[item] for item in second] == [4, 5]
    assert (judgment.flags, judgment.rationale, judgment.edit) == (("unsafe",), "keyed 1n0u?", "9")


def test_cant_judge_is_two_keys_too(stage: Stage) -> None:
    site = stage(plain(), many(1))
    page = site.begin()
    page.keyboard.press("0")
    onward(page, lambda: page.keyboard.press("Enter"))
    (row,) = site.here.rows("judgments")
    assert row["status"] == "unjudged" and row["content"]["flags"] == [CANT_JUDGE]


def test_keys_do_nothing_in_text_fields_with_modifiers_or_under_the_dialog(stage: Stage) -> None:
    site = stage(plain(), many(1))
    page = site.begin()
    page.get_by_label("Why?").press_sequentially("1 2 9 0 u g ? b n")
    page.get_by_label("Why?").press("Enter")
    page.keyboard.press("Escape")
    for key in ("Control+1", "Alt+1", "Meta+1"):
        page.keyboard.press(key)
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    page.keyboard.press("1")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog", name="Keys")).to_be_hidden()
    assert page.locator("#task input:checked").count() == 0
    assert page.get_by_label("Why?").input_value() == "1 2 9 0 u g ? b n\n"
    page.keyboard.press("g")
    expect(page.locator("#guidelines .text")).to_be_visible()
    assert not site.here.rows("judgments")


def test_keys_can_be_turned_off(stage: Stage) -> None:
    site = stage(plain(), many(1))
    page = site.begin()
    page.keyboard.press("?")
    page.get_by_label("Keys act").uncheck()
    page.keyboard.press("Escape")
    page.keyboard.press("1")
    page.reload()
    page.keyboard.press("1")
    assert page.locator(".axis input:checked").count() == 0
    page.get_by_role("button", name="Keys").click()
    page.get_by_label("Keys act").check()
    page.keyboard.press("Escape")
    page.keyboard.press("1")
    expect(page.locator(".axis input:checked")).to_have_value("-4")


def test_line_31_a_page_of_an_older_version_loads_the_new_one_with_what_was_typed(stage: Stage) -> None:
    site = stage(plain(axes=("overall",)), many(1))
    page = site.begin()
    page.keyboard.press("2")
    page.get_by_label("Why?").fill("kept")
    site.here.pass_time(1000)
    site.here.workspace.campaigns.change(site.here.campaign.run, plain(axes=("kind", "overall")), by="prefloop")
    site.here.workspace.desk.next_task(site.here.campaign, "ada")  # in another tab
    page.get_by_role("button", name="Submit").click()
    expect(problem(page, "What this campaign asks has changed")).to_be_visible()
    expect(page.get_by_label("Why?")).to_have_value("kept")
    assert page.locator("[data-axis=overall] input:checked").input_value() == "-3"
    assert page.locator("[data-axis=kind] input:checked").count() == 0
    page.keyboard.press("6")
    onward(page, lambda: page.get_by_role("button", name="Submit").click())
    (row,) = site.here.rows("judgments")
    assert row["campaign_version"] == 2 and set(row["content"]["axes"]) == {"kind", "overall"}


def rank_rows(page: Page) -> list[int]:
    return [
        int(place) for place in page.locator("#ranks li").evaluate_all("rows => rows.map(row => row.dataset.place)")
    ]


def row_of(page: Page, place: int) -> Locator:
    return page.locator(f"#ranks li[data-place='{place}']")


def drag(page: Page, place: int, to: int) -> None:
    """Pull the answer at a place to a position in the list."""
    handle, target = row_of(page, place).locator(".handle"), page.locator("#ranks li").nth(to)
    handle.scroll_into_view_if_needed()
    start, end = handle.bounding_box(), target.bounding_box()
    assert start and end
    down = end["y"] > start["y"]
    page.mouse.move(start["x"] + 5, start["y"] + 5)
    page.mouse.down()
    page.mouse.move(end["x"] + 5, end["y"] + (end["height"] - 3 if down else 3), steps=8)
    page.mouse.up()


def by_buttons(page: Page, wanted: list[int]) -> None:
    for to, place in enumerate(wanted):
        while (at := rank_rows(page).index(place)) > to:
            row_of(page, place).get_by_role("button", name="up").click()
            assert rank_rows(page).index(place) == at - 1


def by_dragging(page: Page, wanted: list[int]) -> None:
    for to, place in enumerate(wanted):
        if rank_rows(page).index(place) != to:
            drag(page, place, to)
    for to in reversed(range(len(wanted))):
        if rank_rows(page)[to] != wanted[to]:
            drag(page, wanted[to], to)


def by_digits(page: Page, wanted: list[int]) -> None:
    for to, place in enumerate(wanted):
        mark(page, place)
        page.keyboard.press(str(to + 1))


def by_keys(page: Page, wanted: list[int]) -> None:
    for to, place in enumerate(wanted):
        mark(page, place)
        for step in range(rank_rows(page).index(place) - to):
            page.keyboard.press("Shift+K" if step % 2 else "Alt+ArrowUp")


def mark(page: Page, place: int) -> None:
    """Go to an answer's row by j and k."""
    page.keyboard.press("j")
    for key in ("k", "j"):
        for _ in range(9):
            if page.locator("#ranks li.marked").get_attribute("data-place") == str(place):
                return
            page.keyboard.press(key)


@pytest.mark.parametrize("size", [3, 9])
@pytest.mark.parametrize("arrange", [by_buttons, by_dragging, by_digits, by_keys])
def test_a_ranking_is_kept_as_it_was_arranged(
    stage: Stage, size: int, arrange: Callable[[Page, list[int]], None]
) -> None:
    site = stage(plain(), many(2, size))
    page = site.begin(viewport={"width": 1200, "height": 1000})
    for turn in range(2):
        order = shown(site, page)
        assert rank_rows(page) == list(range(size))
        wanted = [(place * 2 + 1 + turn) % size for place in range(size)]
        arrange(page, wanted)
        assert rank_rows(page) == wanted
        id_ = site.here.task(f"/t/{task_of(page)}")["comparison_id"]
        onward(page, lambda: page.get_by_role("button", name="Submit").click())
        judgment = site.here.judgments()[id_]
        assert judgment.ranking is not None and list(judgment.shown_order) == order
        assert [order.index(judgment.ranking.index(rank)) for rank in range(size)] == wanted


def test_ties_stay_with_the_answers_that_they_join(stage: Stage) -> None:
    site = stage(plain(), many(1, 5))
    page = site.begin()
    order = shown(site, page)
    row_of(page, 2).get_by_label("same as above").check()  # 0, 1 = 2, 3, 4
    mark(page, 4)
    page.keyboard.press("t")  # 0, 1 = 2, 3 = 4
    page.keyboard.press("1")  # 4, 0, 1 = 2, 3: it leaves its tie
    assert rank_rows(page) == [4, 0, 1, 2, 3]
    assert page.locator("#ranks input:checked").count() == 1
    row_of(page, 1).get_by_role("button", name="up").click()  # 4, 1, 0, 2, 3: 2 stays behind, alone
    assert page.locator("#ranks input:checked").count() == 0
    row_of(page, 0).get_by_label("same as above").check()  # 4, 1 = 0, 2, 3
    drag(page, 3, 2)  # 4, 1 = 3 = 0, 2: dropped among equals it is one of them
    assert rank_rows(page) == [4, 1, 3, 0, 2]
    expect(page.locator("#ranks .position")).to_have_text(["1", "2", "2", "2", "5"])
    onward(page, lambda: page.keyboard.press("Enter"))
    (judgment,) = site.here.judgments().values()
    assert judgment.ranking is not None
    assert [judgment.ranking[item] for item in order] == [1, 1, 2, 1, 0]


def test_a_ranking_left_as_it_was_asks_once(stage: Stage) -> None:
    site = stage(plain(ties=False), many(1, 3))
    page = site.begin()
    page.keyboard.press("Enter")
    expect(problem(page, "This is the order in which the answers were shown")).to_be_visible()
    expect(page.get_by_role("status")).to_contain_text("Not kept yet: This is the order")  # who hears the page is told
    assert not site.here.rows("judgments") and page.get_by_label("same as above").count() == 0
    onward(page, lambda: page.keyboard.press("Enter"))
    assert len(site.here.rows("judgments")) == 1


def test_the_page_says_what_is_missing_and_keeps_the_rest(stage: Stage) -> None:
    site = stage(plain(axes=("helpful", "style"), rationale="required"), many(1))
    page = site.begin()
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    expect(problem(page, "Choose an answer for 'style'")).to_be_visible()
    expect(problem(page, "this campaign asks for a reason")).to_be_visible()
    expect(problem(page, "Choose an answer for 'helpful'")).to_have_count(0)
    assert page.locator("[data-axis=helpful] input:checked").input_value() == "-3"
    assert not site.here.rows("judgments")


def fill_in(page: Page) -> None:
    page.keyboard.press("7")
    page.keyboard.press("b")
    page.get_by_label("Why?").fill("half a thought")


def assert_filled_in(page: Page) -> None:
    expect(page.locator(".axis input:checked")).to_have_value("2")
    expect(page.get_by_label("both bad")).to_be_checked()
    expect(page.get_by_label("Why?")).to_have_value("half a thought")


def test_line_30_a_draft_survives_reload_and_another_browser(stage: Stage) -> None:
    site = stage(plain(), many(1))
    page = site.begin()
    fill_in(page)
    page.reload()  # at once: the server has none of it yet
    assert_filled_in(page)
    assert saved(site, page)["rationale"] == "half a thought"
    assert page.evaluate("Object.keys(localStorage).filter(key => key.startsWith('prefloop:task')).length") == 0
    assert_filled_in(site.begin())


def test_line_30_words_typed_before_the_scripts_came_are_a_draft_too(stage: Stage) -> None:
    site = stage(plain(), many(1))
    page = site.begin()
    held: list[Route] = []
    page.route("**/label.js*", lambda route: held.append(route))
    with page.expect_request("**/label.js*"):
        page.reload(wait_until="commit")
    page.locator("#rationale").fill("at once")
    page.locator("#fields").get_by_text("both bad").check()
    for route in held:
        route.continue_()
    draft = saved(site, page)
    assert draft["rationale"] == "at once" and draft["flags"] == ["both bad"]


def test_line_30_a_ranking_draft_survives_reload(stage: Stage) -> None:
    site = stage(plain(), many(1, 4))
    page = site.begin()
    by_digits(page, [3, 1, 0, 2])
    row_of(page, 0).get_by_label("same as above").check()
    page.reload()
    assert rank_rows(page) == [3, 0, 1, 2]  # equals as shown
    saved(site, page)
    other = site.begin()
    assert rank_rows(other) == [3, 0, 1, 2]
    expect(other.locator("#ranks .position")).to_have_text(["1", "2", "2", "4"])


def test_line_30_a_draft_and_an_answer_survive_a_restart_of_the_server(stage: Stage) -> None:
    site = stage(plain(), many(2))
    context = site.context()
    page = site.begin(context)
    site.stop()
    fill_in(page)
    page.keyboard.press("Escape")
    before = page.url
    page.keyboard.press("Enter")
    expect(page.get_by_text("Not saved yet: the server cannot be reached")).to_be_visible()
    assert page.url == before
    page.close()
    site.start()
    page = context.new_page()
    page.goto(before)  # what was on its way goes out by itself
    expect(page).not_to_have_url(before)
    (judgment,) = site.here.judgments().values()
    assert (judgment.strength, judgment.flags, judgment.rationale) == (2, ("both bad",), "half a thought")
    assert len(site.here.rows("judgments")) == 1


def test_line_30_an_answer_waits_for_the_network(stage: Stage) -> None:
    site = stage(plain(), many(2))
    context = site.context()
    page = site.begin(context)
    context.set_offline(True)
    before = page.url
    page.keyboard.press("3")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert").filter(has_text="Not saved yet")).to_be_visible()
    page.keyboard.press("9")  # nothing can be changed meanwhile
    site.here.pass_time(600)
    assert page.url == before and not site.here.rows("judgments")
    context.set_offline(False)
    expect(page).not_to_have_url(before)
    (judgment,) = site.here.judgments().values()
    assert judgment.strength == 2


def test_line_30_an_answer_that_never_left_goes_out_from_any_later_page(stage: Stage) -> None:
    site = stage(plain(lease_minutes=5), many(2))
    context = site.context()
    page = site.begin(context)
    site.stop()  # not the context set offline: a page may be online again for a moment while it closes
    page.keyboard.press("3")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Not saved yet")).to_be_visible()
    page.close()
    site.here.pass_time(86_400)
    site.start()
    other = context.new_page()
    other.goto(site.here.home)
    expect(other.get_by_role("button", name=re.compile("Start|Continue"))).to_be_visible()  # it may be out by then
    until(lambda: len(site.here.rows("judgments")) == 1)
    assert site.here.rows("judgments")[0]["late"]


def test_line_30_an_answer_waits_for_its_labeler_whoever_signs_in_meanwhile(stage: Stage) -> None:
    site = stage(plain(overlap=2), many(2))
    context = site.context()
    page = site.begin(context)
    site.stop()
    page.keyboard.press("3")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Not saved yet")).to_be_visible()
    page.close()
    site.start()
    site.sign_in(context, "bob")
    other = site.begin(context)
    other.wait_for_load_state("networkidle")
    assert not site.here.rows("judgments") and other.get_by_text("could not be kept").count() == 0
    site.sign_in(context, "ada")
    other.goto(site.here.home)
    until(lambda: [row["annotator"] for row in site.here.rows("judgments")] == ["ada"])


def test_line_30_an_answer_survives_the_end_of_the_session(stage: Stage) -> None:
    site = stage(plain(), many(2))
    context = site.context()
    page = site.begin(context)
    site.here.workspace.sessions.end_all("ada", by="prefloop")
    fill_in(page)
    page.keyboard.press("Escape")
    before = page.url
    page.keyboard.press("Enter")
    expect(page.get_by_text("You are signed out. Your answer is kept here")).to_be_visible()
    assert "/login?next=%2Ft%2F" in (page.get_by_role("link", name="Sign in").get_attribute("href") or "")
    site.sign_in(context)  # in another tab: this page has the token of the session before
    expect(page).not_to_have_url(before, timeout=2 * WAIT)
    (judgment,) = site.here.judgments().values()
    assert judgment.rationale == "half a thought"


def test_line_30_the_back_button_is_harmless_and_an_old_page_shows_what_was_said(stage: Stage) -> None:
    site = stage(plain(), many(2))
    page = site.begin()
    first = task_of(page)
    page.keyboard.press("2")
    onward(page, lambda: page.keyboard.press("Enter"))
    second = task_of(page)
    onward(page, page.go_back)
    assert task_of(page) == first
    expect(page.get_by_text("This is what you said")).to_be_visible()
    expect(page.locator(".axis input:checked")).to_have_value("-3")
    page.keyboard.press("9")
    page.keyboard.press("Enter")
    expect(page.locator(".axis input:checked")).to_have_value("-3")
    onward(page, lambda: page.get_by_role("link", name="Change it").click())
    page.keyboard.press("9")
    page.reload()  # the browser alone has what is to replace an answer
    expect(page.locator(".axis input:checked")).to_have_value("4")
    assert [j.strength for j in site.here.judgments().values()] == [3]
    onward(page, lambda: page.get_by_role("button", name="Save the change").click())
    assert task_of(page) == second
    assert [j.strength for j in site.here.judgments().values()] == [4]


def test_line_23_a_double_click_and_two_tabs_are_one_label(stage: Stage) -> None:
    site = stage(plain(), many(2))
    context = site.context()
    page = site.begin(context)
    tab = site.begin(context)
    assert task_of(tab) == task_of(page)
    page.keyboard.press("2")
    onward(page, lambda: page.get_by_role("button", name="Submit").dblclick(no_wait_after=True))
    assert len(site.here.rows("judgments")) == 1
    tab.keyboard.press("8")
    tab.keyboard.press("Enter")
    expect(problem(tab, "You have answered this task already")).to_be_visible()
    assert len(site.here.rows("judgments")) == 1
    onward(tab, lambda: tab.keyboard.press("Enter"))
    assert task_of(tab) == task_of(page)
    assert [j.strength for j in site.here.judgments().values()] == [3]


def test_line_23_an_answer_whose_reply_was_lost_is_one_label(stage: Stage) -> None:
    site = stage(plain(), many(2))
    context = site.context()
    lost: list[int] = []

    def lose(route: Any) -> None:
        if not lost:
            lost.append(route.fetch().status)
            route.abort()
        else:
            route.continue_()

    context.route("**/submit", lose)
    page = site.begin(context)
    page.keyboard.press("2")
    onward(page, lambda: page.keyboard.press("Enter"))
    assert lost == [200] and len(site.here.rows("judgments")) == 1


def test_line_28_an_answer_that_the_server_cannot_keep_stays_in_the_browser(stage: Stage) -> None:
    site = stage(plain(), many(2))
    context = site.context()
    context.route("**/submit", lambda route: route.fulfill(status=503, body="{}"))
    page = site.begin(context)
    before = page.url
    fill_in(page)
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_text("Not saved yet: the server is in trouble")).to_be_visible()
    context.unroute("**/submit")
    expect(page).not_to_have_url(before)
    assert [judgment.rationale for judgment in site.here.judgments().values()] == ["half a thought"]


def test_line_32_undo_by_key_as_often_as_one_likes(stage: Stage) -> None:
    site = stage(plain(), many(3))
    page = site.begin()
    tasks = []
    for key in ("1", "8"):
        tasks.append(task_of(page))
        page.keyboard.press(key)
        onward(page, lambda: page.keyboard.press("Enter"))
    for task, value in ((tasks[1], "3"), (tasks[0], "-4")):
        onward(page, lambda: page.keyboard.press("u"))
        assert task_of(page) == task
        expect(page.locator(".axis input:checked")).to_have_value(value)
    expect(page.get_by_role("button", name="Undo")).to_be_disabled()
    page.keyboard.press("6")
    onward(page, lambda: page.keyboard.press("Enter"))
    assert [j.strength for j in site.here.judgments().values()] == [1]


def test_line_25_an_open_page_keeps_its_lease_and_counts_the_time_it_was_seen(stage: Stage) -> None:
    site = stage(plain(lease_minutes=5), many(1))
    page = site.context().new_page()
    page.clock.install()
    page.goto(site.here.home)
    page.get_by_role("button", name="Start").click()
    expect(page.locator("#task")).to_be_visible()
    until_first = site.here.task(f"/t/{task_of(page)}")["lease_until"]
    page.clock.fast_forward(31_000)
    until(lambda: site.here.task(f"/t/{task_of(page)}")["lease_until"] > until_first)
    hide = "Object.defineProperty(document, 'visibilityState', {value: '%s', configurable: true});"
    page.evaluate(hide % "hidden" + "document.dispatchEvent(new Event('visibilitychange'))")
    page.clock.fast_forward(100_000)
    page.evaluate(hide % "visible" + "document.dispatchEvent(new Event('visibilitychange'))")
    page.clock.fast_forward(9_000)
    page.keyboard.press("2")
    onward(page, lambda: page.keyboard.press("Enter"))
    (judgment,) = site.here.judgments().values()
    assert 32 <= judgment.seconds < 100


@pytest.mark.parametrize("size", [2, 4])
def test_all_works_without_scripts(stage: Stage, size: int) -> None:
    site = stage(plain(), many(2, size))
    page = site.begin(java_script_enabled=False)
    order = shown(site, page)
    id_ = site.here.task(f"/t/{task_of(page)}")["comparison_id"]
    page.locator("#rationale").fill("no scripts")
    page.locator("#submit").click()
    expect(page.get_by_text("Your answer is not kept yet")).to_be_visible()
    expect(page.locator("#rationale")).to_have_value("no scripts")
    if size == 2:
        page.locator("label.step:has(input[value='-2'])").click()
        wanted = [0, 1]
    else:
        wanted = [2, 0, 0, 1]
        for place, rank in enumerate(("4", "1", "1", "3")):
            page.get_by_label(f"Rank of Answer {'ABCD'[place]}").select_option(rank)
    page.locator("#submit").click()
    expect(page.locator("#task")).to_be_visible()
    judgment = site.here.judgments()[id_]
    assert judgment.ranking is not None and [judgment.ranking[item] for item in order] == wanted
    assert judgment.rationale == "no scripts"
    page.locator("button[form=undo]").click()
    expect(page.locator("#rationale")).to_have_value("no scripts")
    assert not site.here.judgments()


LONG = "\n\n".join(f"Paragraph {n} of an answer that goes on. `code_without_any_space_{'x' * 80}`" for n in range(40))
LONG = f"```python\nprint({'9' * 200!r})\n```\n\n| a | b |\n|---|---|\n| {'c' * 90} | {'d' * 90} |\n\n$$x^2$$\n\n{LONG}"


def practice(stage: Stage) -> Site:
    """A practice task, a pair with all that can be asked and shown, and a ranking."""
    turns = [("system", "Be brief."), ("user", "Hello?"), ("assistant", "Yes?"), ("user", "And now?")]
    made = [
        comparison("g", "wrong", "right"),
        comparison("p", "The same but for one word.", "The same but for a word.", prompt=turns),
        comparison("l", LONG, "שלום עולם"),
        *many(1, 4),
    ]
    items = [Item(comparison_id=c.id, priority=-n) for n, c in enumerate(made)]
    items[0] = Item(comparison_id="cmp-g", gold={"ranking": [1, 0], "note": "It is right."})
    config = plain(calibration=1, axes=("helpful", "honest"), rubric=("cites",), ratings=True)
    return stage(config, made, items)


def pages_of(page: Page) -> Iterator[str]:
    """Stops at each page of a practice scene."""
    while True:
        yield re.sub("/t/[^/?]*", "/t", page.url.split("/", 3)[3])
        if page.url.endswith("/known"):
            onward(page, lambda: page.get_by_role("button", name="Continue").click())
        elif "/t/" in page.url:
            if page.locator(".axis [data-key]").count():
                page.keyboard.press("2")
                page.keyboard.press("2")
            else:
                by_digits(page, [3, 2, 1, 0])
            for n in range(page.locator(".rating").count()):
                page.locator(".rating").nth(n).locator("label").first.click()
            onward(page, lambda: page.get_by_role("button", name="Submit").click())
        else:
            return


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(stage: Stage, scheme: str) -> None:
    site = practice(stage)
    context = site.context(color_scheme=scheme)
    page = context.new_page()
    page.goto(site.here.home)
    found: dict[str, list[str]] = {}

    def look(where: str) -> None:
        results = Axe().run(page).response["violations"]
        found[where] = [
            f"{v['id']}: {[node['html'][:200] for node in v['nodes']]}"
            for v in results
            if v["impact"] in ("serious", "critical")
        ]

    look("intro")
    page.close()
    page = site.begin(context)
    for n, where in enumerate(pages_of(page)):
        if n == 2:
            for toggle in page.locator("summary").all():
                toggle.click()
            page.get_by_role("button", name="Submit").click()  # nothing chosen: with errors shown
            expect(page.locator("[data-problem]:visible").first).to_be_visible()
            page.keyboard.press("?")
            look("keys")
            page.keyboard.press("Escape")
        look(f"{n} {where}")
    assert len(found) == 8
    assert {where: issues for where, issues in found.items() if issues} == {}


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_needs_no_sideways_scroll_and_has_targets_to_hit(stage: Stage, width: int) -> None:
    site = practice(stage)
    page = site.begin(viewport={"width": width, "height": 800}, has_touch=True, is_mobile=True)
    small = """() => [...document.querySelectorAll('button, summary, select, input, a')]
      .map(e => [e.outerHTML.slice(0, 120), (e.closest('label') ?? e).getBoundingClientRect()])
      .filter(([, box]) => box.width > 0 && (box.width < 24 || box.height < 24)).map(([html]) => html)"""
    seen = []
    for where in pages_of(page):
        seen.append(where)
        page.evaluate("document.querySelectorAll('details').forEach(box => box.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, where
        assert [html for html in page.evaluate(small) if "skip" not in html] == [], where
    assert len(seen) == 6


def test_two_answers_stand_side_by_side_on_a_wide_page_and_stacked_on_a_narrow_one(stage: Stage) -> None:
    site = stage(plain(), many(1))
    page = site.begin(viewport={"width": 900, "height": 800})
    boxes = [page.locator(f"#answer-{place}").bounding_box() for place in (0, 1)]
    assert boxes[0] and boxes[1] and boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] < boxes[1]["x"]
    page.set_viewport_size({"width": 899, "height": 800})
    boxes = [page.locator(f"#answer-{place}").bounding_box() for place in (0, 1)]
    assert boxes[0] and boxes[1] and boxes[0]["x"] == boxes[1]["x"] and boxes[0]["y"] < boxes[1]["y"]


def test_new_guidelines_stand_open_once(stage: Stage) -> None:
    site = stage(plain(guidelines="First."), many(3))
    page = site.begin()
    expect(page.locator("#guidelines .text")).to_be_hidden()
    site.here.workspace.campaigns.change(site.here.campaign.run, plain(guidelines="Second."), by="prefloop")
    for visible in (True, False):
        page.keyboard.press("1")
        onward(page, lambda: page.keyboard.press("Enter"))
        expect(page.locator("#guidelines .text")).to_be_visible(visible=visible)
