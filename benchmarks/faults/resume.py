"""Kill -9 in the middle of training, give the same command again, and compare with a run that nobody killed.

    resume.py --kills N [--model tiny] [--dtype fp32] [--seed S] [--json]

Each round is a fresh workspace with a short SFT of all weights and PPO of adapters, as in the quickstart, killed once
at each point: in SFT, in the middle of a PPO rollout, while PPO saves, and at any moment. After every other kill the
newest checkpoint is damaged too (a bit flipped, a file cut short, the manifest removed). At the end of a round metrics
(all but time/*), samples and every tensor of the final checkpoints must be those of the reference, bit for bit. Prints
one JSON object; exits 0 only where that holds.
"""

import argparse
import json
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from forking import Fork, Forks
from safetensors.torch import load_file

from prefloop.data.jsonl import write_jsonl
from prefloop.data.rows import read_jsonl
from prefloop.models.checkpoint import MANIFEST, TRAINING, latest_checkpoint

POINTS = ("sft", "rollout", "save", "any")
STAGES = ("sft", "ppo")
RUN = Path("runs/fault")
STEPS, SAVE_EVERY = 8, 2
POLL = 0.0005  # seconds
RECIPE = """
name = "fault"
model = "{model}"
stages = ["sft", "ppo"]
prompts = "prompts.jsonl"
engine = {{ threads = 1, dtype = "{dtype}" }}
[sft]
demonstrations = "demonstrations.jsonl"
epochs = 2
batch = 2
save_every = 5
optim = {{ lr = 1e-4 }}
[ppo]
reward = "rubric"
steps = {steps}
prompts_per_step = 4
group = 2
max_tokens = 16
save_every = {save_every}
optim = {{ lr = 1e-3, decay = false }}
lora = {{ rank = 4 }}
"""


@dataclass
class Found:
    """What the kills did: rows or tensors that are missing, too many, or not those of the reference."""

    lost: int = 0
    doubled: int = 0
    differing: int = 0
    damaged: int = 0
    damaged_accepted: int = 0
    hit: Counter[str] = field(default_factory=Counter)

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.differing or self.damaged_accepted)


@dataclass(frozen=True)
class Pace:
    """Seconds that the reference took for a rollout, and for PPO's first save."""

    rollout: float
    save: float


def prepare(workspace: Path, model: str, dtype: str) -> None:
    """A recipe with a few prompts and demonstrations."""
    workspace.mkdir(parents=True)
    text = RECIPE.format(model=model, dtype=dtype, steps=STEPS, save_every=SAVE_EVERY)
    (workspace / "recipe.toml").write_text(text, encoding="utf-8")
    asked = [f"Name {i} things that are {what}." for i in (2, 3, 4) for what in ("red", "old", "cold", "loud")]
    prompts = [
        {"id": f"p{i}", "messages": [{"role": "user", "content": text}], "checks": {"max_words": 8}}
        for i, text in enumerate(asked)
    ]
    write_jsonl(workspace / "prompts.jsonl", prompts)
    demonstrations = [{"prompt": text, "completion": f"- thing {i}\n- another"} for i, text in enumerate(asked)]
    write_jsonl(workspace / "demonstrations.jsonl", demonstrations)


def launch(forks: Forks, workspace: Path) -> Fork:
    """The command, always the same."""
    with (workspace / "stderr").open("wb") as file:
        return forks.start("prefloop", "run", "recipe.toml", folder=workspace, stderr=file)


def finish(process: Fork, workspace: Path) -> None:
    """Wait for the end. SystemExit with the last line of a run that failed by itself."""
    if process.wait() not in (0, -signal.SIGKILL):
        said = (workspace / "stderr").read_text(encoding="utf-8").strip().splitlines() or ["?"]
        raise SystemExit(f"resume.py: the run failed by itself: {said[-1]}")


def wait(process: Fork, seen: Callable[[], bool]) -> bool:
    """Poll until `seen`; False when the process ended first."""
    while not seen():
        if process.poll() is not None:
            return False
        time.sleep(POLL)
    return True


