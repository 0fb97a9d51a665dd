"""Do cheap ensembles gain too where labels are wrong? cheap_ensembles.py --seeds 10

The toy of T14 (gold_toy.py): reward models on 500 pairs of which a quarter is labeled wrong; the policy is the best of
n = 4,096 by them, and asked is its gold score over that of a single model. Five members, in mini-batches in an order of
their own, as full: each from its own start; same start: all weights from one start, so that only the order differs;
heads: the first member's hidden layer, kept, with an outer layer from each one's own start (reward.heads). Combined by
their mean or worst case; or one network with the mean of their weights (average:A,B), from one start and, as a control
that must fail, from five. With clean labels all must gain little.
Tuned on seeds from 100 up. Writes cheap_ensembles.json, .svg and .png beside this file; exits 0 only where it holds.
"""

import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from gold_toy import HIDDEN, LR, STEPS, WIDTH, Array, World
from matplotlib.figure import Figure
from result import claim
from torch import Tensor

from prefloop.ops.ensembles import best_of_n, mean_score, worst_case
from prefloop.ops.losses import bradley_terry
from prefloop.ops.statistics import cluster_bootstrap

matplotlib.use("Agg")
CLAIM = "Under wrong labels heads on one trunk gain over a single model too; averaged weights need one start."
SOURCE = "Coste et al. 2023 (2310.02743), Zhang et al. 2024 (2401.16635), Rame et al. 2024 (2401.12187)"
PAIRS, MEMBERS, BATCH, DATA_SETS = 500, 5, 64, 3
ANSWERS, N = 2**16, 4**6
LABELS = {"flips": 0.25, "clean": 0.0}
FULL, HEADS, AVERAGE, BROKEN = 1.2, 1.05, 0.95, 0.8
FRAME = (-1.0, 2.5)
Weights = list[Tensor]


def start(draw: torch.Generator) -> Weights:
    inner = torch.randn(WIDTH, HIDDEN, generator=draw) / math.sqrt(WIDTH)
    return [inner, torch.zeros(1, HIDDEN), torch.randn(HIDDEN, 1, generator=draw) / math.sqrt(HIDDEN)]


def scores(weights: Weights, points: Tensor) -> Tensor:
    inner, bias, outer = weights
    return (torch.tanh(points @ inner + bias) @ outer).squeeze(-1)


def fit(begun: Weights, sides: Tensor, target: Tensor, draw: torch.Generator, learned: Sequence[int]) -> Weights:
    """Weights after STEPS mini-batches; those that are not learned stay."""
    weights = [part.clone().requires_grad_(place in learned) for place, part in enumerate(begun)]
    optimizer = torch.optim.Adam([part for part in weights if part.requires_grad], lr=LR)
    one, zero = torch.ones(BATCH), torch.zeros(BATCH)
    for _ in range(STEPS):
        picked = torch.randperm(PAIRS, generator=draw)[:BATCH]
        first, second = (scores(weights, side[picked]) for side in sides)
        loss = bradley_terry(first, second, target=target[picked], margin=zero, weight=one) / BATCH
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own is untyped
        optimizer.step()
    return [part.detach() for part in weights]


def gains(world: World, flips: float, data: int) -> dict[str, float]:
    """Gold of the best of N by each way over that of a single model, the mean of the full members alone."""
    draw = torch.Generator().manual_seed(int(np.random.SeedSequence([world.seed, data]).generate_state(1)[0]))
    sides = torch.randn(2, PAIRS, WIDTH, generator=draw)
    first, second = world.score(sides)
    target = ((first > second) ^ (torch.rand(PAIRS, generator=draw) < flips)).float()
    common, whole, outer = start(draw), (0, 1, 2), (2,)
    made = {
        "full": [fit(start(draw), sides, target, draw, whole) for _ in range(MEMBERS)],
        "same start": [fit(common, sides, target, draw, whole) for _ in range(MEMBERS)],
    }
    trunk = made["full"][0]
    further = [fit([*trunk[:2], start(draw)[2]], sides, target, draw, outer) for _ in range(MEMBERS - 1)]
    made["heads"] = [trunk, *further]

    def scored(weights: Weights) -> Array:
        raw = torch.cat([scores(weights, part) for part in world.answers.split(8192)]).double().numpy()
        return np.asarray((raw - raw.mean()) / raw.std())

    def gold(by: Array) -> float:
        return float(best_of_n(by, world.gold, [N])[0])

    members = {kind: np.stack([scored(weights) for weights in own]) for kind, own in made.items()}
    single = statistics.fmean(map(gold, members["full"]))
    found = {
        f"{kind}, {way}": gold(combine(own)) / single
        for kind, own in members.items()
        for way, combine in (("mean", mean_score), ("worst", worst_case))
    }
    for kind in ("same start", "full"):
        mean = [torch.stack(parts).mean(dim=0) for parts in zip(*made[kind], strict=True)]
        found[f"{kind}, average"] = gold(scored(mean)) / single
    return found


