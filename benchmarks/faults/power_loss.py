"""Pull the plug at every moment of a labeling session, and look at what the disk would hold.

    power_loss.py [--labels N] [--share P] [--synchronous FULL|NORMAL|OFF] [--seed S] [--json]

A process labels on SQLite while strace records its writes, syncs, truncations, renames and removals, and the labels
that it acknowledged. For every prefix of that record (or a random share of them) two disks are made: one on which
nothing survived that had not been synced, and one on which a random part of it did. Each must open, verify, and hold
every label acknowledged until then. Prints one JSON object; exits 0 only where that holds. With --synchronous OFF it
must not: the control.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import event, insert, select, text

from prefloop.configs.campaign import CampaignConfig
from prefloop.data.jsonl import write_atomic
from prefloop.store import db, tables
from prefloop.store.answers import Answer, Answers
from prefloop.store.assignment import Desk
from prefloop.store.campaigns import Campaigns, Item
from prefloop.store.clock import Clock
from prefloop.store.labels import Store
from prefloop.types import Comparison, Completion, Message, PrefloopError, Prompt, Sampling

RUN = "run"
CALLS = "openat,pwrite64,write,fsync,fdatasync,ftruncate,rename,unlink,unlinkat"
EXPORT = "export.jsonl"


@dataclass
class Inode:
    """A file: as it is, as it surely is on disk, and what was done since."""

    now: bytearray = field(default_factory=bytearray)
    synced: bytes = b""
    since: list[tuple[int, bytes | None]] = field(default_factory=list)  # (at, bytes), or (length, None) to cut

    def do(self, at: int, content: bytes | None) -> None:
        self.since.append((at, content))
        _apply(self.now, at, content)

    def sync(self) -> None:
        self.synced, self.since = bytes(self.now), []

    def survived(self, rng: random.Random | None) -> bytes:
        found = bytearray(self.synced)
        for at, content in self.since:
            if rng is not None and rng.random() < 0.5:
                _apply(found, at, content)
        return bytes(found)


def _apply(file: bytearray, at: int, content: bytes | None) -> None:
    if content is None:
        del file[at:]
    else:
        file.extend(bytes(max(at - len(file), 0)))
        file[at : at + len(content)] = content


class Disk:
    """Files of one folder, by the calls that a process made."""

    def __init__(self) -> None:
        self.names: dict[str, Inode] = {}
        self.synced: dict[str, Inode] = {}

    def survived(self, rng: random.Random | None) -> dict[str, bytes]:
        """What a power cut leaves: without `rng` only what was synced."""
        names = self.names if rng is not None and rng.random() < 0.5 else self.synced
        return {name: inode.survived(rng) for name, inode in names.items()}


def write_labels(folder: Path, count: int, synchronous: str) -> None:
    """The process that is watched: it labels, and says so on stdout once a label is acknowledged."""
    engine = db.connect(f"sqlite:///{folder / 'prefloop.db'}")
    event.listen(engine, "connect", lambda connection, _: connection.execute(f"PRAGMA synchronous = {synchronous}"))
    engine.dispose()
    clock = Clock()
    store, campaigns = Store(engine), Campaigns(engine, clock)
    desk, answers = Desk(engine, clock), Answers(engine, clock)
    with db.transaction(engine, write=True) as connection:
        connection.execute(insert(tables.annotators), [{"name": "ada", "simulated": False}])
    made = [_comparison(i) for i in range(count)]
    store.add_comparisons(RUN, made)
    campaign = campaigns.create(RUN, CampaignConfig(shared_share=0, repeat_share=0, calibration=0), by="ada")
    campaigns.add_items(RUN, [Item(comparison_id=c.id) for c in made], by="ada")
    for i in range(count):
        task = desk.next_task(campaign, "ada")
        assert task is not None
        receipt = answers.submit(task.id, "ada", Answer(axes={"overall": i % 4 + 1}), nonce=f"n{i}")
        os.write(1, f"ack {receipt.judgment}\n".encode())
        if i % 10 == 9:
            write_atomic(folder / EXPORT, _export(i))
            os.write(1, f"export {i}\n".encode())


def _export(last: int) -> str:
    return "".join(f'{{"label": {i}}}\n' for i in range(last + 1)) * 20


def _comparison(i: int) -> Comparison:
    prompt = Prompt(id=f"p{i}", messages=(Message(role="user", content=f"Question {i}? " * 20),))
    fixed: dict[str, Any] = {"prompt_id": prompt.id, "segments": (), "finish_reason": "stop", "sampling": Sampling()}
    items = tuple(Completion(id=f"c{i}-{k}", text=f"Answer {k}. " * 50, seed=k, **fixed) for k in range(2))
    return Comparison(id=f"c{i}", prompt=prompt, items=items)


def record(folder: Path, count: int, synchronous: str) -> list[str]:
    """Lines of strace."""
    trace = folder.parent / "trace"
    command = ["strace", "-f", "-y", "-xx", "-s", "10000000", "-e", f"trace={CALLS}", "-o", str(trace)]
    child = [sys.executable, __file__, "--writer", str(folder), "--labels", str(count), "--synchronous", synchronous]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    try:
        subprocess.run([*command, *child], check=True, stdout=subprocess.PIPE, env=environment)
    except FileNotFoundError:
        raise SystemExit("power_loss.py needs strace: sudo apt-get install strace") from None
    return trace.read_text().splitlines()


_CALL = re.compile(r"^\d+\s+(\w+)\((.*)\)\s+= (-?\d+)")
_FD = re.compile(r"^\d+<([^>]*)>")
_HEX = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


def replay(lines: list[str], folder: Path) -> Iterator[tuple[Disk, list[int], list[int]]]:
    """The disk after each call that matters, with the labels and the exports acknowledged by then."""
    disk, acked, exported = Disk(), list[int](), list[int]()
    places: dict[str, int] = {}  # how far each file was written by write()
    for line in lines:
        match = _CALL.match(line)
        if match is None or match[3].startswith("-"):
            continue
        call, arguments = match[1], match[2]
        strings = [bytes.fromhex(found.replace("\\x", "")) for found in _HEX.findall(arguments)]
        path = _decoded(_FD.match(arguments))
        if call == "write" and strings and arguments.startswith("1<"):
            word, number = strings[0].decode().split()
            (acked if word == "ack" else exported).append(int(number))
        elif call in ("openat", "rename", "unlink", "unlinkat"):
            paths = [Path(os.fsdecode(part)) for part in strings if part.startswith(b"/")]
            if not paths or any(p.parent != folder for p in paths) or paths[0].name.endswith("-shm"):
                continue
            _name(disk, call, arguments, [p.name for p in paths], places)
        elif path is not None and path == folder and call in ("fsync", "fdatasync"):
            disk.synced = dict(disk.names)
        elif path is not None and path.parent == folder and not path.name.endswith("-shm"):
            _change(disk.names[path.name], call, arguments, strings, places, path.name)
        else:
            continue
        yield disk, acked, exported


def _decoded(match: re.Match[str] | None) -> Path | None:
    if match is None:
        return None
    raw = match[1]
    plain = bytes.fromhex(raw.replace("\\x", "")) if raw.startswith("\\x") else raw.encode()
    return Path(os.fsdecode(plain))


def _name(disk: Disk, call: str, arguments: str, names: list[str], places: dict[str, int]) -> None:
    if call == "openat":
        if "O_CREAT" in arguments and names[0] not in disk.names:
            disk.names[names[0]] = Inode()
        if "O_TRUNC" in arguments and names[0] in disk.names:
            disk.names[names[0]].do(0, None)
        places[names[0]] = 0
    elif call == "rename":
        disk.names[names[1]] = disk.names.pop(names[0])
    else:
        disk.names.pop(names[0], None)


def _change(inode: Inode, call: str, arguments: str, strings: list[bytes], places: dict[str, int], name: str) -> None:
    if call in ("fsync", "fdatasync"):
        inode.sync()
    elif call == "ftruncate":
        inode.do(int(arguments.rsplit(",", 1)[1]), None)
    elif call == "pwrite64":
        inode.do(int(arguments.rsplit(",", 1)[1]), strings[-1])
    elif call == "write":
        inode.do(places[name], strings[-1])
        places[name] += len(strings[-1])


def check(files: dict[str, bytes], acked: list[int], exported: list[int]) -> str:
    """What is wrong with a disk; nothing: an empty text."""
    with tempfile.TemporaryDirectory() as made:
        for name, content in files.items():
            (Path(made) / name).write_bytes(content)
        export = files.get(EXPORT)
        if export is not None and export not in {_export(i).encode() for i in range(9, 10_000, 10)}:
            return "an export is half written"
        if export is None and exported:
            return "an export is lost"
        return _check_labels(Path(made), acked)


def _check_labels(folder: Path, acked: list[int]) -> str:
    try:
        engine = db.connect(f"sqlite:///{folder / 'prefloop.db'}")
    except PrefloopError as error:
        return f"does not open: {error}"
    try:
        with db.transaction(engine, write=False) as connection:
            if (state := connection.execute(text("PRAGMA integrity_check")).scalar()) != "ok":
                return f"damaged: {state}"
            found = connection.execute(select(tables.judgments.c.number)).scalars().all()
            counted = sum(connection.execute(select(tables.comparisons.c.counted)).scalars())
        Store(engine).verify()
    except PrefloopError as error:
        return f"does not verify: {error}"
    finally:
        engine.dispose()
    if lost := set(acked) - set(found):
        return f"lost {len(lost)} acknowledged labels"
    return "" if counted == len(found) else "counts differ from labels"


def run(count: int, share: float, synchronous: str, seed: int) -> dict[str, Any]:
    """Record once, then check every prefix."""
    rng, seen, wrong = random.Random(seed), set[int](), dict[str, int]()
    points = states = 0
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made).resolve() / "workspace"
        folder.mkdir()
        lines = record(folder, count, synchronous)
        for disk, acked, exported in replay(lines, folder):
            points += 1
            if rng.random() > share:
                continue
            for chance in (None, rng):
                files = disk.survived(chance)
                key = hash((frozenset(files.items()), len(acked), len(exported)))
                if key in seen:
                    continue
                seen.add(key)
                states += 1
                if problem := check(files, acked, exported):
                    wrong[problem[:80]] = wrong.get(problem[:80], 0) + 1
    return {
        "synchronous": synchronous,
        "labels": count,
        "points": points,
        "disks": states,
        "lost": sum(wrong.values()),
        "problems": wrong,
        "holds": not wrong and len(acked) == count,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=40)
    parser.add_argument("--share", type=float, default=1.0, help="of all prefixes to check")
    parser.add_argument("--synchronous", choices=("FULL", "NORMAL", "OFF"), default="FULL")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON object")
    parser.add_argument("--writer", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.writer:
        write_labels(chosen.writer, chosen.labels, chosen.synchronous)
        return
    result = run(chosen.labels, chosen.share, chosen.synchronous, chosen.seed)
    print(json.dumps(result, indent=None if chosen.json else 2))
    sys.exit(not result["holds"])


if __name__ == "__main__":
    main()
