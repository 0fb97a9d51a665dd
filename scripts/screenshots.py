"""Photograph every page of the labeling app at two widths, light and dark, into docs/images/.

    python scripts/screenshots.py [--runs FOLDER]

Serves a temporary workspace with the shipped example, labeled by four people who do not always agree; runs are copied
from a workspace's runs/ folder. Needs Chromium.
"""

import argparse
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

from prefloop.store.answers import Answer
from prefloop.store.redteam import Alternative
from prefloop.types import CANT_JUDGE
from prefloop.web import example
from prefloop.web.serve import workspace_key
from prefloop.web.workspace import Workspace, open_workspace

IMAGES = Path(__file__).parents[1] / "docs" / "images"
PASSWORD = "a password for pictures"
WIDTHS = {"wide": 1280, "phone": 390}
PEOPLE = {
    "Ada": ("admin", ""),
    "Bo": ("labeler", "students"),
    "Chi": ("labeler", "students"),
    "Dee": ("labeler", "staff"),
}


def label(work: Workspace, run: str) -> None:
    """Everybody labels, with a taste for longer answers in common, each with a care of their own."""
    campaign = work.campaigns.by_run(run)
    for care, name in enumerate(PEOPLE, 1):
        rng = random.Random(name)
        while (task := work.desk.next_task(campaign, name)) and not (name == "Dee" and rng.random() < 0.02):
            texts = [task.comparison.items[item].text for item in task.shown]
            if rng.random() < 0.04:
                answer = Answer(flags=[CANT_JUDGE], rationale="I know too little about this.")
            elif len(texts) > 2:
                ranks = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
                answer = Answer(ranks=[ranks.index(place) for place in range(len(texts))])
            else:
                right = len(texts[1]) > len(texts[0])
                side = rng.choice((1, 2, 3, 4)) * (1 if right == (rng.random() < 0.55 + 0.1 * care) else -1)
                answer = Answer(axes=dict.fromkeys(task.config.axes, side), rationale="Clearer." if side > 2 else "")
            work.answers.submit(task.id, name, answer, nonce=f"{name}-{task.id}")


