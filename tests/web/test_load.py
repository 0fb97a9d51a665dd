"""Labelers at work while exports are made and the campaign page is open: checklist (labeling.md, 3.3), line 34.

`benchmarks/labeling/load.py` is the same with 50 labelers for 10 minutes."""

from __future__ import annotations

import itertools
import json
import random
import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from prefloop.store.exchange import check_manifest
from prefloop.store.labels import STANDING
from prefloop.web.limits import Limits
from tests.patience import until
from tests.web.campaigns import campaign, rows
from tests.web.serving import Server, Visitor, running
from tests.web.test_transfer import exported

LABELERS = 10
SECONDS = 8.0
MUCH = (1e6, 1e6)


class Labeler(threading.Thread):
    """Takes tasks and answers them without a pause; each third answer is sent twice."""

    def __init__(self, visitor: Visitor, home: str, until: float) -> None:
        super().__init__()
        self.visitor, self.home, self.until = visitor, home, until
        self.rng, self.acked, self.failed = random.Random(visitor.name), set[str](), ""

    def run(self) -> None:
        try:
            self._work(self.visitor.csrf)
        except Exception as error:
            self.failed = repr(error)

    def _work(self, csrf: str) -> None:
        task = self.visitor.post(f"{self.home}/next", data={"csrf": csrf}).headers["location"]
        while time.monotonic() < self.until and task.startswith("/t/"):
            page = self.visitor.get(task)
            assert page.status_code == 200
            nonce = re.findall(r'name="nonce" value="([^"]+)"', page.text)[0]
            said = {"csrf": csrf, "nonce": nonce, "version": "1", "axis:overall": str(self.rng.choice((-2, 0, 2, 3)))}
            for _ in range(2 if len(self.acked) % 3 == 0 else 1):
                reply = self.visitor.post(f"{task}/submit", data=said)
                assert reply.status_code == 303
            self.acked.add(nonce)
            task = reply.headers["location"]


def test_line_34_nothing_is_lost_or_doubled_and_the_agreement_shown_is_that_of_the_labels(
    server: Server,
) -> None:
    workspace = server.workspace
    made = campaign(workspace, names=[f"{n:03}" for n in range(60)], overlap=3, repeat_share=0.05)
    home, ends = f"/c/{made.id}", time.monotonic() + SECONDS
    with running(workspace, Limits(address_rate=MUCH, session_rate=MUCH)) as busy:
        boss = busy.visitor("admin")
        everyone = [Labeler(busy.visitor("labeler"), home, ends) for _ in range(LABELERS)]
        for labeler in everyone:
            labeler.start()
        while time.monotonic() < ends:
            assert boss.get(f"{home}/manage").status_code == 200
            assert boss.submit(f"{home}/export", format="jsonl").status_code in (303, 400)  # 400: one is under way
            time.sleep(0.5)
        for labeler in everyone:
            labeler.join()
        assert [labeler.failed for labeler in everyone if labeler.failed] == []
        judged = rows(workspace, "judgments")
        shown = displayed(boss, home, judged[-1]["number"])
    acked = [nonce for labeler in everyone for nonce in labeler.acked]
    assert len(acked) > LABELERS and sorted(row["nonce"] for row in judged) == sorted(acked)
    counted = [row for row in judged if row["status"] == "counted"]
    for item in rows(workspace, "comparisons"):
        mine = [row["annotator"] for row in counted if row["comparison_id"] == item["id"]]
        assert item["counted"] == len(mine) == len(set(mine)) <= item["needed"] == 3
    assert workspace.store.verify().judgments == len(acked)
    assert shown == f"{100 * agreement(row for row in judged if row['status'] in STANDING):.0f} %"
    files = exported(workspace)
    assert files
    for path in files:
        check_manifest(path)
        sizes = [len(json.loads(line)["labels"]) for line in path.read_text().splitlines()]
        assert len(sizes) == 60 and sum(sizes) <= len(acked)


def displayed(boss: Visitor, home: str, newest: int) -> str:
    """Equal pairs as the campaign page shows them, once its figures are as new as the labels."""

    def page() -> str:
        return boss.get(f"{home}/manage").text

    until(lambda: f"As of label #{newest}," in page())
    return re.findall(r'<th scope="row"><bdi>overall</bdi></th><td>\s*([\d.]+ %)', page())[0]


def agreement(judged: Iterable[Any]) -> float:
    """Share of the pairs of labels of one item that prefer the same answer."""
    said = defaultdict(list)
    for row in judged:
        said[row["comparison_id"]].append(row["choice"])
    pairs = [(a, b) for labels in said.values() for a, b in itertools.combinations(labels, 2)]
    return sum((a > 0) - (a < 0) == (b > 0) - (b < 0) for a, b in pairs) / len(pairs)
