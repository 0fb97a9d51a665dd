"""Is the best of n by a process reward model better than by an outcome one, and that than a vote? T12.py --seeds 5

Sums of six digits modulo 10, a step for each plus sign. Who solves them slips at random, believes some wrong facts more
often than not, and after an error may err again so that the answer is right by wrong steps (false positives). One small
network reads the steps so far, each by its three digits. On the same answers it learns once whether each step is right,
up to the first error, and once whether the final answer is, at the end. On new sums, which of 32 answers is best: by
the product of its steps' probabilities, by the outcome's, or by what most answers say? Asked: how often its final
answer is right. Control: a process model whose answers have each other's labels must fall behind the outcome model.
Also reported: other n; answers all of whose steps are right; fewer and more answers to learn from; other combinations.
Tuned on seeds from 100 up. Writes T12.json, .svg and .png beside this file; exits 0 only where the claim holds.
"""

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from result import claim
from torch import Tensor, nn

from prefloop.data.steps import to_first_error
from prefloop.ops.losses import binary
from prefloop.ops.statistics import cluster_bootstrap
from prefloop.ops.steps import COMBINATIONS, combined

matplotlib.use("Agg")
CLAIM = "The best of 32 by a process reward model is right more often than by an outcome one, and that than by a vote."
SOURCE = "Lightman et al. 2023 (arXiv 2305.20050)"
BASE, STEPS = 10, 5
BELIEFS, BELIEVED, SLIP, MENDED = 20, 0.65, 0.05, 0.15
ANSWERS, SIZES, EACH = 12_000, (3_000, 12_000, 24_000), 8
SUMS, N = 400, 32
NS = [1, 2, 4, 8, 16, 32]
UPDATES, BATCH, RATE, DECAY = 2000, 256, 3e-3, 1e-2
WAYS = ("vote", "outcome", "process", "shuffled")
Array = NDArray[Any]


@dataclass(frozen=True)
class Answers:
    """Answers [..., STEPS] step by step: a + b = c; whether a step is right, and [...] whether the final answer is."""

    a: Array
    b: Array
    c: Array
    sound: Array
    right: Array

    def digits(self) -> Tensor:
        """[..., STEPS, 3 BASE] one-hot."""
        known = np.eye(BASE, dtype=np.float32)
        return torch.from_numpy(np.concatenate([known[self.a], known[self.b], known[self.c]], axis=-1))


class Solver:
    """Someone who solves sums, and believes that some are another."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.off = rng, np.zeros(BASE**2, dtype=int)
        self.off[rng.choice(BASE**2, BELIEFS, replace=False)] = rng.integers(1, BASE, BELIEFS)

    def solve(self, sums: int, each: int) -> Answers:
        """Answers [sums, each] to random sums."""
        digits = np.repeat(self.rng.integers(BASE, size=(sums, 1, STEPS + 1)), each, axis=1)
        value, error = digits[..., 0], np.zeros((sums, each), dtype=int)
        steps = []
        for place in range(1, STEPS + 1):
            digit = digits[..., place]
            belief = self.off[value * BASE + digit]
            off = np.where(self._chance(SLIP, value), self.rng.integers(1, BASE, value.shape), 0)
            off = np.where((error != 0) & self._chance(MENDED, value), -error % BASE, off)
            off = np.where((belief != 0) & self._chance(BELIEVED, value), belief, off)
            result = (value + digit + off) % BASE
            steps.append((value, digit, result, off == 0))
            value, error = result, (error + off) % BASE
        a, b, c, sound = (np.stack(column, axis=-1) for column in zip(*steps, strict=True))
        return Answers(a, b, c, sound, np.asarray(error == 0))

    def _chance(self, share: float, like: Array) -> Array:
        return np.asarray(self.rng.random(like.shape) < share)


class Model(nn.Module):
    """A logit after each step, of the sum of what the steps so far say."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Sequential(nn.Linear(3 * BASE, 128), nn.ReLU(), nn.Linear(128, 64))
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, digits: Tensor) -> Tensor:
        logits: Tensor = self.head(self.step(digits).cumsum(-2))[..., 0]
        return logits


