"""Do fewer labels do where an ensemble says what to ask? active_sampling.py --seeds 10

The reward model is five linear heads on a frozen trunk (linear_toy.py), each fitted on labels drawn with replacement
(Christiano et al. 2017), their mean the score. Labels come in batches. A campaign's share of uniform picks stays
uniform; the rest goes by priority: the heads' disagreement,
or near-misses, of ops/acquisition.py. Counted: labels until the held-out accuracy, against the planted preference,
that uniform picks reach at TARGET labels, over their own count. Control: random priorities must gain nothing.
Tuned on seeds from 100 up. Writes active_sampling.json, .svg and .png beside this file; exits 0 only where it holds.
"""

import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from linear_toy import Array, accuracy, comparisons, fitted, planted
from matplotlib.figure import Figure
from result import claim
from scipy.special import expit

from prefloop.configs.campaign import CampaignConfig
from prefloop.ops.acquisition import near_miss, preference_variance
from prefloop.ops.statistics import cluster_bootstrap

matplotlib.use("Agg")
CLAIM = "Disagreement and near-misses reach the accuracy of uniform picks with fewer labels."
SOURCE = "Christiano et al. 2017 (arXiv 1706.03741), section 2.2.4, whose ablation found that it can also hurt"
RATIO = 0.8
POOL, TEST, MEMBERS, DATA_SETS = 3000, 4000, 5, 5
BATCH, ROUNDS = 32, 26
COUNTS = BATCH * np.arange(1, ROUNDS + 1)
TARGET = int(COUNTS[15])
UNIFORM = CampaignConfig().uniform_share
WAYS = ("uniform", "disagreement", "near-miss", "random")


def along(seed: int, way: str) -> Array:
    """[ROUNDS] held-out accuracy. Ways share pool, labels, held-out pairs and the first batch."""
    rng = np.random.default_rng(seed)
    features, fresh, head = comparisons(POOL, rng), comparisons(TEST, rng), planted(rng)
    label = (rng.random(POOL) < expit(features @ head)).astype(float)
    known, found = rng.permutation(POOL)[:BATCH], []
    for _ in range(ROUNDS):
        draws = rng.multinomial(known.size, np.full(known.size, 1 / known.size), size=MEMBERS).astype(float)
        heads = np.stack([fitted(features[known], label[known], times) for times in draws])
        found.append(accuracy(heads.mean(axis=0), head, fresh))
        leads = heads @ features.T
        priority = {
            "uniform": lambda leads: np.zeros(POOL),
            "random": lambda leads: rng.random(POOL),
            "disagreement": preference_variance,
            "near-miss": near_miss,
        }[way](leads)
        left = rng.permutation(np.setdiff1d(np.arange(POOL), known))
        picked, rest = np.split(left, [round(UNIFORM * BATCH)])
        first = rest[np.argsort(-priority[rest], kind="stable")]
        known = np.concatenate([known, picked, first[: BATCH - picked.size]])
    return np.array(found)


def needed(curve: Array, target: float) -> float:
    """Labels until a curve first reaches the target, between counts by a line; the last count where it never does."""
    reached = np.flatnonzero(curve >= target)
    if reached.size == 0:
        return float(COUNTS[-1])
    last = int(reached[0])
    if last == 0:
        return float(COUNTS[0])
    return float(np.interp(target, curve[last - 1 : last + 1], COUNTS[last - 1 : last + 1]))


def run_seed(seed: int) -> dict[str, Any]:
    """Mean curves over data sets, and labels needed over those that uniform picks need."""
    curves = {way: np.mean([along(1000 * seed + data, way) for data in range(DATA_SETS)], axis=0) for way in WAYS}
    target = float(curves["uniform"][: COUNTS.tolist().index(TARGET) + 1].max())
    labels = {way: needed(curve, target) for way, curve in curves.items()}
    return {
        "seed": seed,
        "target": target,
        "labels": labels,
        "ratio": {way: labels[way] / labels["uniform"] for way in WAYS[1:]},
        "accuracy": {way: curve.tolist() for way, curve in curves.items()},
    }


def verdict(per_seed: Sequence[Mapping[str, Any]], minutes: float) -> dict[str, Any]:
    """The claim's object; `median` is the larger of the two ways' median ratios."""
    ratios = {way: [row["ratio"][way] for row in per_seed] for way in WAYS[1:]}
    medians = {way: statistics.median(values) for way, values in ratios.items()}
    intervals = {way: list(cluster_bootstrap([[value] for value in values])) for way, values in ratios.items()}
    asked = ("disagreement", "near-miss")
    parts = {
        "fewer labels": all(medians[way] <= RATIO and intervals[way][1] < 1 for way in asked),
        "random priorities gain nothing": intervals["random"][1] >= 1,
    }
    return {
        "id": "active_sampling",
        "claim": CLAIM,
        "source": SOURCE,
        "threshold": f"median ratio of labels to uniform picks' <= {RATIO} by both ways with an interval below 1, at "
        f"the accuracy of {TARGET} uniform picks; random priorities' interval reaches 1",
        "per_seed": per_seed,
        "median": max(medians[way] for way in asked),
        "medians": medians,
        "intervals": intervals,
        "uniform_share": UNIFORM,
        "parts": parts,
        "holds": all(parts.values()),
        "minutes": minutes,
    }


def draw(answer: Mapping[str, Any]) -> Figure:
    """Accuracy by labels, mean over seeds; and the ratios, a dot a seed."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = answer["per_seed"]
    for way in WAYS:
        left.plot(COUNTS, np.mean([row["accuracy"][way] for row in rows], axis=0), marker=".", label=way)
    left.axvline(TARGET, color="grey", linestyle="--", linewidth=0.8)
    left.legend(fontsize=8)
    left.set_xlabel("labels")
    left.set_title("Held-out accuracy", loc="left", fontsize=10)
    for place, way in enumerate(WAYS[1:]):
        values = [row["ratio"][way] for row in rows]
        right.plot(place + np.linspace(-0.12, 0.12, len(values)), values, "o", color=f"C{place + 1}", alpha=0.7)
    right.axhline(1, color="black", linewidth=0.8)
    right.axhline(RATIO, color="grey", linestyle="--", linewidth=0.8)
    right.set_xticks(range(3), ["disagreement", "near-miss", "random\n(control)"])
    right.set_title("Labels to equal accuracy / those of uniform picks", loc="left", fontsize=10)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(arguments: list[str] | None = None) -> int:
    """0 when the claim holds, 1 otherwise."""
    return claim("active_sampling", __doc__, run_seed, verdict, draw, arguments, seeds=10)


if __name__ == "__main__":
    sys.exit(main())
