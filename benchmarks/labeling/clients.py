"""A server of our own on this machine, and labelers that use it as a page's script does."""

import os
import random
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from prefloop.configs.campaign import CampaignConfig
from prefloop.store.campaigns import Item
from prefloop.types import Comparison, Completion, Message, Prompt, Sampling
from prefloop.web.workspace import Workspace, open_workspace

RUN = "bench"
PATIENCE = 60.0


@dataclass(frozen=True)
class Label:
    """An answer that was sent: by the place at which the better answer stood."""

    annotator: str
    task: str
    side: int
    nonce: str


def comparison(number: int) -> Comparison:
    prompt = Prompt(id=f"p{number}", messages=(Message(role="user", content=f"What is {number} plus one?"),))
    items = tuple(
        Completion(
            id=f"c{number}-{k}",
            prompt_id=prompt.id,
            segments=(),
            text=f"It is **{number + 1 + k}**, said plainly and with a few words around it, as answers often are.",
            finish_reason="stop",
            sampling=Sampling(),
            seed=k,
        )
        for k in range(2)
    )
    return Comparison(id=f"c{number:06}", prompt=prompt, items=items)


def prepare(folder: Path, database: str, items: int, labelers: int, config: CampaignConfig) -> dict[str, str]:
    """A workspace with one campaign; returns the labelers' API tokens."""
    work = opened(folder, database)
    try:
        made = [comparison(number) for number in range(items)]
        work.store.add_comparisons(RUN, made)
        names = [f"labeler {k:02}" for k in range(labelers)]
        for name in names:
            work.accounts.create(name, "labeler", by="bench")
        work.accounts.create("boss", "admin", by="bench")
        work.campaigns.create(RUN, config, by="bench")
        work.campaigns.add_items(RUN, [Item(comparison_id=c.id) for c in made], by="bench")
        return {name: work.accounts.new_token(name, by="bench") for name in [*names, "boss"]}
    finally:
        work.store.close()


def opened(folder: Path, database: str) -> Workspace:
    return open_workspace(folder, b"k" * 32, database)


class Server:
    """`prefloop serve` in a workspace, at a port of its own."""

    def __init__(self, folder: Path, database: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "prefloop", "serve", "--port", str(self.port)]
        command += ["--database", database] if database else []
        with (folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        self._log = folder / "server.log"

    def wait(self) -> None:
        """Until it answers."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and self.process.poll() is None:
            try:
                if httpx.get(f"{self.address}/health", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.01)
        raise SystemExit(f"The server did not start; see {self._log}: {self._log.read_text()[-500:]}")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(timeout=PATIENCE)


@contextmanager
def serving(folder: Path, database: str) -> Iterator[Server]:
    server = Server(folder, database)
    try:
        server.wait()
        yield server
    finally:
        if server.process.poll() is None:
            server.stop()


_VERSION = re.compile(r'name="version" value="(\d+)"')


class Labeler:
    """One person with a token. Errors of transport are the caller's."""

    def __init__(self, address: str, name: str, token: str, campaign: str) -> None:
        headers = {"authorization": f"Bearer {token}", "accept": "application/json"}
        self.http = httpx.Client(base_url=address, headers=headers, timeout=PATIENCE)
        self.name, self.campaign = name, campaign
        self.asked: list[float] = []
        """Seconds that the next task took."""

    def next(self) -> str | None:
        """The next task's page, or None where there is nothing left."""
        began = time.perf_counter()
        response = self.http.post(f"/c/{self.campaign}/next")
        self.asked.append(time.perf_counter() - began)
        to = response.headers.get("location") or response.json()["to"]
        return str(to) if to.startswith("/t/") else None

    def label(self, to: str, rng: random.Random) -> tuple[Label, str | None]:
        """Read a task's page and answer it; returns what was acknowledged, and the next task's page."""
        version = _VERSION.search(self.http.get(to, headers={"accept": "text/html"}).text)
        assert version is not None, to
        side = rng.choice([-4, -3, -2, -1, 1, 2, 3, 4])
        label = Label(self.name, to.removeprefix("/t/"), side, secrets.token_urlsafe(16))
        return label, self.send(label, version[1])

    def send(self, label: Label, version: str = "1") -> str | None:
        """Answer; may be done again, with the same nonce, where it is unknown what became of it."""
        form = {"axis:overall": str(label.side), "nonce": label.nonce, "version": version, "seconds": "1.0"}
        response = self.http.post(f"/t/{label.task}/submit", data=form)
        response.raise_for_status()
        to = response.json()["to"]
        return str(to) if to.startswith("/t/") else None