def fitted(digits: Tensor, labels: Array, seed: int) -> Model:
    """A model that learned labels [answers, STEPS]; those that are NaN are none."""
    torch.manual_seed(seed)
    model, chance = Model(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, UPDATES)
    target = torch.from_numpy(labels.astype(np.float32))
    for _ in range(UPDATES):
        drawn = torch.randint(len(digits), (BATCH,), generator=chance)
        known = ~target[drawn].isnan()
        loss = binary(model(digits[drawn])[known], target[drawn][known], torch.ones(int(known.sum()))) / known.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model


def process_labels(answers: Answers) -> Array:
    rows = [to_first_error(row) for row in answers.sound.reshape(-1, STEPS).astype(float).tolist()]
    return np.array(rows, dtype=float)  # None becomes NaN


def outcome_labels(answers: Answers) -> Array:
    labels = np.full((answers.right.size, STEPS), np.nan)
    labels[:, -1] = answers.right.ravel()
    return labels


def probabilities(model: Model, answers: Answers) -> Array:
    with torch.no_grad():
        return np.asarray(model(answers.digits()).sigmoid().numpy(), dtype=float)


def scored(steps: Array, how: str) -> Array:
    """[...] one number for each answer of step probabilities [..., STEPS]."""
    return np.apply_along_axis(combined, -1, steps, how)


def most(final: Array) -> int:
    """Place of the first of those answers whose result most have; of results that tie the least."""
    return int(np.argmax(final == np.bincount(final).argmax()))


def chosen(scores: Array | None, final: Array, n: int) -> Array:
    """[sums, N / n] place of the answer that is taken of each n in a row, by scores or by a vote."""
    parts = (final if scores is None else scores).reshape(len(final), -1, n)
    best = np.apply_along_axis(most, -1, parts) if scores is None else parts.argmax(-1)
    return np.asarray(best + np.arange(0, N, n))


