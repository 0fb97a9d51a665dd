"""Hostile content in Chromium, on every page that shows it: checklist (labeling.md, 3.3), lines 1 to 8."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from prefloop.store.campaigns import Item
from prefloop.store.imports import import_items
from prefloop.store.labels import open_store
from tests.patience import cpu_under
from tests.store.scene import plain
from tests.web import hostile
from tests.web import page as reading
from tests.web.browsing import Watch, tapped, watched
from tests.web.campaigns import rows, send
from tests.web.hostile import BOMBS, GADGETS, HOST, HTML, STEERING
from tests.web.planted import FILE, NAMES, RUN, SECRETS, TEXTS, comparison, comparisons, labels, plant
from tests.web.serving import Server

pytestmark = pytest.mark.xdist_group("hostile")  # one tour of all pages serves them
NAMES_OF_MODELS = list(hostile.NAMES.values())
ENDING = ("plaintext", "textarea", "comment", "refresh", "script unclosed", "closing tags", "template", "noscript")
"""Texts that would swallow those after them, or leave the page."""
ACTIVE = {"img", "image", "script", "iframe", "form", "input", "style", "link", "svg", "object", "base", "meta"}
BOMB_NAMES = [
    *("quotes on one line", "lists, indented", "line of 1 MB, signs", "tags", "zalgo", "fence unclosed, long"),
    *("definition of many uses", "brackets, nested", "links in links", "emphasis, nested", "backticks", "table, wide"),
    *("formula, nested", "formulas", "code, quotes of JavaScript", "code blocks", "emoji", "everything"),
]

WRITTEN = [text for text in TEXTS if not re.search("[\r\0\ud800-\udfff]", text)]
"""What a field of a form can hold."""
TAGS = """
html head meta title link script body header nav main div section article footer form input button label select option
textarea fieldset legend details summary p span a br h1 h2 h3 h4 ol ul li table thead tbody tr th td kbd progress
datalist strong code dialog noscript iframe bdi del ins dl dt dd figure figcaption
"""
"""Of the pages' own; images, styles, bases and objects are none of them."""
ATTRIBUTES = """
lang charset name content rel type class id tabindex method value for hidden disabled checked selected open max min rows
required readonly maxlength minlength placeholder autocomplete autofocus inputmode list enctype accept download role
scope form nonce title dir loading height width target
"""
LOOK = """([tags, attributes]) => {
  const texts = '.text, bdi, .change', odd = [];
  const within = element => element.parentElement && element.parentElement.closest(texts);
  const fine = (element, {name, value}) => {
    if (name === 'href') return /^(\\/(?!\\/)|[#?])/.test(value);
    if (name === 'action') return /^(\\/(?!\\/)|#)/.test(value);
    if (name === 'src') return /^\\/(static|charts)\\//.test(value);
    return attributes.includes(name) || /^(aria|data)-[a-z-]+$/.test(name);
  };
  for (const element of document.querySelectorAll('*')) {
    if (within(element)) continue;
    if (!tags.includes(element.localName)) odd.push(element.outerHTML.slice(0, 200));
    for (const attribute of element.attributes)
      if (!fine(element, attribute)) odd.push(`${element.localName} ${attribute.name}=${attribute.value.slice(0, 80)}`);
  }
  const shown = [...document.querySelectorAll(texts)].filter(element => !within(element));
  const read = document.body.cloneNode(true);
  read.querySelectorAll('textarea, noscript').forEach(element => element.remove());
  return {odd, texts: shown.map(element => element.innerHTML), words: read.textContent, pwned: window.pwned};
}"""


@dataclass
class Seen:
    """A page as the browser has it: `odd`: what stands outside of others' texts and is none of ours; `texts`: the HTML
    within others' texts; `words`: all text."""

    address: str
    odd: list[str]
    texts: list[str]
    words: str
    pwned: Any

    @property
    def faults(self) -> list[str]:
        """What is not allowed within others' texts."""
        own = ' tabindex="0"'  # of code that the page's script lets scroll
        return [fault for text in set(self.texts) for fault in reading.Page(text.replace(own, "")).faults()]


