"""Does weighting labelers by their reliability beat the majority vote? labeler_reliability.py --seeds 20

Labelers of planted reliability (careful, average, careless, contrary), some with a bias to one side, compare random
pairs of items that have a true order. Three rankings are recovered: Bradley-Terry of each pair's majority verdict, of
all labels with equal weights, and of all labels by what `rater_effects` finds of their labelers. As a control all
labelers are equally reliable and without bias: weights must neither gain nor lose over equal ones.
Writes labeler_reliability.json, .svg and .png beside this file; exits 0 only where the claim holds.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from result import finish
from scipy.special import expit

from prefloop.ops.raters import pair_posterior
from prefloop.ops.ratings import bradley_terry, rater_effects
from prefloop.ops.statistics import cluster_bootstrap

matplotlib.use("Agg")
OUT = Path(__file__).parent
CLAIM = "Reliability-weighted Bradley-Terry orders items better than the majority vote, and equal labelers alike."
SOURCE = "Chen et al. 2013 (Crowd-BT)"
CONTROL = 0.01  # share of pairs of items that weights may gain or lose among equal labelers
ITEMS, PAIRS, LABELS = 40, 400, 5
RELIABILITY = np.repeat([2.0, 1.0, 0.1, -1.0], [8, 6, 8, 2])
BIAS = np.tile([0.0, 0.0, 1.5, 0.0, -1.5, 0.0], 4)
Array = NDArray[Any]


def labeled(rng: np.random.Generator, reliability: Array, bias: Array) -> dict[str, Array]:
    """Labels of random pairs, each by LABELS different labelers, one entry a label; and the true strengths."""
    strength = rng.normal(size=ITEMS)
    one = rng.integers(ITEMS, size=PAIRS)
    other = (one + rng.integers(1, ITEMS, size=PAIRS)) % ITEMS
    pair = np.repeat(np.arange(PAIRS), LABELS)
    rater = np.argsort(rng.random((PAIRS, reliability.size)), axis=1)[:, :LABELS].ravel()
    left = rng.choice([-1, 1], size=pair.size)
    lead = strength[one][pair] - strength[other][pair]
    won = rng.random(pair.size) < expit(reliability[rater] * lead + bias[rater] * left)
    return {"pair": pair, "one": one[pair], "other": other[pair], "rater": rater, "left": left, "won": won} | {
        "strength": strength
    }


def pairs_in_order(found: Array, truth: Array) -> float:
    """Share of all pairs of items that stand in their true order; Kendall's tau is twice this less 1."""
    a, b = np.triu_indices(truth.size, 1)
    return float(np.mean(np.sign(found[a] - found[b]) == np.sign(truth[a] - truth[b])))


def recover(labels: Mapping[str, Array]) -> dict[str, Any]:
    """Pairs in order by each ranking; how many verdicts on single pairs are right; and the reliabilities found."""
    one, other, rater, left, won = (labels[name] for name in ("one", "other", "rater", "left", "won"))
    effects = rater_effects(one, other, rater, won, left)
    slope, offset = effects.reliability[rater], effects.bias[rater] * left
    votes = np.bincount(labels["pair"], won) / LABELS > 0.5
    firsts = np.arange(PAIRS) * LABELS
    better = labels["strength"][one[firsts]] > labels["strength"][other[firsts]]
    posterior = pair_posterior(labels["pair"], rater, np.where(won, 1, -1), left < 0).first > 0.5
    rankings = {
        "majority": bradley_terry(one[firsts], other[firsts], votes),
        "equal": bradley_terry(one, other, won),
        "weighted": bradley_terry(one, other, won, slope=slope, offset=offset),
    }
    return {name: pairs_in_order(found.strength, labels["strength"]) for name, found in rankings.items()} | {
        "verdicts_majority": float(np.mean(votes == better)),
        "verdicts_posterior": float(np.mean(posterior == better)),
        "reliability": effects.reliability.tolist(),
    }


def run_seed(seed: int) -> dict[str, Any]:
    """One true order with planted labelers, and one with labelers that are all alike."""
    planted = recover(labeled(np.random.default_rng([seed, 0]), RELIABILITY, BIAS))
    control = recover(labeled(np.random.default_rng([seed, 1]), np.ones(RELIABILITY.size), np.zeros(BIAS.size)))
    return {
        "seed": seed,
        **planted,
        "tau_weighted": 2 * planted["weighted"] - 1,
        "tau_majority": 2 * planted["majority"] - 1,
        "gain": planted["weighted"] - planted["majority"],
        "gain_over_equal": planted["weighted"] - planted["equal"],
        "gain_in_verdicts": planted["verdicts_posterior"] - planted["verdicts_majority"],
        "control_gain": control["weighted"] - control["equal"],
        "control_gain_in_verdicts": control["verdicts_posterior"] - control["verdicts_majority"],
    }


def verdict(per_seed: Sequence[Mapping[str, Any]], minutes: float) -> dict[str, Any]:
    """The claim's object; `median` is that of the gain."""
    low, high = cluster_bootstrap([[row["gain"]] for row in per_seed])
    control = cluster_bootstrap([[row["control_gain"]] for row in per_seed])
    median = statistics.median(row["gain"] for row in per_seed)
    return {
        "id": "labeler_reliability",
        "claim": CLAIM,
        "source": SOURCE,
        "threshold": f"median gain > 0 with a paired interval above 0; control's interval within ±{CONTROL}",
        "per_seed": per_seed,
        "median": median,
        "gain_interval": [low, high],
        "control_interval": list(control),
        "holds": median > 0 and low > 0 and max(map(abs, control)) <= CONTROL,
        "minutes": minutes,
    }


def draw(answer: Mapping[str, Any]) -> Figure:
    """Pairs in order by ranking, a line a seed; reliability, planted and found; gains, the control's among them."""
    rows = answer["per_seed"]
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    names = ["majority", "equal", "weighted"]
    for row in rows:
        left.plot(names, [row[name] for name in names], color="tab:blue", alpha=0.3, marker=".")
    left.plot(names, [statistics.median(row[name] for row in rows) for name in names], color="black", marker="o")
    left.set_title("Share of pairs of items in their true order", loc="left", fontsize=10)
    spread = np.random.default_rng(0).normal(0, 0.03, size=(len(rows), RELIABILITY.size))
    found = np.array([row["reliability"] for row in rows])
    middle.plot((RELIABILITY + spread).ravel(), found.ravel(), ".", alpha=0.3)
    middle.set_title("Reliability: planted, and found", loc="left", fontsize=10)
    middle.set_xlabel("planted")
    gains = {"planted,\nover majority": "gain", "planted,\nover equal": "gain_over_equal", "control": "control_gain"}
    right.boxplot([[row[key] for row in rows] for key in gains.values()], tick_labels=list(gains))
    right.axhline(0, color="black", linewidth=0.8)
    right.set_title("Gain of weights", loc="left", fontsize=10)
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(arguments: list[str] | None = None) -> int:
    """0 when the claim holds, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the results")
    parser.add_argument("--json", action="store_true", help="print on one line")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    per_seed = [run_seed(seed) for seed in range(options.seeds)]
    answer = verdict(per_seed, (time.monotonic() - start) / 60)
    return finish("labeler_reliability", answer, draw(answer), options.out, one_line=options.json)


if __name__ == "__main__":
    sys.exit(main())
