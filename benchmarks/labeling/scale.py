"""100,000 items and 1,000,000 labels: how long the next task, the campaign page and an export take.

    scale.py [--items N] [--labels N] [--labelers N] [--json]

The tables are filled in one go; then a labeler asks for tasks and answers, the campaign page is fetched from a server,
and everything is exported. Prints one JSON object; exits 0 only where the next task takes less than 100 ms at the 95th
percentile, the page less than 1 s, and the export less than 60 s.
"""

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from clients import opened, serving
from sqlalchemy import insert, update

from prefloop.configs.campaign import CampaignConfig
from prefloop.store import audit, db, exchange, tables
from prefloop.store.answers import Answer, Answers, decode, told
from prefloop.store.assignment import Desk, Task
from prefloop.store.campaigns import Campaigns, recount
from prefloop.store.clock import Clock
from prefloop.types import Comparison, Completion, Json, Message, Prompt, Sampling, to_json

RUN = "scale"
SLICES = ("facts", "writing", "code", "safety", "maths")
BATCH = 10_000
WORDS = ("river", "sand", "light", "people", "wait", "rain", "model", "answer", "carry", "over", "long", "the", "and")


def comparison(i: int) -> Comparison:
    """Two answers of some 80 words."""
    rng = random.Random(i)
    prompt = Prompt(id=f"p{i}", messages=(Message(role="user", content=_text(rng, 20)),), slice=SLICES[i % 5])
    fixed: dict[str, Any] = {"prompt_id": prompt.id, "segments": (), "finish_reason": "stop", "sampling": Sampling()}
    items = tuple(Completion(id=f"c{i}-{k}", text=_text(rng, 80), seed=k, **fixed) for k in range(2))
    return Comparison(id=f"c{i:06}", prompt=prompt, items=items)


def _text(rng: random.Random, count: int) -> str:
    return " ".join(rng.choices(WORDS, k=count))