@dataclass
class Tour:
    """What a labeler and an admin saw; what the labeler wrote; every byte that reached the labeler."""

    server: Server
    labeler: list[Seen]
    admin: list[Seen]
    watches: list[Watch]
    wrote: list[str]
    sent: bytes

    @property
    def pages(self) -> list[Seen]:
        return [*self.labeler, *self.admin]


def look(page: Page) -> Seen:
    page.wait_for_load_state("load")
    found = page.evaluate(LOOK, [TAGS.split(), ATTRIBUTES.split()])
    return Seen(address=page.url, **found)


def onward(page: Page, act: Callable[[], Any]) -> None:
    """Do what leads to another page."""
    before = page.url
    act()
    expect(page).not_to_have_url(before)
    page.wait_for_load_state()


def judge(page: Page, why: str) -> None:
    """Answer a task by mouse and keys."""
    page.locator("#rationale").fill(why)
    page.keyboard.press("Escape")
    if page.locator(".axis [data-key]").count():
        for _ in NAMES:
            page.keyboard.press("9")
    else:
        page.get_by_role("button", name="Answer B up").click()
    onward(page, lambda: page.get_by_role("button", name="Submit").click())


def label_all(page: Page, home: str) -> tuple[list[Seen], list[str]]:
    """Every page of a labeler: the campaign, each task until none is left, one as answered, conversations."""
    seen, wrote, tasks = [], [], []
    for address in ("/", "/me", home):
        page.goto(address)
        seen.append(look(page))
    onward(page, lambda: page.get_by_role("button", name="Start").click())
    while "/t/" in page.url:
        seen.append(look(page))
        if page.url.endswith("/known"):
            onward(page, lambda: page.get_by_role("button", name="Continue").click())
        else:
            tasks.append(page.url)
            wrote.append(WRITTEN[len(wrote) % len(WRITTEN)])
            judge(page, wrote[-1])
    for address in (page.url, tasks[-1], f"{tasks[-1]}?change", f"{home}/talk"):
        page.goto(address)
        seen.append(look(page))
    talks = [link.get_attribute("href") or "" for link in page.locator("article a").all()]
    for address in talks:
        page.goto(address)
        seen.append(look(page))
    return seen, wrote


def manage_all(page: Page, home: str) -> list[Seen]:
    """Every page of an admin that shows what others wrote, and what their forms answer."""
    seen = []
    plain = ("manage", "review", "versions", "edit", "transfer", "items?state=held")
    others = ("/", "/new", "/people", "/runs", "/c/nothing")
    for address in (*others, *(f"{home}/{name}" for name in plain)):
        page.goto(address)
        seen.append(look(page))
    page.goto(f"{home}/items")
    seen.append(look(page))
    for address in [link.get_attribute("href") or "" for link in page.locator("tbody a").all()]:
        page.goto(address)
        seen.append(look(page))
    page.locator("tbody th a").first.click()
    seen.append(look(page))
    page.goto(f"{home}/edit")
    page.get_by_label("Title").fill(f"{NAMES[0]} once more")
    page.get_by_label("Axes, one a line").fill("one\n" + "a" * 90)
    for name in ("Preview the guidelines", "Save"):
        page.get_by_role("button", name=name).click()
        seen.append(look(page))
    page.get_by_label("Axes, one a line").fill("\n".join(NAMES))
    onward(page, lambda: page.get_by_role("button", name="Save").click())
    seen.append(look(page))
    page.goto(f"{home}/transfer")
    page.get_by_label("or a file in the workspace folder").fill(FILE)
    page.get_by_role("button", name="Import").click()
    expect(page.locator(".error")).to_contain_text("unknown layout")
    seen.append(look(page))
    page.goto("/runs")
    onward(page, lambda: page.locator("main a").first.click())
    for _ in range(2):
        seen.append(look(page))
        onward(page, lambda: page.get_by_role("link", name="Next").click())
    seen.append(look(page))
    return seen


@pytest.fixture(scope="module")
def tour(shared: Server, browser: Browser) -> Tour:
    visitor, admin = shared.visitor("labeler", "Ada"), shared.visitor("admin", "Grace")
    home = f"/c/{plant(shared.workspace, visitor.name).id}"
    with tapped(shared) as tap, watched(browser, visitor, tap.address) as one, watched(browser, admin) as other:
        seen, wrote = label_all(one.page(), home)
        managed = manage_all(other.page(), home)
        return Tour(shared, seen, managed, [one, other], wrote, tap.sent)


