"""Coming in, in Chromium: what the browser itself sends and refuses, which no client that plays one can show."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, Request, expect

from tests.patience import until
from tests.web.serving import Answered, Server

PASSWORD = "correct horse battery"
Context = Callable[..., BrowserContext]


@pytest.fixture
def context(browser: Browser, server: Server) -> Iterator[Context]:
    """A browser of somebody's own. The policy of our pages is never hurt in it, unless others frame them."""
    made: list[BrowserContext] = []
    hurt: list[str] = []

    def make(**named: Any) -> BrowserContext:
        one = browser.new_context(base_url=server.url, **named)
        one.set_default_timeout(60_000)
        one.on("console", lambda said: hurt.append(said.text))
        made.append(one)
        return one

    yield make
    for one in made:
        one.close()
    assert [said for said in hurt if "Security Policy" in said and not said.startswith("Framing")] == []


@pytest.fixture
def elsewhere() -> Iterator[Callable[[str], str]]:
    """Serves a page of somebody else's, from another port of this host; returns its address."""
    pages: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(pages[-1])

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()

        def put(page: str, host: str = "127.0.0.1") -> str:
            pages.append(page.encode())
            return f"http://{host}:{made.server_address[1]}/"

        yield put
        made.shutdown()
        thread.join()


def enter(page: Page, server: Server, name: str = "Ada", password: str = "") -> None:
    page.goto(f"/start/{server.workspace.invites.start()}")
    page.get_by_label("Your name").fill(name)
    page.get_by_label(re.compile("Password")).fill(password)
    page.get_by_role("button", name="Come in").click()
    expect(page.get_by_role("link", name="People")).to_be_visible()


def test_the_printed_link_leads_in_and_is_sent_nowhere_else(server: Server, context: Context) -> None:
    page, token = context().new_page(), server.workspace.invites.start()
    requests: list[Request] = []
    page.on("request", lambda request: requests.append(request))
    page.goto(f"/start/{token}")
    assert page.url == f"{server.url}/invite"
    page.get_by_label("Your name").fill("Ada")
    page.get_by_role("button", name="Come in").click()
    expect(page.get_by_role("link", name="People")).to_be_visible()
    sent = [request for request in requests if request.method == "POST"]
    headers = sent[0].all_headers()
    assert len(sent) == 1 and (headers["origin"], headers["sec-fetch-site"]) == (server.url, "same-origin")
    assert not any(token in request.all_headers().get("referer", "") + request.url for request in requests[1:])
    page.goto(f"/start/{token}")
    expect(page.get_by_role("heading")).to_have_text("Not found")


def test_everything_works_without_scripts(server: Server, context: Context) -> None:
    admin = context(java_script_enabled=False).new_page()
    enter(admin, server)
    admin.get_by_role("link", name="People").click()
    admin.get_by_label("Role").first.select_option("reviewer")
    admin.get_by_label("Group, if any").fill("nurses")
    admin.get_by_role("button", name="Make a link", exact=True).click()
    link = admin.get_by_label(re.compile("Copy the new reviewer's link")).input_value()
    bob = context(java_script_enabled=False).new_page()
    bob.goto(link)
    expect(bob.get_by_text("You come in as a reviewer, in the group nurses.")).to_be_visible()
    bob.get_by_label("Your name").fill("bob <b>")
    bob.get_by_role("button", name="Come in").click()
    expect(bob.get_by_role("alert")).to_contain_text("A name has")
    expect(bob.get_by_label("Your name")).to_have_value("bob <b>")
    bob.get_by_label("Your name").fill("bob")
    bob.get_by_label(re.compile("Password")).fill(PASSWORD)
    bob.get_by_role("button", name="Come in").click()
    bob.get_by_role("link", name="bob").click()
    bob.get_by_role("button", name="Make a token").click()
    token = bob.get_by_label(re.compile("Your new token")).input_value()
    account = server.workspace.accounts.by_token(token)
    assert account is not None and (account.name, account.role, account.group) == ("bob", "reviewer", "nurses")
    bob.get_by_label("Current password").fill(PASSWORD)
    bob.get_by_label("New password").fill(PASSWORD[::-1])
    bob.get_by_role("button", name="Set password").click()
    bob.get_by_role("button", name="Sign out", exact=True).click()
    bob.get_by_label("Name").fill("bob")
    bob.get_by_label("Password").fill(PASSWORD)
    bob.get_by_role("button", name="Sign in").click()
    expect(bob.get_by_role("alert")).to_contain_text("no account with this name and this password")
    bob.get_by_label("Password").fill(PASSWORD[::-1])
    bob.get_by_role("button", name="Sign in").click()
    expect(bob.get_by_role("link", name="bob")).to_be_visible()


