"""A server of our own on this machine, and labelers that use it as a page's script does."""

import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
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
        work.close()


def opened(folder: Path, database: str) -> Workspace:
    return open_workspace(folder, b"k" * 32, database)


class Server:
    """`prefloop serve` in a workspace, at a port of its own. `forked`: from a process that has imported everything, so
    that it starts in no time; else by the command."""

    def __init__(self, folder: Path, database: str, *, forked: bool = False) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self._log = folder / "server.log"
        if forked:
            child = _FORKS.Process(target=_serve, args=(folder, database, self.port), daemon=True)
            child.start()
            self.pid, self._alive, self._join = child.pid or 0, child.is_alive, child.join
        else:
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-m", "prefloop", "serve", "--port", str(self.port)]
            command += ["--database", database] if database else []
            with self._log.open("ab") as log:
                process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
            self.pid, self._alive, self._join = process.pid, lambda: process.poll() is None, process.wait

    def wait(self) -> None:
        """Until it answers."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and self._alive():
            try:
                if httpx.get(f"{self.address}/health", timeout=5, verify=False).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.01)
        raise SystemExit(f"The server did not start; see {self._log}: {self._log.read_text()[-500:]}")

    def end(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it; by SIGKILL without a word."""
        if self._alive():
            os.kill(self.pid, how)
        self._join(timeout=PATIENCE)


_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["prefloop.web.serve"])


def _serve(folder: Path, database: str, port: int) -> None:
    from prefloop.web.serve import Place, serve

    log = os.open(folder / "server.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    serve(folder, database, Place(port=port))


@contextmanager
def serving(folder: Path, database: str) -> Iterator[Server]:
    server = Server(folder, database)
    try:
        server.wait()
        yield server
    finally:
        server.end()


@contextmanager
def postgres() -> Iterator[str]:
    """URL of an empty database on a PostgreSQL server of our own, in a temporary folder, without TCP."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not installed:
        raise SystemExit("There is no PostgreSQL server here: sudo apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    as_owner = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        shutil.chown(folder, "postgres")
        as_owner = ["runuser", "-u", "postgres", "--"]

    def call(program: str, *arguments: str) -> None:
        command = [*as_owner, str(installed[-1] / program), *arguments]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)

    data, socket_ = ("-D", str(folder / "data")), ("-h", str(folder), "-U", "postgres")
    try:
        call("initdb", *data, "-U", "postgres", "-A", "trust", "-E", "UTF8")
        options = f"-c listen_addresses= -c unix_socket_directories={folder}"
        call("pg_ctl", "start", *data, "-w", "-l", str(folder / "log"), "-o", options)
        call("createdb", *socket_, "labels")
        yield f"postgresql://postgres@/labels?host={folder}"
        call("pg_ctl", "stop", *data, "-m", "immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Labeler:
    """One person with a token. Errors of transport are the caller's."""

    def __init__(self, address: str, name: str, token: str, campaign: str) -> None:
        headers = {"authorization": f"Bearer {token}", "accept": "application/json"}
        self.http = httpx.Client(base_url=address, headers=headers, timeout=PATIENCE, verify=False)
        self.name, self.campaign = name, campaign

    def next(self) -> str | None:
        """Address of the next task's page, or None where there is nothing left."""
        response = self.http.post(f"/c/{self.campaign}/next")
        return _task(response.headers.get("location") or response.json()["to"])

    def read(self, to: str, rng: random.Random) -> Label:
        """Fetch a task's page, and make up one's mind."""
        page = self.http.get(to, headers={"accept": "text/html"})
        page.raise_for_status()
        side = rng.choice([-4, -3, -2, -1, 1, 2, 3, 4])
        return Label(self.name, to.removeprefix("/t/"), side, f"{rng.getrandbits(128):032x}")

    def send(self, label: Label) -> str | None:
        """Answer, which may be done again where it is unknown what became of it; the next task's page, if any."""
        form = {"axis:overall": str(label.side), "nonce": label.nonce, "version": "1", "seconds": "1.0"}
        response = self.http.post(f"/t/{label.task}/submit", data=form)
        if response.is_error:
            raise RuntimeError(f"{response.status_code} for {label}: {response.text[:300]}")
        return _task(response.json()["to"])


def _task(to: str) -> str | None:
    return to if to.startswith("/t/") and not to.endswith("/known") else None