def run_reference(forks: Forks, workspace: Path) -> Pace:
    """Run to the end, and watch how long things take."""
    process = launch(forks, workspace)
    wait(process, lambda: bool(half_saved(workspace, process.pid)))
    saving = time.monotonic()
    wait(process, lambda: not half_saved(workspace, process.pid))
    save = time.monotonic() - saving
    finish(process, workspace)
    rows = [row for _, row in read_jsonl(workspace / RUN / "ppo" / "metrics.jsonl")]
    rollout = statistics.median(row["time/sample"] for row in rows)
    return Pace(rollout, save)


def half_saved(workspace: Path, pid: int) -> list[Path]:
    """Folders in which the PPO of this process is saving at this moment."""
    return list((workspace / RUN / "ppo").glob(f"**/*.tmp-{pid}"))


def kill_at(point: str, process: Fork, workspace: Path, pace: Pace, rng: random.Random) -> str:
    """Kill -9 at the point; returns what was hit: the point, "any" where the moment had passed, "" too late."""
    before: object = None
    match point:
        case "sft":
            arrived = wait_for_rows(process, workspace / RUN / "sft" / "metrics.jsonl", rng.randint(1, 4))
        case "rollout":
            metrics = workspace / RUN / "ppo" / "metrics.jsonl"
            arrived = wait_for_rows(process, metrics, rng.randint(1, 3), between_saves)
            before = signature(metrics)
            time.sleep(rng.random() * 0.8 * pace.rollout)
        case "save":
            arrived = wait(process, lambda: bool(half_saved(workspace, process.pid)))
            time.sleep(rng.random() * 0.5 * pace.save)
        case _:
            metrics = workspace / RUN / rng.choice(("sft", "ppo")) / "metrics.jsonl"
            arrived = wait_for_rows(process, metrics, rng.randint(1, 3))
            time.sleep(rng.random() * pace.rollout)
    process.send_signal(signal.SIGKILL)
    finish(process, workspace)
    if process.returncode == 0:
        return ""
    ppo = workspace / RUN / "ppo"
    in_place = {
        "sft": not (workspace / RUN / "sft" / "checkpoint").exists(),
        "rollout": before == signature(ppo / "metrics.jsonl") and not half_saved(workspace, process.pid),
        "save": bool(half_saved(workspace, process.pid)),
        "any": True,
    }
    return point if arrived and in_place[point] else "any"


def between_saves(step: int) -> bool:
    """A step after PPO's first checkpoint, and no save follows it."""
    return step >= SAVE_EVERY and (step + 1) % SAVE_EVERY != 0


def wait_for_rows(process: Fork, metrics: Path, count: int, wanted: Callable[[int], bool] = lambda step: True) -> bool:
    """Until this process has written `count` rows or more, the last one of a wanted step."""
    last, fresh = signature(metrics), 0

    def arrived() -> bool:
        nonlocal last, fresh
        now = signature(metrics)
        if now == last:
            return False
        last, fresh, step = now, fresh + 1, last_step(metrics)
        return fresh >= count and step is not None and wanted(step)

    return wait(process, arrived)


def signature(file: Path) -> object:
    """Changes whenever the file is written or replaced."""
    try:
        about = file.stat()
    except FileNotFoundError:
        return None
    return about.st_ino, about.st_size, about.st_mtime_ns


def last_step(metrics: Path) -> int | None:
    lines = metrics.read_bytes().splitlines() if metrics.exists() else []
    try:
        return int(json.loads(lines[-1])["step"]) if lines else None
    except ValueError:
        return None