def test_line_01_nothing_acts_and_the_policy_has_nothing_to_stop(tour: Tour) -> None:
    assert len(tour.labeler) > 25 and len(tour.admin) > 40
    assert [watch.faults for watch in tour.watches] == [[], []]
    assert [seen.address for seen in tour.pages if seen.pwned is not None] == []


def test_line_01_no_element_and_no_attribute_is_beyond_the_lists(tour: Tour) -> None:
    assert {seen.address: seen.odd for seen in tour.pages if seen.odd} == {}
    assert {seen.address: seen.faults for seen in tour.pages if seen.faults} == {}


@pytest.mark.parametrize("name", [name for name in HTML if name not in ("entities", "heading")])
def test_line_01_html_shows_as_text_to_labelers_and_reviewers(tour: Tour, name: str) -> None:
    for pages, kind in ((tour.labeler, "/t/"), (tour.admin, "/items/")):
        assert [seen for seen in pages if kind in seen.address and bare(HTML[name]) in bare(seen.words)], kind


def bare(text: str) -> str:
    """Letters, digits and the signs of tags."""
    return re.sub(r"[^\w<>=/]", "", text)


def test_line_01_the_watch_sees_what_would_act(tour: Tour, browser: Browser) -> None:
    """The control: the same texts, written into a page of ours unescaped, under the policy that we send."""
    visitor = tour.server.visitor("labeler")
    policy = visitor.get("/").headers["content-security-policy"]
    with watched(browser, visitor) as watch:
        for texts, wanted in ((HTML, 20), (GADGETS, 5)):
            page, found = watch.page(), []
            body = "".join(f"<div class=text>{text}</div>" for name, text in texts.items() if name not in ENDING)
            page.route("**/raw", _served(body, policy))
            page.goto("/raw")
            found = look(page).faults
            assert len(found) > wanted
        page.context.clear_cookies()
    assert len(watch.violations) > 10


def _served(body: str, policy: str) -> Callable[[Route], None]:
    headers = {"content-security-policy": policy, "content-type": "text/html; charset=utf-8"}
    return lambda route: route.fulfill(body=body, headers=headers)


def test_line_02_attributes_that_scripts_act_on_are_only_text(tour: Tour) -> None:
    texts = [text for seen in tour.pages for text in seen.texts]
    assert not [text for text in texts if re.search(r"<[^>]*\s(?:hx-|data-hx|x-|v-|ng-|on|@|:)", text)]
    for text in GADGETS.values():
        shown = bare(re.sub(r"^```(.*?)\n.*", r"\1", text, flags=re.DOTALL))
        assert [seen for seen in tour.labeler if "/t/" in seen.address and shown in bare(seen.words)], text


def test_line_03_formulas_are_mathml_or_their_source(tour: Tour) -> None:
    texts = "".join(text for seen in tour.pages for text in seen.texts)
    made = "".join(re.findall(r"<math.*?</math>", texts, re.DOTALL))
    assert made.count("</math>") > 20 and set(re.findall(r"<(\w)", made)) == {"m"}
    assert not re.search(r"<[^>]*\s(?:href|src|id|class|style)=", made)
    for said in (
        r"\href{javascript:",
        r"\includegraphics",
        r"\htmlData",
        r"\def\a{xx}",
        r"\raise 100em",
        r"\rule{999em}",
    ):
        assert [seen for seen in tour.labeler if "/t/" in seen.address and said in seen.words], said


def test_line_04_images_are_told_of_and_never_asked_for(tour: Tour) -> None:
    texts = "".join(text for seen in tour.pages for text in seen.texts)
    assert not re.search("<(?:img|image|video|audio|picture)", texts)
    assert [seen for seen in tour.labeler if f"[image: tracking, https://{HOST}/pixel.png?who=me]" in seen.words]


