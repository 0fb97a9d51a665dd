"""What stands in the run folders, read as it is at this moment, while stages may be writing: state, series, samples.

Nothing that a reader gives becomes part of a path: names are looked up among the folders that there are."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prefloop.configs.pipeline import STAGES
from prefloop.run import newest, occupied
from prefloop.store.campaigns import MissingError
from prefloop.types import Json

ONLINE = ("ppo", "group", "online")
MOST_POINTS = 500
_LONGEST_LINE = 65536  # of metrics.jsonl, in bytes
_WINDOW = 5  # steps of a running mean, at least
_SURE = 4.0  # standard errors

Point = tuple[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """state: running, finished, interrupted or to do. `steps` where the stage's settings tell how many there will be.
    `age`: seconds since it last wrote."""

    name: str
    path: Path
    state: str
    step: int
    steps: int | None
    age: float | None
    config: Mapping[str, Json]
    result: Mapping[str, Json]

    @property
    def share(self) -> float | None:
        if self.state == "finished":
            return 1.0
        return min(1.0, self.step / self.steps) if self.steps else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """state: running where one of its stages is, finished where all that it wants are, else interrupted."""

    name: str
    path: Path
    state: str
    age: float | None
    stages: Mapping[str, Stage]

    @property
    def current(self) -> Stage | None:
        """The stage that is running, else the last that began."""
        begun = [stage for stage in self.stages.values() if stage.state != "to do"]
        return next((stage for stage in begun if stage.state == "running"), begun[-1] if begun else None)

    @property
    def online(self) -> Stage | None:
        """The stage whose rollouts tell of reward, KL and preference."""
        return next((self.stages[name] for name in ONLINE if self.begun(name)), None)

    def begun(self, name: str) -> bool:
        return name in self.stages and self.stages[name].state != "to do"


def find_all(workspace: Path) -> list[RunFolder]:
    """The runs of a workspace, the one written to last first."""
    found = [_read_run(path) for path in _folders(workspace).values()]
    return sorted((run for run in found if run.stages), key=lambda run: (run.age is None, run.age or 0.0, run.name))


def find(workspace: Path, name: str) -> RunFolder:
    """Raises MissingError where there is no such run."""
    path = _folders(workspace).get(name)
    run = _read_run(path) if path else None
    if run is None or not run.stages:
        raise MissingError("There is no such run.")
    return run


def _folders(workspace: Path) -> dict[str, Path]:
    """The folders under runs/ by name; links that lead out of it are none of them."""
    root = (workspace / "runs").resolve()
    if not root.is_dir():
        return {}
    inside = (path for path in root.iterdir() if path.is_dir() and path.resolve().is_relative_to(root))
    return {path.name: path for path in inside}


def _read_run(path: Path) -> RunFolder:
    recipe = _object(path / "recipe.json")
    planned = recipe.get("stages") or []
    names = [name for name in STAGES if name in planned or (path / name / "run.json").is_file()]
    more = recipe.get("rounds") and not (path / "rounds" / str(recipe["rounds"]) / "round.json").is_file()
    stages = {name: _read_stage(newest(path, name), name) for name in names}
    states = {stage.state for stage in stages.values()}
    state = "running" if "running" in states else "finished" if states == {"finished"} and not more else "interrupted"
    ages = [stage.age for stage in stages.values() if stage.age is not None]
    return RunFolder(name=path.name, path=path, state=state, age=min(ages, default=None), stages=stages)


def _read_stage(path: Path, name: str) -> Stage:
    config, result = (_object(path / f"{file}.json") for file in ("config", "result"))
    began = (path / "run.json").is_file()
    state = "to do" if not began else "finished" if result else "running" if occupied(path) else "interrupted"
    times = [file.stat().st_mtime for file in path.glob("*.json*")] if began else []
    return Stage(
        name=name,
        path=path,
        state=state,
        step=_last_step(path) + 1,
        steps=config.get("steps"),
        age=max(0.0, time.time() - max(times)) if times else None,
        config=config,
        result=result,
    )


def _object(path: Path) -> Mapping[str, Json]:
    """A JSON object; empty where there is none, or none yet."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


class _Log:
    """A JSONL file that grows: what was made of its whole lines so far. Lines that a process left torn are passed over;
    a file that was written anew, as when a stage goes on from a checkpoint, is read anew."""

    def __init__(self, path: Path, make: Callable[[int, Mapping[str, Json]], Json]) -> None:
        self._path, self._make = path, make
        self._lock = threading.Lock()
        self._file, self._end = -1, 0
        self._made: list[Json] = []

    def read(self) -> list[Json]:
        """One thing a line, in order."""
        with self._lock, contextlib.suppress(FileNotFoundError), self._path.open("rb") as file:
            about = os.fstat(file.fileno())
            if about.st_ino != self._file or about.st_size < self._end:
                self._file, self._end, self._made = about.st_ino, 0, []
            file.seek(self._end)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                with contextlib.suppress(ValueError):
                    self._made.append(self._make(self._end, json.loads(line)))
                self._end += len(line)
        return list(self._made)


@functools.lru_cache(maxsize=64)
def _metrics(path: Path) -> _Log:
    return _Log(path / "metrics.jsonl", lambda _, row: row)


@functools.lru_cache(maxsize=64)
def _samples(path: Path) -> _Log:
    def place(where: int, row: Mapping[str, Json]) -> tuple[str, str, int]:
        return row.get("model", ""), row["prompt"]["id"] if "prompt" in row else row["prompt_id"], where

    return _Log(path / "samples.jsonl", place)