def run_seed(seed: int) -> dict[str, Any]:
    """One solver; models of the same answers; new sums."""
    rng = np.random.default_rng(seed)
    solver = Solver(rng)
    known, test = solver.solve(max(SIZES) // EACH, EACH), solver.solve(SUMS, N)
    digits = known.digits().reshape(-1, STEPS, 3 * BASE)
    labels = {"process": process_labels(known), "outcome": outcome_labels(known)}
    final, sound = test.c[..., -1], np.asarray(test.sound.all(-1))

    def share(what: Array, scores: Array | None, n: int = N) -> float:
        return float(np.take_along_axis(what, chosen(scores, final, n), axis=1).mean())

    found: dict[str, Array | None] = {"vote": None}
    sizes: dict[str, dict[str, float]] = {"outcome": {}, "process": {}}
    for size in SIZES:
        outcome = fitted(digits[:size], labels["outcome"][:size], seed)
        process = fitted(digits[:size], labels["process"][:size], seed)
        steps = probabilities(process, test)
        scores = {"outcome": probabilities(outcome, test)[..., -1], "process": scored(steps, "product")}
        for way, values in scores.items():
            sizes[way][str(size)] = share(test.right, values)
        if size == ANSWERS:
            found |= scores
            ways = {how: share(test.right, scored(steps, how)) for how in COMBINATIONS}
    mixed = labels["process"][:ANSWERS][rng.permutation(ANSWERS)]
    found["shuffled"] = scored(probabilities(fitted(digits[:ANSWERS], mixed, seed), test), "product")
    lucky = known.right & ~known.sound.all(-1)
    return {
        "seed": seed,
        "right": {way: share(test.right, found[way]) for way in WAYS},
        "all_steps_right": {way: share(sound, found[way]) for way in WAYS},
        "by_n": {way: [share(test.right, found[way], n) for n in NS] for way in WAYS},
        "all_steps_right_by_n": {way: [share(sound, found[way], n) for n in NS] for way in WAYS},
        "by_answers": sizes,
        "combinations": ways,
        "false_positives": float(lucky.sum() / known.right.sum()),
    }


def verdict(per_seed: Sequence[Mapping[str, Any]], minutes: float) -> dict[str, Any]:
    """The claim's object; `median` is that of the smaller of the two leads."""

    def leads(one: str, other: str) -> list[float]:
        return [row["right"][one] - row["right"][other] for row in per_seed]

    pairs = {"process over outcome": ("process", "outcome"), "outcome over vote": ("outcome", "vote")}
    pairs["outcome over shuffled"] = ("outcome", "shuffled")
    intervals = {name: cluster_bootstrap([[lead] for lead in leads(*pair)]) for name, pair in pairs.items()}
    parts = {name: low > 0 for name, (low, _) in intervals.items()}
    return {
        "id": "T12",
        "claim": CLAIM,
        "source": SOURCE,
        "threshold": f"share of the best of {N} that is right, {ANSWERS} answers to learn from: process over outcome, "
        "outcome over vote, and outcome over a process model of shuffled labels, each with an interval above 0",
        "per_seed": per_seed,
        "right": {way: statistics.median(row["right"][way] for row in per_seed) for way in WAYS},
        "all_steps_right": {way: statistics.median(row["all_steps_right"][way] for row in per_seed) for way in WAYS},
        "by_answers": {
            way: {str(size): statistics.median(row["by_answers"][way][str(size)] for row in per_seed) for size in SIZES}
            for way in WAYS[1:3]
        },
        "combinations": {how: statistics.median(row["combinations"][how] for row in per_seed) for how in COMBINATIONS},
        "lead": {name: statistics.median(leads(*pair)) for name, pair in pairs.items()},
        "intervals": intervals,
        "parts": parts,
        "median": statistics.median(min(both) for both in zip(leads(*WAYS[2:0:-1]), leads(*WAYS[1::-1]), strict=True)),
        "holds": all(parts.values()),
        "minutes": minutes,
    }


def draw(answer: Mapping[str, Any]) -> Figure:
    """Share right, and with all steps right, by n (mean over seeds), by answers learned from, and by way (by seed)."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    seeds = answer["per_seed"]
    for color, way in enumerate(WAYS):
        for what, line in (("by_n", "-"), ("all_steps_right_by_n", ":")):
            mean = np.mean([row[what][way] for row in seeds], axis=0)
            left.plot(NS, mean, line, color=f"C{color}", marker=".", label=way if line == "-" else None)
        for shift, what in ((-0.15, "right"), (0.15, "all_steps_right")):
            values = [row[what][way] for row in seeds]
            fill = f"C{color}" if what == "right" else "none"
            right.plot([color + shift] * len(seeds), values, "o", color=f"C{color}", markerfacecolor=fill)
    for way in WAYS[1:3]:
        for row in seeds:
            values = [row["by_answers"][way][str(size)] for size in SIZES]
            middle.plot(SIZES, values, color=f"C{WAYS.index(way)}", marker=".", alpha=0.6)
    middle.axhline(np.mean([row["right"]["vote"] for row in seeds]), color="C0", linestyle="--")
    left.set_xscale("log", base=2)
    left.set_xticks(NS, map(str, NS))
    left.legend(fontsize=8)
    left.set_title("Best of n: right (solid), all steps right (dotted)", loc="left", fontsize=10)
    middle.set_xticks(SIZES, [f"{size:,}" for size in SIZES], fontsize=8)
    middle.set_title(f"Right, best of {N}, by answers learned from (dashed: vote)", loc="left", fontsize=10)
    right.set_xticks(range(len(WAYS)), WAYS)
    right.set_title(f"Best of {N}: right (full), all steps right (hollow)", loc="left", fontsize=10)
    for axes in (left, middle, right):
        axes.set_ylim(0, 1.02)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(arguments: list[str] | None = None) -> int:
    """0 when the claim holds, 1 otherwise."""
    torch.set_num_threads(1)
    # minutes of one core, whatever else it has to do
    return claim("T12", __doc__, run_seed, verdict, draw, arguments, seeds=5, clock=time.process_time)


if __name__ == "__main__":
    sys.exit(main())
