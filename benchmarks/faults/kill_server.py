"""Kill -9 the labeling server under load, start it again, and look for every label that it had acknowledged.

    kill_server.py [--kills N] [--postgres] [--seed S] [--json]

Labelers work without pause while the server dies at random moments; what was sent without an answer is sent again,
with the same nonce. At the end every acknowledged label must be there as it was given, none twice, the audit log whole,
and every item must still reach the labels that it wants: no lease outlives its time. Prints one JSON object; exits 0
only where that holds.
"""

import argparse
import json
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import select

sys.path.append(str(Path(__file__).parents[1] / "labeling"))
from clients import RUN, Label, Labeler, Server, opened, postgres, prepare, serving

from prefloop.configs.campaign import CampaignConfig
from prefloop.store import db, tables

LABELERS = 6
ITEMS_PER_KILL = 8
CONFIG = CampaignConfig(overlap=2, shared_share=0, calibration=0, repeat_share=0, lease_minutes=0.05)


@dataclass
class Work:
    """What one labeler knows across kills."""

    name: str
    token: str
    rng: random.Random
    acked: list[Label] = field(default_factory=list)
    unsure: Label | None = None
    failed: str = ""

    def go(self, address: str, campaign: str) -> bool:
        """Label until the server is gone, or nothing is left; whether nothing is."""
        me = Labeler(address, self.name, self.token, campaign)
        try:
            to = (self._send(me, self.unsure) if self.unsure else None) or me.next()
            while to is not None:
                to = self._send(me, me.read(to, self.rng))
            return True
        except httpx.TransportError:
            pass
        except Exception as error:
            self.failed = repr(error)
        finally:
            me.http.close()
        return False

    def _send(self, me: Labeler, label: Label) -> str | None:
        self.unsure = label
        to = me.send(label)
        self.acked.append(label)
        self.unsure = None
        return to


def round_(folder: Path, database: str, campaign: str, everyone: list[Work], rng: random.Random) -> None:
    """One life of the server, cut short."""
    server = Server(folder, database, forked=True)
    server.wait()
    threads = [threading.Thread(target=work.go, args=(server.address, campaign)) for work in everyone]
    for thread in threads:
        thread.start()
    time.sleep(rng.uniform(0.02, 0.5))
    server.end(signal.SIGKILL)
    for thread in threads:
        thread.join()
    if failed := [work.failed for work in everyone if work.failed]:
        raise SystemExit(f"kill_server.py: a labeler failed: {failed[0]}; see {folder / 'server.log'}")


def drain(folder: Path, database: str, campaign: str, everyone: list[Work]) -> None:
    """Label what is left, after the leases of the dead have ended."""
    time.sleep(CONFIG.lease_minutes * 60)
    with serving(folder, database) as server, ThreadPoolExecutor() as threads:
        done = list(threads.map(lambda work: work.go(server.address, campaign), everyone))
    if not all(done):
        raise SystemExit(f"kill_server.py: the last server did not answer; see {folder / 'server.log'}")


def compare(folder: Path, database: str, everyone: list[Work]) -> dict[str, int]:
    """What the database holds against what was acknowledged."""
    work = opened(folder, database)
    work.store.verify()
    work.close()
    engine = db.connect(database or f"sqlite:///{folder / 'prefloop.db'}")
    judged, items, tasks = tables.judgments.c, tables.comparisons.c, tables.tasks.c
    labels = select(
        judged.annotator, judged.task, judged.choice, judged.nonce, judged.comparison_id, judged.status, tasks.shown
    )
    with db.transaction(engine, write=False) as connection:
        found = connection.execute(labels.join(tables.tasks, tasks.id == judged.task)).all()
        wanted = connection.execute(select(items.id, items.needed, items.counted, items.taken)).all()
    engine.dispose()
    given = {row.nonce: row.choice * (-1 if row.shown[0] == 0 else 1) for row in found}
    acked = [label for labeler in everyone for label in labeler.acked]
    each = Counter(row.comparison_id for row in found if row.status == "counted")  # what comes late is kept beside
    return {
        "acknowledged": len(acked),
        "lost": sum(label.nonce not in given for label in acked),
        "doubled": len(found) - len({(row.annotator, row.comparison_id) for row in found}),
        "differing": sum(given.get(label.nonce, label.side) != label.side for label in acked),
        "stuck": sum(row.counted < row.needed for row in wanted),
        "miscounted": sum(not row.counted == row.taken == each[row.id] == row.needed for row in wanted),
    }


def run(kills: int, database: str, seed: int) -> dict[str, Any]:
    rng, began = random.Random(seed), time.monotonic()
    with tempfile.TemporaryDirectory() as made:
        folder, items = Path(made), kills * ITEMS_PER_KILL
        tokens = prepare(folder, database, items, LABELERS, CONFIG)
        everyone = [Work(n, t, random.Random(f"{seed}{n}")) for n, t in tokens.items() if n != "boss"]
        work = opened(folder, database)
        campaign = work.campaigns.by_run(RUN).id
        work.close()
        for kill in range(kills):
            round_(folder, database, campaign, everyone, rng)
            if (kill + 1) % 50 == 0:
                rate = (kill + 1) / (time.monotonic() - began)
                print(f"{kill + 1} of {kills} kills, {(kills - kill - 1) / rate / 60:.0f} min left", file=sys.stderr)
        drain(folder, database, campaign, everyone)
        found = compare(folder, database, everyone)
    bad = ("lost", "doubled", "differing", "stuck", "miscounted")
    holds = not any(found[name] for name in bad)
    return {"kills": kills, **found, "minutes": round((time.monotonic() - began) / 60, 1), "holds": holds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--postgres", action="store_true", help="on a PostgreSQL server of its own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one line")
    chosen = parser.parse_args()
    with postgres() if chosen.postgres else nullcontext("") as database:
        result = run(chosen.kills, database, chosen.seed)
    print(json.dumps(result, indent=None if chosen.json else 2))
    sys.exit(not result["holds"])


if __name__ == "__main__":
    main()
