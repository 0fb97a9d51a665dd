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

from playwright.sync_api import Browser, Page, sync_playwright

from prefloop.store.answers import Answer
from prefloop.types import CANT_JUDGE
from prefloop.web import example
from prefloop.web.serve import workspace_key
from prefloop.web.workspace import Workspace, open_workspace

IMAGES = Path(__file__).parents[1] / "docs" / "images"
WIDTHS = {"wide": 1280, "phone": 390}
PEOPLE = {"Ada": ("admin", ""), "Bo": ("labeler", "students"), "Chi": ("labeler", "students"), "Dee": ("labeler", "staff")}


def label(work: Workspace, run: str) -> None:
    """Everybody labels, with a taste for longer answers in common, each with a care of their own."""
    campaign = work.campaigns.by_run(run)
    for care, name in enumerate(PEOPLE, 1):
        rng = random.Random(name)
        while (task := work.desk.next_task(campaign, name)) and not (name == "Dee" and rng.random() < 0.15):
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


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """`prefloop serve`; gives the link that it prints."""
    command = [sys.executable, "-m", "prefloop", "serve", "--port", "0"]
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