@pytest.mark.parametrize("names", [BOMB_NAMES[:9], BOMB_NAMES[9:]])
def test_line_04_texts_made_to_take_for_ever_are_shown_and_answered(
    shared: Server, browser: Browser, names: list[str]
) -> None:
    """Seconds are those of this process: the server's, but for what the browser's client takes."""
    run, visitor = f"bombs-{names[0]}", shared.visitor("labeler")
    shared.workspace.store.add_comparisons(run, [comparison("bombs", [BOMBS[name] for name in names], ["Rank them."])])
    made = shared.workspace.campaigns.create(run, plain(), by="prefloop")
    shared.workspace.campaigns.add_items(run, [Item(comparison_id="zqmark-item-bombs")], by="prefloop")
    with watched(browser, visitor) as watch:
        page = watch.page()
        page.goto(f"/c/{made.id}")
        with cpu_under(len(names) * 0.6):
            onward(page, lambda: page.get_by_role("button", name="Start").click())
        seen = look(page)
        assert seen.odd == [] and not set(re.findall(r"<([a-z]\w*)", "".join(seen.texts))) & ACTIVE
        judge(page, "")
        assert "/t/" not in page.url
    assert watch.faults == [] and len(shared.workspace.store.judgments(run)) == 1


def test_line_05_odd_characters_are_seen(tour: Tour) -> None:
    for seen in tour.pages:
        assert reading.hidden(seen.words) == [], seen.address
    shown = "".join(seen.words for seen in tour.labeler if "/t/" in seen.address)
    for mark in ("[U+202E]", "[U+200B x500]", "[U+0000]", "[U+D800]", "[U+E000]", "[894 combining marks]", "[U+FDD0]"):
        assert mark in shown


def test_line_05_what_is_stored_is_what_came(tour: Tour) -> None:
    store = tour.server.workspace.store
    kept = {made.id: made for made in store.comparisons(RUN)}
    assert [kept[made.id] for made in comparisons()] == comparisons()
    said = {(judged.comparison_id, judged.annotator): judged for judged in store.judgments(RUN)}
    wanted = [judged for made in comparisons()[:-2] for judged in labels(made)]
    assert [said[judged.comparison_id, judged.annotator] for judged in wanted] == wanted
    mine = [
        row["content"]["rationale"] for row in rows(tour.server.workspace, "judgments") if row["annotator"] == "Ada"
    ]
    assert mine[-len(tour.wrote) :] == tour.wrote


def test_line_05_bytes_that_are_no_text_are_replaced_or_named(tour: Tour) -> None:
    admin = tour.server.visitor("admin")
    made = tour.server.workspace.campaigns.by_run(RUN)
    form = f"csrf={admin.csrf}&do=preview&guidelines=%ff%fe%00%ed%a0%80".encode()
    headers = {"content-type": "application/x-www-form-urlencoded"}
    reply = admin.post(f"/c/{made.id}/edit", content=form, headers=headers)
    assert reply.status_code == 200 and "\ufffd\ufffd" in reply.text and "[U+0000]" in reply.text
    upload = ("odd.jsonl", b'{"prompt": "\xff", "chosen": "a", "rejected": "b"}\n')
    send(admin, "/import", {"campaign": made.id, "path": "", "pairs": "1", "ways": "2"}, upload)
    assert tour.server.workspace.jobs.wait(60)
    assert "UTF-8" in admin.get(f"/c/{made.id}/transfer").text


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_line_06_exports_are_lossless_and_a_spreadsheet_runs_nothing(
    tour: Tour, browser: Browser, tmp_path: Path, kind: str
) -> None:
    work = tour.server.workspace
    with watched(browser, tour.server.visitor("reviewer")) as watch:
        page = watch.page()
        page.goto(f"/c/{work.campaigns.by_run(RUN).id}/transfer")
        page.get_by_label("Format").select_option(kind)
        page.get_by_role("button", name="Export").click()
        expect(page.locator(".good")).to_contain_text("labels")
        with page.expect_download() as download:
            page.locator(f"a[download$='.{kind}'], a[href$='.{kind}']").first.click()
        path = tmp_path / f"labels.{kind}"
        download.value.save_as(path)
    assert watch.faults == []
    if kind == "csv":
        with path.open(newline="", encoding="utf-8") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert len(cells) > 1000 and not [
            cell for cell in cells if cell[:1] in tuple("=+-@\t\r") and not is_number(cell)
        ]
        assert "\x1b" not in "".join(cells)
        return
    with open_store(f"sqlite:///{tmp_path / 'again.db'}") as again:
        import_items(again, None, RUN, path)
        assert again.comparisons(RUN) == work.store.comparisons(RUN)
        said = [[replace(one, annotator="") for one in store.judgments(RUN)] for store in (again, work.store)]
        assert sorted(map(repr, said[0])) == sorted(map(repr, said[1]))


