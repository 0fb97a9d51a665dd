"""Do ensembles keep gold reward up where labels are wrong? T14.py --seeds 5

Five reward models share one set of pairs and differ in their start alone, so that an ensemble has no more labels than a
single model (gold_toy.py). The policy is the best of n by one of them, by their mean, by the worst of them, or by their
mean less their variance. Asked: with a quarter of the labels flipped, gold at the end of the run over that of a single
model (the mean of the five alone). Controls: with clean labels little must be gained; five copies of one model must
gain nothing. Also reported: how much the members' variance rises along the run, where the mean or UWO chooses.
Tuned on seeds from 100 up. Writes T14.json, .svg and .png beside this file; exits 0 only where the claim holds.
"""

import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from gold_toy import Array, World
from matplotlib.figure import Figure
from result import claim

from prefloop.ops.ensembles import best_of_n, best_of_n_kl, disagreement, mean_score, uncertainty_weighted, worst_case

matplotlib.use("Agg")
CLAIM = "With a quarter of the labels flipped, WCO and UWO end 1.2 times as high as a single model on the same labels."
SOURCE = "Coste et al. 2023 (arXiv 2310.02743)"
RATIO = 1.2
CLEAN = 0.5  # of the gain under flips, at most
PAIRS, MEMBERS, PENALTY = 500, 5, 1.0
ANSWERS, DATA_SETS = 2**17, 3
NS = [4**k for k in range(7)]
D = np.sqrt(best_of_n_kl(NS))
LABELS = {"flips": 0.25, "clean": 0.0}
WAYS = ("single", "mean", "worst", "uncertainty")


def along(world: World, flips: float, data: int) -> dict[str, Array]:
    """Gold of the best of each n by each way to choose; variance over members, where the mean and where UWO chooses."""
    members = world.members(PAIRS, flips, data, MEMBERS)
    mean, weighted = mean_score(members), uncertainty_weighted(members, PENALTY)
    variance = disagreement(members) ** 2
    return {
        "single": np.mean([best_of_n(member, world.gold, NS) for member in members], axis=0),
        "mean": best_of_n(mean, world.gold, NS),
        "worst": best_of_n(worst_case(members), world.gold, NS),
        "uncertainty": best_of_n(weighted, world.gold, NS),
        "variance_mean": best_of_n(mean, variance, NS),
        "variance_uncertainty": best_of_n(weighted, variance, NS),
    }


def run_seed(seed: int) -> dict[str, Any]:
    """One gold reward; every figure is the mean over data sets."""
    world = World(seed, ANSWERS, near=4.0, cost=1.0)
    answer: dict[str, Any] = {"seed": seed}
    for label, flips in LABELS.items():
        runs = [along(world, flips, data) for data in range(DATA_SETS)]
        found = {key: np.mean([run[key] for run in runs], axis=0) for key in runs[0]}
        answer[label] = {
            "gold": {way: found[way].tolist() for way in WAYS},
            "ratio": {way: float(found[way][-1] / found["single"][-1]) for way in WAYS[1:]},
            "fall_single": float(found["single"].max() - found["single"][-1]),
            "variance_rise_mean": float(found["variance_mean"][-1] / found["variance_mean"][0]),
            "variance_rise_uncertainty": float(found["variance_uncertainty"][-1] / found["variance_uncertainty"][0]),
        }
    copies = np.repeat(world.members(PAIRS, LABELS["flips"], 0, 1), MEMBERS, axis=0)
    alone = best_of_n(copies[0], world.gold, NS[-1:])
    answer["control_copies"] = float((best_of_n(worst_case(copies), world.gold, NS[-1:]) / alone)[0])
    return answer


def verdict(per_seed: Sequence[Mapping[str, Any]], minutes: float) -> dict[str, Any]:
    """The claim's object; `median` is the smaller of the medians of WCO's and UWO's ratios under flips."""

    def ratio(label: str) -> dict[str, float]:
        return {way: statistics.median(row[label]["ratio"][way] for row in per_seed) for way in WAYS[1:]}

    flipped, clean = ratio("flips"), ratio("clean")
    asked = WAYS[2:]
    parts = {
        "flips": all(flipped[way] >= RATIO for way in asked),
        "clean gains little": all(clean[way] - 1 <= CLEAN * (flipped[way] - 1) for way in asked),
        "copies gain nothing": all(abs(row["control_copies"] - 1) < 1e-9 for row in per_seed),
    }
    rises = {
        f"{label}, {way}": statistics.median(row[label][f"variance_rise_{way}"] for row in per_seed)
        for label in LABELS
        for way in ("mean", "uncertainty")
    }
    return {
        "id": "T14",
        "claim": CLAIM,
        "source": SOURCE,
        "threshold": f"median ratio of gold at n = {NS[-1]} to a single model >= {RATIO} by WCO and by UWO (penalty "
        f"{PENALTY}) under flips; with clean labels at most {CLEAN} of that gain; copies of one model gain nothing",
        "per_seed": per_seed,
        "ratio": {"flips": flipped, "clean": clean},
        "variance_rise": rises,
        "parts": parts,
        "median": min(flipped[way] for way in asked),
        "holds": all(parts.values()),
        "minutes": minutes,
    }


def draw(answer: Mapping[str, Any]) -> Figure:
    """Gold by d under flips and with clean labels, mean over seeds; and the ratios at the end, a dot a seed."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    plots = figure.subplots(1, 3)
    seeds = answer["per_seed"]
    for axes, label in zip(plots, LABELS, strict=False):
        for way in WAYS:
            axes.plot(D, np.mean([row[label]["gold"][way] for row in seeds], axis=0), marker=".", label=way)
        axes.set_title(f"Gold of the best of n, {label}", loc="left", fontsize=10)
        axes.set_xlabel("d = sqrt(KL), KL in nats")
        axes.set_ylim(0, 2.3)
    plots[0].legend(fontsize=8)
    for place, (label, way) in enumerate((label, way) for label in LABELS for way in WAYS[1:]):
        ends = [row[label]["ratio"][way] for row in seeds]
        plots[2].plot([place] * len(ends), ends, "o", color=f"C{WAYS.index(way)}", alpha=0.7)
    plots[2].axhline(1, color="black", linewidth=0.8)
    plots[2].axhline(RATIO, color="grey", linestyle="--", linewidth=0.8)
    plots[2].set_xticks(range(6), [f"{way[:6]}\n{label}" for label in LABELS for way in WAYS[1:]], fontsize=8)
    plots[2].set_title("Gold at the end / that of a single model", loc="left", fontsize=10)
    for axes in plots:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(arguments: list[str] | None = None) -> int:
    """0 when the claim holds, 1 otherwise."""
    torch.set_num_threads(1)
    return claim("T14", __doc__, run_seed, verdict, draw, arguments, seeds=5)


if __name__ == "__main__":
    sys.exit(main())
