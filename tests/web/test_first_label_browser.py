"""The first minute of somebody new: a command, a link, a label."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from playwright.sync_api import Browser

from prefloop.store.labels import open_store
from prefloop.web.example import RUN


def test_the_first_label_is_there_within_a_minute_of_the_command(browser: Browser, tmp_path: Path) -> None:
    began = time.monotonic()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "prefloop", "serve"]
    server = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=environment)
    assert server.stdout is not None
    try:
        link = next(found[0] for line in server.stdout if (found := re.search(r"http://\S+/start/\S+", line)))
        with browser.new_context() as context:
            context.set_default_timeout(60_000)
            page = context.new_page()
            page.goto(link)
            page.get_by_label("Your name").fill("ada")
            page.get_by_role("button", name="Come in").click()
            page.get_by_role("button", name="Try it").click()
            page.locator("form[action$='/next'] button").first.click()
            page.wait_for_selector("#answer-1")
            page.wait_for_load_state()  # its scripts take keys
            page.keyboard.press("2")
            page.keyboard.press("Enter")
            page.wait_for_url("**/known")  # the example begins with items whose answer is known
        took = time.monotonic() - began
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()
    with open_store(f"sqlite:///{tmp_path / 'prefloop.db'}") as store:
        assert store.verify().judgments == 1
        assert len(store.comparisons(RUN)) > 20
    assert took < 60