def test_every_control_of_the_people_page_does_what_it_says(server: Server, context: Context) -> None:
    accounts, page = server.workspace.accounts, context().new_page()
    enter(page, server)
    accounts.create("bob", "labeler", by="Ada")
    token = accounts.new_token("bob", by="Ada")

    def bobs() -> Any:
        page.goto("/people")
        card = page.get_by_role("region", name="bob")
        card.get_by_text("Change").click()
        return card

    bobs().get_by_label("Role").select_option("reviewer")
    page.get_by_role("region", name="bob").get_by_role("button", name="Set role").click()
    expect(page.get_by_role("region", name="bob")).to_contain_text("reviewer")
    assert accounts.get("bob").role == "reviewer" and accounts.by_token(token) is None
    bobs().get_by_label("Group").fill("nurses")
    page.get_by_role("region", name="bob").get_by_role("button", name="Set group").click()
    expect(page.get_by_role("region", name="bob")).to_contain_text("group nurses")
    bobs().get_by_role("button", name="Pause").click()
    expect(page.get_by_role("region", name="bob")).to_contain_text("paused")
    assert accounts.get("bob").paused
    bobs().get_by_role("button", name="End the pause").click()
    expect(page.get_by_role("region", name="bob")).not_to_contain_text("paused")
    bobs().get_by_role("button", name="Make an API token").click()
    assert accounts.by_token(page.get_by_label(re.compile("Copy bob's API token")).input_value())
    bobs().get_by_role("button", name="Drop the API token").click()
    expect(page.get_by_role("heading", name="People")).to_be_visible()
    assert not accounts.get("bob").has_token
    bobs().get_by_role("button", name="Make a link to come in again").click()
    link = page.get_by_label(re.compile("Copy bob's link")).input_value()
    page.goto("/people")
    page.get_by_role("button", name="Withdraw").click()
    expect(page.get_by_role("button", name="Withdraw")).to_have_count(0)
    assert server.workspace.invites.find(link.rpartition("/")[2]) is None
    session = server.workspace.sessions.begin("bob")
    bobs().get_by_role("button", name=re.compile("Shut out")).click()
    expect(page.get_by_role("heading", name="People")).to_be_visible()
    assert server.workspace.sessions.find(session) is None
    page.get_by_role("region", name="Ada").get_by_text("Change").click()
    page.get_by_role("region", name="Ada").get_by_label("Role").select_option("labeler")
    page.get_by_role("region", name="Ada").get_by_role("button", name="Set role").click()
    expect(page.get_by_role("alert")).to_contain_text("only admin")
    page.goto("/me")
    server.workspace.sessions.begin("Ada")
    page.reload()
    page.get_by_role("row").get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("row")).to_have_count(2)
    page.get_by_role("button", name="Sign out everywhere").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert server.workspace.sessions.of("Ada") == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_9_forms_of_other_pages_are_refused(
    server: Server, context: Context, elsewhere: Callable[..., str], host: str
) -> None:
    page = context().new_page()
    enter(page, server)
    form = f"""<form method="post" action="{server.url}/people/invite" {{}}><input name="role" value="admin">
        <input name="csrf" value="x"></form><script>document.forms[0].submit()</script>"""
    for kind in ("", 'enctype="multipart/form-data"', 'enctype="text/plain"'):
        page.goto(elsewhere(form.format(kind), host))
        expect(page.locator("body")).to_contain_text("nothing was done")
    framed = (
        f'<iframe sandbox="allow-forms allow-scripts" srcdoc="{form.format("").replace(chr(34), "&quot;")}"></iframe>'
    )
    server.answered.clear()
    page.goto(elsewhere(framed, host))
    until(lambda: [one for one in server.answered if one.path == "/people/invite"])
    assert Answered("/people/invite", "null", 403) in server.answered
    assert server.workspace.invites.open() == []
    page.goto("/people")
    page.get_by_role("button", name="Make a link", exact=True).click()
    assert len(server.workspace.invites.open()) == 1  # the control


def test_17_other_pages_can_neither_frame_nor_read_ours(
    server: Server, context: Context, elsewhere: Callable[..., str]
) -> None:
    page = context().new_page()
    enter(page, server)
    with page.expect_event("console", lambda said: said.text.startswith("Framing")):
        page.goto(elsewhere(f'<iframe src="{server.url}/people"></iframe>'))
    read = page.evaluate(
        """async (url) => { try { const r = await fetch(url, {credentials: "include"}); return await r.text() }
        catch (error) { return "refused" } }""",
        f"{server.url}/people",
    )
    assert read == "refused"


def test_16_a_name_that_was_turned_to_this_machine_is_refused(server: Server, context: Context) -> None:
    page = context().new_page()
    response = page.goto(f"http://rebound.example:{server.port}/login")
    assert response is not None and response.status == 400
    expect(page.locator("body")).to_contain_text("does not go by that name")


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_pages_are_usable_by_everybody(server: Server, context: Context, width: int, scheme: Any) -> None:
    page = context(viewport={"width": width, "height": 800}, color_scheme=scheme).new_page()
    page.goto(f"/start/{server.workspace.invites.start()}")
    seen = [check(page)]
    page.get_by_label("Your name").fill("Ada")
    page.get_by_role("button", name="Come in").click()
    page.goto("/people")
    page.get_by_role("button", name="Make a link", exact=True).click()
    page.get_by_text("Change").click()
    seen.append(check(page))
    page.goto("/me")
    page.get_by_role("button", name="Make a token").click()
    seen.append(check(page))
    page.get_by_role("button", name="Sign out", exact=True).first.click()
    seen.append(check(page))
    assert seen == [[]] * 4


def check(page: Page) -> list[str]:
    """What axe finds serious, and whether the page is wider than its window."""
    found = [
        f"{page.url}: {one['id']}: {[node['html'] for node in one['nodes']]}"
        for one in Axe().run(page).response["violations"]
        if one["impact"] in ("serious", "critical")
    ]
    wide = page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
    return [*found, f"{page.url} is too wide"] if wide else found