def _last_step(path: Path) -> int:
    """The step of the last whole line of metrics.jsonl; -1 where there is none."""
    with contextlib.suppress(OSError), (path / "metrics.jsonl").open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _LONGEST_LINE))
        for line in reversed(file.read().split(b"\n")[:-1]):
            with contextlib.suppress(ValueError):
                return int(json.loads(line)["step"])
    return -1


def series(stage: Stage, names: Sequence[str], after: int) -> dict[str, list[Point]]:
    """What was logged under each name at steps after `after`, at most MOST_POINTS of each, the extremes among them."""
    found = [row for row in _metrics(stage.path).read() if row["step"] > after]
    return {name: thinned([(row["step"], row[name]) for row in found if name in row]) for name in names}


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Few enough points to draw: the first, the last, and of each of equally long stretches the lowest and highest."""
    if len(points) <= most:
        return list(points)
    stretches = (most - 2) // 2
    edges = [1 + i * (len(points) - 2) // stretches for i in range(stretches + 1)]
    kept = {0, len(points) - 1}
    for start, stop in itertools.pairwise(edges):
        kept |= {pick(range(start, stop), key=lambda i: points[i][1]) for pick in (min, max)}
    return [points[i] for i in sorted(kept)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overshoot:
    """From around `step` on the reward rose by `reward`, while the preference (a share) fell by `preference`."""

    step: int
    reward: float
    preference: float


def overshoot(reward: Sequence[Point], preference: Sequence[Point]) -> Overshoot | None:
    """Whether preference fell from its best, by more than four standard errors of what it scatters from step to step,
    while the reward that is trained for rose (over-optimisation, Gao et al. 2023). None: no sign of it.

    Means over a fifth of the steps, at least five, are compared: the best and the last."""
    known = dict(reward), dict(preference)
    shared = sorted(known[0].keys() & known[1].keys())
    size = max(_WINDOW, len(shared) // 5)
    if len(shared) < 2 * size:
        return None
    rewards, liked = (np.array([values[step] for step in shared]) for values in known)
    means = np.convolve(liked, np.ones(size) / size, "valid")
    best = int(means[: len(means) - size + 1].argmax())
    scatter = float(np.std(np.diff(liked), ddof=1)) / math.sqrt(2)
    fall = float(means[best] - means[-1])
    rise = float(rewards[-size:].mean() - rewards[best : best + size].mean())
    if rise <= 0 or fall <= _SURE * scatter * math.sqrt(2 / size):
        return None
    return Overshoot(step=int(shared[best + size // 2]), reward=rise, preference=fall)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """Answers to one prompt, before training and after it; number `index` of `count` prompts. `models`: what stands
    "before" can be chosen among."""

    index: int
    count: int
    models: Sequence[str]
    model: str
    prompt: Mapping[str, Json]
    before: Sequence[Mapping[str, Json]]
    after: Sequence[Mapping[str, Json]]


def sides(run: RunFolder, index: int, model: str = "sft") -> Sides | None:
    """Answers to the same prompt side by side: from the evaluation once it has them, before that the policy's newest
    rollouts beside the answers that were collected from the starting policy. None where there is nothing to compare."""
    return _evaluated(run, index, model) or _practised(run, index)


def _evaluated(run: RunFolder, index: int, model: str) -> Sides | None:
    if not run.begun("evaluate"):
        return None
    path = run.stages["evaluate"].path
    answers = _places(path)
    models = [name for name in ("sft", "base") if name in answers]
    if "policy" not in answers or not models:
        return None
    model = model if model in models else models[0]
    prompts = [prompt for prompt in answers["policy"] if prompt in answers[model]]
    if not prompts:
        return None
    index = min(max(index, 0), len(prompts) - 1)
    after = _read(path, answers["policy"][prompts[index]])
    before = _read(path, answers[model][prompts[index]])
    about: dict[str, Json] = {"index": index, "count": len(prompts), "models": models, "model": model}
    return Sides(**about, prompt=after[0]["prompt"], before=before, after=after)


def _practised(run: RunFolder, index: int) -> Sides | None:
    if run.online is None or not run.begun("collect"):
        return None
    rollouts, collected = run.online.path, run.stages["collect"].path
    newest = _places(rollouts).get("", {})
    start = {prompt: places for by_prompt in _places(collected).values() for prompt, places in by_prompt.items()}
    prompts = [prompt for prompt in newest if prompt in start]
    if not prompts:
        return None
    index = min(max(index, 0), len(prompts) - 1)
    after, before = _read(rollouts, newest[prompts[index]]), _read(collected, start[prompts[index]])
    after = [row for row in after if row["step"] == after[-1]["step"]]
    about: dict[str, Json] = {"index": index, "count": len(prompts), "models": ["sft"], "model": "sft"}
    return Sides(**about, prompt=before[0]["prompt"], before=before, after=after)


def _places(path: Path) -> dict[str, dict[str, list[int]]]:
    """Where in a stage's samples those of each model and prompt stand."""
    found: dict[str, dict[str, list[int]]] = {}
    for model, prompt, where in _samples(path).read():
        found.setdefault(model, {}).setdefault(prompt, []).append(where)
    return found


def _read(path: Path, places: Sequence[int]) -> list[Mapping[str, Json]]:
    with (path / "samples.jsonl").open("rb") as file:
        found = []
        for place in places:
            file.seek(place)
            found.append(json.loads(file.readline()))
    return found
