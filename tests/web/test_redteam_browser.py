"""Conversations in Chromium: every control, what is kept while one waits, hostile answers, and without scripts."""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.web.run_folders import HOSTILE
from tests.web.serving import Server
from tests.web.standing_in import put_in
from tests.web.test_redteam import MODEL, campaign
from tests.web.test_runs_browser import seated


@pytest.fixture
def overview(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    put_in(server.workspace.folder, monkeypatch, MODEL)
    return f"/c/{campaign(server.workspace).id}/talk"


def fine(page: Page) -> None:
    """Axe finds nothing serious, and nothing is cut off, on a wide screen and on a phone in the dark."""
    for scheme, width in (("light", 1280), ("dark", 320)):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        page.set_viewport_size({"width": width, "height": 800})
        found = Axe().run(page).response["violations"]
        assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == [], scheme
        assert page.evaluate("document.documentElement.scrollWidth") <= width, width


def test_every_control_of_a_conversation(server: Server, browser: Browser, overview: str) -> None:
    with seated(server, browser, "labeler") as (page, said):
        page.goto(overview)
        fine(page)
        page.get_by_role("button", name="New conversation").click()
        page.get_by_label("Your first message").fill(f"say {HOSTILE}")
        page.wait_for_load_state()  # what keeps drafts is there by then
        page.reload()
        expect(page.get_by_label("Your first message")).to_have_value(f"say {HOSTILE}")
        page.keyboard.press("Tab")
        page.get_by_label("Your first message").press("Control+Enter")
        expect(page.locator("#turn-1")).to_be_focused()
        assert page.title().startswith("Conversation") and page.locator("#turn-1 img").count() == 0
        page.get_by_text("Mark a failure").click()
        page.get_by_label("unsafe").check()
        page.get_by_label("un<b>true").check()
        page.get_by_label("What is wrong").fill("It is hostile.")
        page.get_by_label("A better answer").fill("Be **kind**.")
        page.get_by_role("button", name="Save").click()
        expect(page.locator("#turn-1 .better strong")).to_have_text("kind")
        fine(page)
        page.get_by_role("button", name="Let it try again beside this").click()
        expect(page.locator("#turn-1 .answers.pair")).to_be_visible()
        page.get_by_role("button", name="B is better").click()
        page.get_by_role("button", name="A is better").click()
        page.get_by_label("Your message").fill("hello")
        page.get_by_label("Two answers, to pick the better one").check()
        page.get_by_role("button", name="Send").click()
        page.get_by_role("button", name="B is better").click()
        fine(page)
        page.get_by_label("Your message").fill("die")
        page.get_by_role("button", name="Send").click()
        expect(page.get_by_role("alert")).to_contain_text("has ended")
        fine(page)
        page.get_by_role("button", name="Finish the conversation").click()
        expect(page.get_by_text("finished", exact=True)).to_be_visible()
        page.locator("h2 a").click()
        expect(page.get_by_role("button")).to_have_count(1)  # to sign out
        assert said == []
    run = "runs/secret-run/red"
    better, picked = server.workspace.store.comparisons(run)
    first, second = server.workspace.store.judgments(run)
    assert [better.items[1].text, first.flags, first.rationale] == [
        "Be **kind**.",
        ("unsafe", "un<b>true"),
        "It is hostile.",
    ]
    assert (first.ranking, second.ranking) == ((1, 0), (1, 0)) and picked.items[1].text.endswith("heard hello (1)")


def test_what_somebody_writes_while_they_wait_is_not_lost(server: Server, browser: Browser, overview: str) -> None:
    with seated(server, browser, "labeler") as (page, said):
        page.goto(overview)
        page.get_by_role("button", name="New conversation").click()
        page.get_by_label("Your first message").fill("hello")
        page.get_by_role("button", name="Send").click()
        expect(page.locator("#turn-1")).to_be_visible()
        partner = next(iter(server.workspace.partners._partners.values()))._process
        assert partner is not None
        partner.send_signal(19)  # SIGSTOP: it takes its time
        page.get_by_label("Your message").fill("more")
        page.get_by_role("button", name="Send").click()
        page.get_by_text("Mark a failure").click()
        page.get_by_label("What is wrong").fill("I am still writing")
        partner.send_signal(18)
        expect(page.get_by_role("button", name="Show the answer")).to_be_visible()
        expect(page.get_by_label("What is wrong")).to_have_value("I am still writing")
        page.get_by_role("button", name="Save").click()
        expect(page.locator("#turn-3")).to_contain_text("heard more")
        expect(page.locator("#turn-1")).to_contain_text("I am still writing")
        assert said == []


def test_without_scripts_the_page_reloads_until_the_answer_is_there(
    server: Server, browser: Browser, overview: str
) -> None:
    with seated(server, browser, "labeler", java_script_enabled=False) as (page, _):
        page.goto(overview)
        page.get_by_role("button", name="New conversation").click()
        page.get_by_label("Your first message").fill("hello")
        page.get_by_role("button", name="Send").click()
        expect(page.locator("#turn-1")).to_contain_text("heard hello")
        page.get_by_role("button", name="Finish the conversation").click()
        expect(page.get_by_text("finished", exact=True)).to_be_visible()