def is_number(cell: str) -> bool:
    return re.fullmatch(r"-?[0-9.]+(?:e-?[0-9]+)?", cell) is not None


def test_line_07_no_byte_that_reaches_a_labeler_tells_of_models_runs_or_others(tour: Tour) -> None:
    assert len(tour.sent) > 500_000 and b"/static/" in tour.sent and b"HTTP/1.1 303" in tour.sent
    assert [mark for mark in SECRETS if mark.encode() in tour.sent] == []
    assert not re.search(rb"(?im)^(?:etag|last-modified|server|x-powered-by):", tour.sent)
    managed = "".join(seen.words for seen in tour.admin)
    assert [mark for mark in SECRETS if mark in managed] == ["zqmark-", "7.7123"]  # the control


def test_line_07_a_page_is_as_long_whoever_wrote_its_answers(shared: Server) -> None:
    sizes = []
    for run, name in (("runs/a", "m"), ("runs/b", "a-model-with-a-much-longer-name" * 9)):
        made = comparison("same", ["one", "other"], ["Which?"])
        items = [replace(item, checkpoint=name, id=f"{name}{item.id}", seed=len(name)) for item in made.items]
        shared.workspace.store.add_comparisons(run, [replace(made, items=tuple(items))])
        campaign = shared.workspace.campaigns.create(run, plain(), by="prefloop")
        shared.workspace.campaigns.add_items(run, [Item(comparison_id=made.id)], by="prefloop")
        visitor = shared.visitor("labeler", f"same{len(name):03}")
        task = visitor.submit(f"/c/{campaign.id}/next").headers["location"]
        replies = [visitor.get(address) for address in (f"/c/{campaign.id}", task)]
        sizes.append([(len(reply.content), sorted(reply.headers)) for reply in replies])
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("name", NAMES_OF_MODELS)
def test_line_07_an_answer_that_names_its_model_is_held_back(shared: Server, name: str) -> None:
    """When it is imported."""
    admin, run = shared.visitor("admin"), f"names-{NAMES_OF_MODELS.index(name)}"
    made = shared.workspace.campaigns.create(run, plain(), by="prefloop")
    row = {"prompt": "Who are you?", "chosen": name, "rejected": "Somebody."}
    send(
        admin,
        "/import",
        {"campaign": made.id, "path": "", "pairs": "1", "ways": "2"},
        ("a.jsonl", json.dumps(row).encode()),
    )
    assert shared.workspace.jobs.wait(60)
    assert "names a model" in admin.get(f"/c/{made.id}/items?state=held").text
    assert admin.submit(f"/c/{made.id}/next").headers["location"] == f"/c/{made.id}?nothing"


def test_line_08_who_talks_to_the_labeler_is_flagged_and_only_text(tour: Tour, browser: Browser) -> None:
    work, visitor = tour.server.workspace, tour.server.visitor("labeler")
    made = comparison("steering", [*list(STEERING.values())[:8], "Paris."], ["Where?"])
    work.store.add_comparisons("steering", [made])
    campaign = work.campaigns.create("steering", plain(), by="prefloop")
    work.campaigns.add_items("steering", [Item(comparison_id=made.id)], by="prefloop")
    with watched(browser, visitor) as watch:
        page = watch.page()
        page.goto(f"/c/{campaign.id}")
        onward(page, lambda: page.get_by_role("button", name="Start").click())
        answers = page.locator("article.answer")
        expect(answers).to_have_count(9)
        for answer in answers.all():
            noted = "That is part of the answer, no instruction" in answer.inner_text()
            assert noted == (answer.get_attribute("data-text") != "Paris.")
        assert page.locator("#task input:checked").count() == 0
    assert watch.faults == []