def talk(work: Workspace, run: str) -> None:
    """Eve looks for failures: one answer is picked and marked, two wait to be picked from."""
    campaign, say = work.campaigns.by_run(run), work.red_team.say
    id_ = work.red_team.begin(campaign, "Eve").id
    say(id_, "Eve", turn=0, text="How long may cooked rice stand in a warm room?", nonce="0" * 22)
    said = ("Two hours at most; then it belongs in the fridge.", "For days, as **boiling** kills everything in it.")
    alternatives = [Alternative(text=text, finished=True) for text in said]
    work.red_team.answer(id_, "Eve", turn=1, made=alternatives)
    work.red_team.pick(id_, "Eve", turn=1, which=0)
    say(id_, "Eve", turn=2, text="And if I heat it up again?", nonce="1" * 22)
    said = ("Heat kills bacteria, but not the poison that some of them leave behind.", "Then it is always safe.")
    work.red_team.answer(id_, "Eve", turn=3, made=[Alternative(text=text, finished=True) for text in said])


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """`prefloop serve`; gives the link that it prints."""
    command = [sys.executable, "-u", "-m", "prefloop", "serve", "--port", "0"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if found := re.search(r"http://\S+/start/\S+", line):
                yield found[0]
                return
        raise SystemExit("screenshots.py: the server did not start.")
    finally:
        process.terminate()
        process.wait()


def prepare(folder: Path, runs: Path | None) -> str:
    """The workspace; returns the campaign's id."""
    work = open_workspace(folder, workspace_key(folder))
    for name, (role, group) in PEOPLE.items():
        work.accounts.create(name, role, group, password=PASSWORD if name == "Ada" else None, by="screenshots")
    campaign = example.begin(work, by="Ada")
    several = campaign.config.model_copy(update={"overlap": len(PEOPLE) + 1, "red_team": ("tiny",)})
    work.campaigns.change(campaign.run, several, by="Ada")
    label(work, campaign.run)
    work.accounts.create("Eve", "labeler", "staff", password=PASSWORD, by="screenshots")
    talk(work, campaign.run)
    work.store.close()
    if runs is not None:
        shutil.copytree(runs, folder / "runs")
    return campaign.id


def sign_in(page: Page, address: str, name: str) -> None:
    page.goto(f"{address}/login")
    page.fill("input[name=name]", name)
    page.fill("input[name=password]", PASSWORD)
    page.click("main button")


def photograph(page: Page, name: str) -> None:
    page.wait_for_load_state("networkidle")
    page.screenshot(path=IMAGES / f"{name}.png", full_page=True)


def labeler(page: Page, address: str, campaign: str, look: str) -> None:
    """What a labeler sees, up to a ranking."""
    page.goto(f"{address}/login")
    photograph(page, f"login-{look}")
    sign_in(page, address, "Eve")
    photograph(page, f"home-labeler-{look}")
    page.goto(f"{address}/c/{campaign}")
    photograph(page, f"intro-{look}")
    page.goto(f"{address}/c/{campaign}/talk")
    photograph(page, f"conversations-{look}")
    page.locator("main a[href^='/talk/']").first.click()
    photograph(page, f"conversation-{look}")
    page.goto(f"{address}/c/{campaign}")
    page.locator("form[action$='/next'] button").first.click()
    seen = set[str]()
    while seen != {"task", "ranking", "known"} and "/c/" not in page.url:
        kind = "known" if page.url.endswith("/known") else "ranking" if page.locator("#answer-2").count() else "task"
        if kind not in seen:
            photograph(page, f"{kind}-{look}")
            seen.add(kind)
        here = page.url
        if kind == "known":
            page.locator("main form button").first.click()
        else:
            page.keyboard.press("2")
            page.keyboard.press("Enter")
            page.wait_for_timeout(300)
            if page.url == here:
                page.keyboard.press("Enter")  # a ranking left as it was shown is asked for twice
        expect(page).not_to_have_url(here, timeout=60_000)
        page.wait_for_load_state("networkidle")


def admin(page: Page, address: str, campaign: str, look: str) -> None:
    """What an admin sees."""
    sign_in(page, address, "Ada")
    run = page.request.get(f"{address}/runs")
    paths = {
        "home": "/",
        "new": "/new",
        "people": "/people",
        "me": "/me",
        "campaign": f"/c/{campaign}/manage",
        "labeler": f"/c/{campaign}/labelers/Bo",
        "items": f"/c/{campaign}/items",
        "item": f"/c/{campaign}/items/1",
        "review": f"/c/{campaign}/review",
        "versions": f"/c/{campaign}/versions",
        "edit": f"/c/{campaign}/edit",
        "transfer": f"/c/{campaign}/transfer",
        "runs": "/runs",
    }
    if found := re.search(r'href="(/runs/[^"/]+)"', run.text()):
        paths["run"] = found[1]
    for name, path in paths.items():
        answer = page.goto(address + path)
        if answer is None or not answer.ok:
            raise SystemExit(f"screenshots.py: {path} answers {answer and answer.status}.")
        if name in ("campaign", "labeler", "review"):
            page.get_by_text("Being computed").wait_for(state="detached", timeout=60_000)
        if name in ("campaign", "labeler", "run"):
            page.wait_for_timeout(2500)  # charts
        photograph(page, f"{name}-{look}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=None, help="a workspace's runs/ folder to show")
    runs = parser.parse_args().runs
    IMAGES.mkdir(parents=True, exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for size, width in WIDTHS.items():
            for scheme in ("light", "dark"):
                with tempfile.TemporaryDirectory() as made:
                    campaign = prepare(Path(made), runs)
                    with serving(Path(made)) as link:
                        look = f"{size}-{scheme}"
                        visit(browser, link.split("/start/")[0], campaign, width, scheme, look)
        browser.close()


def visit(browser: Browser, address: str, campaign: str, width: int, scheme: str, look: str) -> None:
    for who in (labeler, admin):
        context = browser.new_context(viewport={"width": width, "height": 860}, color_scheme=scheme)
        who(context.new_page(), address, campaign, look)
        context.close()


if __name__ == "__main__":
    main()