def damage(workspace: Path, kind: int) -> bool | None:
    """Spoil the newest whole checkpoint of the stage at work; whether the program would take it, None without one."""
    folders = [workspace / RUN / stage / "checkpoints" for stage in reversed(STAGES)]
    newest = next((found for folder in folders if (found := latest_checkpoint(folder))), None)
    if newest is None:
        return None
    file = newest / (MANIFEST if kind % 3 == 2 else TRAINING)
    content = bytearray(file.read_bytes())
    match kind % 3:
        case 0:
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
        case 1:
            file.write_bytes(content[: len(content) // 2])
        case _:
            file.unlink()
    return latest_checkpoint(newest.parent) == newest


def compare(reference: Path, other: Path, found: Found) -> None:
    """Count rows and tensors of two runs' folders that are lost, doubled or different."""
    for stage in STAGES:
        for name in ("metrics.jsonl", "samples.jsonl"):
            ours, theirs = rows_by_step(reference / stage / name), rows_by_step(other / stage / name)
            for step in ours.keys() | theirs.keys():
                for a, b in zip_longest(ours.get(step, ()), theirs.get(step, ())):
                    found.lost += b is None
                    found.doubled += a is None
                    found.differing += a is not None and b is not None and a != b
        for file in (reference / stage / "checkpoint").glob("*.safetensors"):
            compare_tensors(file, other / stage / "checkpoint" / file.name, found)


def rows_by_step(file: Path) -> dict[int, list[dict[str, Any]]]:
    """Rows without time/* in the order of the file."""
    rows: dict[int, list[dict[str, Any]]] = {}
    for _, row in read_jsonl(file) if file.exists() and file.stat().st_size else ():
        kept = {name: value for name, value in row.items() if not name.startswith("time/")}
        rows.setdefault(row["step"], []).append(kept)
    return rows


def compare_tensors(ours: Path, theirs: Path, found: Found) -> None:
    a, b = load_file(ours), load_file(theirs) if theirs.exists() else {}
    found.lost += len(a.keys() - b.keys())
    found.doubled += len(b.keys() - a.keys())
    for name in a.keys() & b.keys():
        same = a[name].dtype == b[name].dtype and a[name].shape == b[name].shape
        found.differing += not (same and torch.equal(_bytes(a[name]), _bytes(b[name])))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def points_left(kills: int, hit: Counter[str]) -> list[str]:
    """Where a round should kill, in the order of a run: the points hit least, as many as are missing."""
    left = max(kills - hit.total(), sum(not hit[point] for point in POINTS[:kills]))
    return sorted(sorted(POINTS, key=lambda point: hit[point])[:left], key=POINTS.index)


def run_round(
    forks: Forks, workspace: Path, points: Sequence[str], pace: Pace, rng: random.Random, found: Found
) -> None:
    """One workspace: a kill at each of the points, then on to the end."""
    for point in points:
        hit = kill_at(point, launch(forks, workspace), workspace, pace, rng)
        if not hit:
            return
        found.hit[hit] += 1
        if found.hit.total() % 2 == 0 and (accepted := damage(workspace, found.damaged)) is not None:
            found.damaged += 1
            found.damaged_accepted += accepted
    finish(launch(forks, workspace), workspace)


def main(arguments: list[str] | None = None) -> int:
    """0 when everything holds, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40, help="how many; %(default)s without it")
    parser.add_argument("--model", default="tiny", help="tiny, smollm2-135m, or any model; %(default)s without it")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", action="store_true", help="print on one line")
    options = parser.parse_args(arguments)
    began, rng, found, rounds = time.monotonic(), random.Random(options.seed), Found(), 0
    with closing(Forks()) as forks, tempfile.TemporaryDirectory(prefix="prefloop-resume-") as folder:
        reference = Path(folder) / "reference"
        prepare(reference, options.model, options.dtype)
        pace = run_reference(forks, reference)
        while (points := points_left(options.kills, found.hit)) and rounds < 10 * options.kills:
            workspace = Path(folder) / f"round-{rounds}"
            prepare(workspace, options.model, options.dtype)
            run_round(forks, workspace, points, pace, rng, found)
            compare(reference / RUN, workspace / RUN, found)
            shutil.rmtree(workspace)
            rounds += 1
    kills = found.hit.total()
    answer = {
        "kills": kills,
        "lost": found.lost,
        "doubled": found.doubled,
        "differing": found.differing,
        "damaged_accepted": found.damaged_accepted,
        "holds": not points_left(options.kills, found.hit) and found.clean,
        "hit": {point: found.hit[point] for point in POINTS},
        "damaged": found.damaged,
        "rounds": rounds,
        "model": options.model,
        "dtype": options.dtype,
        "minutes": round((time.monotonic() - began) / 60, 2),
    }
    print(json.dumps(answer, indent=None if options.json else 2))
    return 0 if answer["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