def fill(url: str, items: int, labels: int, labelers: int) -> None:
    """A campaign in the middle of its work: every item has labels and wants one more."""
    engine, clock = db.connect(url), Clock()
    names, each = [f"labeler{k:02}" for k in range(labelers)], labels // items
    config = CampaignConfig(overlap=each + 1, shared_share=0, calibration=0)
    campaigns = Campaigns(engine, clock)
    campaigns.create(RUN, config, by="scale")
    with db.transaction(engine, write=True) as connection:
        connection.execute(insert(tables.annotators), [{"name": name, "simulated": False} for name in names])
        for rows in _batches(_items(items, each)):
            connection.execute(insert(tables.comparisons), rows)
        done = dict.fromkeys(names, 0)
        for rows in _batches(_labels(items, each, names, config, clock())):
            connection.execute(insert(tables.tasks), [task for task, _ in rows])
            connection.execute(insert(tables.judgments), [judgment for _, judgment in rows])
            for task, _ in rows:
                done[task["annotator"]] += 1
        desks = [{"run": RUN, "annotator": n, "handed": c, "pairs": c, "turned": c // 2} for n, c in done.items()]
        connection.execute(insert(tables.desks), desks)
        recount(connection, RUN)
        connection.execute(update(tables.strata).values(handed=tables.strata.c.counted))
        audit.append(connection, at=clock(), actor="scale", kind="labels added", judged=range(1, items * each + 1))
    engine.dispose()


def _items(count: int, each: int) -> Iterator[dict[str, Json]]:
    chance = random.Random(0)
    for i in range(count):
        made = comparison(i)
        yield {
            "run": RUN,
            "id": made.id,
            "size": 2,
            "prompt": to_json(made.prompt),
            "items": to_json(made.items),
            "slice": made.prompt.slice,
            "priority": chance.random(),
            "shuffle": chance.random(),
            "held": "",
            "needed": each + 1,
            "counted": each,
            "taken": each,
            "shown": each,
            "turned": each // 2,
        }


def _labels(
    items: int, each: int, names: list[str], config: CampaignConfig, now: float
) -> Iterator[tuple[dict[str, Json], dict[str, Json]]]:
    """Labels by labelers of differing care, of answers whose difference in quality is normal."""
    rng = np.random.default_rng(0)
    care = rng.uniform(0.5, 2.0, len(names))
    for i in range(items):
        made, gap = comparison(i), rng.normal()
        for k in rng.choice(len(names), each, replace=False):
            better = rng.random() < 1 / (1 + np.exp(-care[k] * 2 * gap))
            shown = (0, 1) if rng.random() < 0.5 else (1, 0)
            task = Task(
                id=f"t{i}-{k}",
                run=RUN,
                kind="item",
                comparison=made,
                shown=shown,
                version=1,
                config=config,
                state="done",
                opened=now,
                lease_until=now,
                draft=None,
            )
            side = int(rng.integers(1, 5)) * (-1 if better == (shown[0] == 0) else 1)
            judgment = decode(task, names[k], Answer(axes={"overall": side}, seconds=float(rng.uniform(3, 60))))
            key = {"run": RUN, "comparison_id": made.id, "annotator": names[k], "campaign_version": 1}
            row = {"task": task.id, "nonce": f"n{i}-{k}", "at": now, "server_seconds": 20.0}
            times = {"opened": now, "lease_until": now, "shown": list(shown), "uniform": False, "state": "done"}
            yield {**key, **times, "id": task.id, "kind": "item"}, {**key, **row, **told(judgment)}


def _batches(rows: Iterator[Any]) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def time_tasks(url: str, count: int) -> dict[str, float]:
    """Milliseconds of asking for a task, and of answering it."""
    engine, clock = db.connect(url), Clock()
    desk, answers = Desk(engine, clock), Answers(engine, clock)
    campaign = Campaigns(engine, clock).by_run(RUN)
    asked, answered = [], []
    for n in range(count):
        name, began = f"labeler{n % 20:02}", time.perf_counter()
        task = desk.next_task(campaign, name)
        middle = time.perf_counter()
        assert task is not None
        answers.submit(task.id, name, Answer(axes={"overall": 1}), nonce=f"scale-{n}")
        asked.append(1000 * (middle - began))
        answered.append(1000 * (time.perf_counter() - middle))
    engine.dispose()
    return {
        "next_task_p50_ms": float(np.median(asked)),
        "next_task_p95_ms": float(np.percentile(asked, 95)),
        "submit_p95_ms": float(np.percentile(answered, 95)),
    }


def time_pages(folder: Path, url: str) -> dict[str, float]:
    """Seconds of the campaign page, with its figures still to come and with them, and until they are there."""
    work = opened(folder, url)
    work.accounts.create("boss", "admin", by="scale")
    token, campaign = work.accounts.new_token("boss", by="scale"), work.campaigns.by_run(RUN).id
    work.close()
    with serving(folder, url) as server:
        headers = {"authorization": f"Bearer {token}"}
        with httpx.Client(base_url=server.address, headers=headers, timeout=120, verify=False) as http:
            http.get("/health")
            taken = []
            for _ in range(20):
                began = time.perf_counter()
                http.get(f"/c/{campaign}/manage").raise_for_status()
                taken.append(time.perf_counter() - began)
                time.sleep(1)
    return {"campaign_page_first_s": taken[0], "campaign_page_worst_s": max(taken)}


def time_export(folder: Path, url: str) -> dict[str, float]:
    """Seconds of an export of everything, and megabytes of memory at its peak."""
    work, began = opened(folder, url), time.perf_counter()
    exchange.export(work.store, RUN, folder / "labels.jsonl", "jsonl", key=work.key)
    work.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"export_s": time.perf_counter() - began, "peak_mb": peak}


def run(items: int, labels: int, labelers: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        url = f"sqlite:///{folder / 'prefloop.db'}"
        fill(url, items, labels, labelers)
        found = {**time_export(folder, url), **time_tasks(url, 400), **time_pages(folder, url)}
    bars = {"next_task_p95_ms": 100.0, "campaign_page_worst_s": 1.0, "export_s": 60.0}
    holds = all(found[name] < bar for name, bar in bars.items())
    return {"items": items, "labels": labels, **{k: round(v, 3) for k, v in found.items()}, "holds": holds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--labels", type=int, default=1_000_000)
    parser.add_argument("--labelers", type=int, default=50)
    parser.add_argument("--json", action="store_true", help="one line")
    chosen = parser.parse_args()
    result = run(chosen.items, chosen.labels, chosen.labelers)
    print(json.dumps(result, indent=None if chosen.json else 2))
    sys.exit(not result["holds"])


if __name__ == "__main__":
    main()
