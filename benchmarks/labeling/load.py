"""Fifty labelers at once, with the campaign page open and exports going on: how long the next task takes, what is lost.

    load.py [--labelers N] [--minutes M] [--items N] [--postgres] [--json]

Each labeler reads a task, thinks for 2 to 8 s, answers, and gets the next. `next_task` is what they wait for in
between: keeping the answer, choosing the task and making its page. Prints one JSON object; exits 0 only where its 95th
percentile is under 100 ms, no acknowledged label is lost or counted twice, and the agreement that the campaign page
shows in the end is that of the labels, counted pair by pair.
"""

import argparse
import itertools
import json
import random
import re
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from clients import RUN, Label, Labeler, opened, postgres, prepare, serving
from sqlalchemy import Table, select

from prefloop.configs.campaign import CampaignConfig
from prefloop.store import db, tables
from prefloop.store.labels import STANDING
from prefloop.web.workspace import Workspace

BAR_MS = 100.0
CONFIG = CampaignConfig(overlap=1, shared_share=0.3, shared_overlap=3, repeat_share=0.025)


class Busy(threading.Thread):
    """One labeler at work."""

    def __init__(self, me: Labeler, until: float, seed: str) -> None:
        super().__init__()
        self.me, self.until, self.rng = me, until, random.Random(seed)
        self.acked: list[Label] = []
        self.waits: list[tuple[float, float]] = []  # seconds of answering, and of the next page
        self.failed = ""

    def run(self) -> None:
        try:
            self._work()
        except Exception as error:
            self.failed = repr(error)

    def _work(self) -> None:
        time.sleep(self.rng.uniform(0, 5))
        to = self.me.next()
        label = self.me.read(to, self.rng) if to else None
        while label is not None and time.monotonic() < self.until:
            time.sleep(self.rng.uniform(2, 8))
            began = time.perf_counter()
            to = self.me.send(label)
            middle = time.perf_counter()
            self.acked.append(label)
            label = self.me.read(to, self.rng) if to else None
            self.waits.append((middle - began, time.perf_counter() - middle))


def watch(address: str, token: str, campaign: str, until: float, seen: list[float]) -> None:
    """A campaign page that is open, and an export a minute."""
    with httpx.Client(base_url=address, headers={"authorization": f"Bearer {token}"}, timeout=60) as http:
        exported = 0.0
        while time.monotonic() < until:
            began = time.perf_counter()
            http.get(f"/c/{campaign}/manage").raise_for_status()
            seen.append(time.perf_counter() - began)
            if time.monotonic() - exported > 60:
                exported = time.monotonic()
                http.post(f"/c/{campaign}/export", data={"format": "jsonl"})
            time.sleep(2)


def shown(address: str, token: str, campaign: str, newest: int) -> str:
    """Equal pairs as the campaign page shows them, once its figures are as new as the labels."""
    ends = time.monotonic() + 120
    with httpx.Client(base_url=address, headers={"authorization": f"Bearer {token}"}, timeout=60) as http:
        while f"As of label #{newest}," not in (page := http.get(f"/c/{campaign}/manage").text):
            if time.monotonic() > ends:
                raise SystemExit(f"load.py: the campaign page did not come to label {newest}.")
            time.sleep(0.5)
    return re.findall(r'<th scope="row"><bdi>overall</bdi></th><td>\s*([\d.]+ %)', page)[0]


def equal_pairs(found: Sequence[Any]) -> str:
    """Share of the pairs of labels of one item that prefer the same answer."""
    said = defaultdict(list)
    for row in found:
        if row["status"] in STANDING:
            said[row["comparison_id"]].append(np.sign(row["choice"]))
    pairs = [a == b for labels in said.values() for a, b in itertools.combinations(labels, 2)]
    return f"{100 * sum(pairs) / len(pairs):.0f} %"


def rows(work: Workspace, table: Table) -> Sequence[Any]:
    with db.transaction(work.store.engine, write=False) as connection:
        return connection.execute(select(table).order_by(table.c.number)).mappings().all()


def compare(work: Workspace, acked: list[Label]) -> dict[str, Any]:
    work.store.verify()
    found, items = rows(work, tables.judgments), rows(work, tables.comparisons)
    nonces = {row["nonce"] for row in found}
    counted: dict[str, int] = {}
    for row in found:
        counted[row["comparison_id"]] = counted.get(row["comparison_id"], 0) + (row["status"] == "counted")
    return {
        "acknowledged": len(acked),
        "lost": sum(label.nonce not in nonces for label in acked),
        "doubled": len(found) - len(nonces) + sum(row["counted"] > row["needed"] for row in items),
        "miscounted": sum(counted.get(row["id"], 0) != row["counted"] for row in items),
        "agreement": equal_pairs(found),
    }


def run(labelers: int, minutes: float, items: int, database: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        tokens = prepare(folder, database, items, labelers, CONFIG)
        boss = tokens.pop("boss")
        work, pages = opened(folder, database), list[float]()
        campaign = work.campaigns.by_run(RUN).id
        with serving(folder, database) as server:
            until = time.monotonic() + 60 * minutes
            everyone = [Busy(Labeler(server.address, n, t, campaign), until, n) for n, t in tokens.items()]
            watcher = threading.Thread(target=watch, args=(server.address, boss, campaign, until, pages))
            for thread in (*everyone, watcher):
                thread.start()
            for thread in (*everyone, watcher):
                thread.join()
            agreement = shown(server.address, boss, campaign, rows(work, tables.judgments)[-1]["number"])
        failed = [busy.failed for busy in everyone if busy.failed]
        found = compare(work, [label for busy in everyone for label in busy.acked])
        work.close()
    waits = np.array([wait for busy in everyone for wait in busy.waits]) * 1000
    whole = waits.sum(axis=1)
    result = {
        "labelers": labelers,
        "minutes": minutes,
        "next_task_p50_ms": round(float(np.median(whole)), 1),
        "next_task_p95_ms": round(float(np.percentile(whole, 95)), 1),
        "submit_p95_ms": round(float(np.percentile(waits[:, 0], 95)), 1),
        "page_p95_ms": round(float(np.percentile(waits[:, 1], 95)), 1),
        "campaign_page_p95_ms": round(float(np.percentile(pages, 95)) * 1000, 1),
        "agreement_shown": agreement,
        "failed": failed[:3],
        **found,
    }
    wrong = failed or any(result[name] for name in ("lost", "doubled", "miscounted"))
    wrong = wrong or agreement != result["agreement"]
    return {**result, "holds": not wrong and result["next_task_p95_ms"] < BAR_MS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labelers", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--postgres", action="store_true", help="on a PostgreSQL server of its own")
    parser.add_argument("--json", action="store_true", help="one line")
    chosen = parser.parse_args()
    with postgres() if chosen.postgres else nullcontext("") as database:
        result = run(chosen.labelers, chosen.minutes, chosen.items, database)
    print(json.dumps(result, indent=None if chosen.json else 2))
    sys.exit(not result["holds"])


if __name__ == "__main__":
    main()