def run_seed(seed: int) -> dict[str, Any]:
    """One gold reward; every figure is the mean over data sets."""
    world = World(seed, ANSWERS, near=4.0, cost=1.0)
    answer: dict[str, Any] = {"seed": seed}
    for label, flips in LABELS.items():
        runs = [gains(world, flips, data) for data in range(DATA_SETS)]
        answer[label] = {way: statistics.fmean(run[way] for run in runs) for way in runs[0]}
    return answer


def verdict(per_seed: Sequence[Mapping[str, Any]], minutes: float) -> dict[str, Any]:
    """The claim's object; `median` is the gain of the worst case of heads under flips."""
    keys = [(label, way) for label in LABELS for way in per_seed[0][label]]
    values = {f"{label}: {way}": [row[label][way] for row in per_seed] for label, way in keys}
    medians = {key: statistics.median(found) for key, found in values.items()}
    intervals = {key: list(cluster_bootstrap([[value] for value in found])) for key, found in values.items()}
    parts = {
        "full members gain": medians["flips: full, worst"] >= FULL,
        "heads gain": medians["flips: heads, worst"] >= HEADS and intervals["flips: heads, worst"][0] > 1,
        "an average from one start is whole": medians["flips: same start, average"] >= AVERAGE,
        "an average from five starts is broken": medians["flips: full, average"] <= BROKEN,
        "clean labels: heads gain less": medians["clean: heads, worst"] < medians["flips: heads, worst"],
    }
    return {
        "id": "cheap_ensembles",
        "claim": CLAIM,
        "source": SOURCE,
        "threshold": f"median ratio of gold at n = {N} to a single model, under flips, worst case: full >= {FULL}, "
        f"heads >= {HEADS} with an interval above 1; averages: one start >= {AVERAGE}, five <= {BROKEN}",
        "per_seed": per_seed,
        "median": medians["flips: heads, worst"],
        "medians": medians,
        "intervals": intervals,
        "parts": parts,
        "holds": all(parts.values()),
        "minutes": minutes,
    }


def draw_figure(answer: Mapping[str, Any]) -> Figure:
    """Ratios to a single model by way, a dot a seed, under flips and with clean labels; dots outside FRAME at its
    edges: where a single model's gold is near 0, ratios are large."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    for axes, label in zip(figure.subplots(1, 2, sharey=True), LABELS, strict=True):
        ways = list(answer["per_seed"][0][label])
        for place, way in enumerate(ways):
            found = [row[label][way] for row in answer["per_seed"]]
            axes.plot(place + np.linspace(-0.15, 0.15, len(found)), np.clip(found, *FRAME), "o", alpha=0.7)
            axes.plot([place - 0.25, place + 0.25], [statistics.median(found)] * 2, color="black", linewidth=1)
        axes.axhline(1, color="grey", linewidth=0.8)
        names = [way.replace(", ", "\n").replace("same ", "same\n") for way in ways]
        axes.set_xticks(range(len(ways)), names, fontsize=8)
        axes.set_title(f"Gold of the best of {N:,} / that of a single model, {label}", loc="left", fontsize=10)
        axes.set_ylim(FRAME[0] - 0.1, FRAME[1] + 0.1)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(arguments: list[str] | None = None) -> int:
    """0 when the claim holds, 1 otherwise."""
    torch.set_num_threads(1)
    return claim("cheap_ensembles", __doc__, run_seed, verdict, draw_figure, arguments, seeds=10)


if __name__ == "__main__":
    sys.exit(main())
