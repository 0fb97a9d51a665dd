"""What is worth more, many labels or right ones, and which labels should be looked at again? data_quality.py --seeds 10

Cost: a budget buys pairs with 1, 3 or 5 labels each, whose majority counts; each label is wrong with some probability.
A pair costs its labels, and more where answers have to be sampled and read first: 0 or 8 labels' worth. Accuracy is
that of a linear head on a frozen trunk (linear_toy.py), against the planted preference on fresh pairs.

Errors: a share of the labels is flipped; a label is flagged where a model that did not see it is confident of the other
answer (ops/label_errors.py, five folds). Then flagged labels are dropped, or looked at again, which puts them right.
Controls: as many at random; no label flipped, where few may be flagged and nothing may change; and, reported alone,
nothing flipped but people who are in doubt where answers are alike, whose doubt is then taken for errors.
Tuned on seeds from 100 up. Writes data_quality.json, .svg and .png beside this file; exits 0 only where it holds.
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

from prefloop.ops.label_errors import confident_errors, detection, folds
from prefloop.ops.statistics import cluster_bootstrap

matplotlib.use("Agg")
CLAIM = (
    "At equal cost many noisy pairs beat few clean ones where a pair costs its labels alone, and lose where it costs 8 "
    "labels more; labels flagged out of fold are mostly wrong, and dropping or correcting them helps."
)
SOURCE = "Sheng et al. 2008 (repeated labeling); Northcutt et al. 2021 (arXiv 1911.00068)"
BUDGET, REPEATS, EXTRAS, RATES = 1500, (1, 3, 5), (0, 8), (0.0, 0.1, 0.2, 0.3, 0.4)
ASKED = 0.2  # rate of wrong labels at which the claim is tested
PAIRS, FOLDS, TEST, DATA_SETS = 800, 5, 4000, 5
PRECISION, RECALL, FEW, NOTHING = 0.75, 0.6, 0.01, 0.005
LABELS = {"flipped": (ASKED, False), "right": (0.0, False), "doubt": (0.0, True)}  # wrong, and whether people doubt
CURES = ("drop", "correct", "drop at random", "correct at random")


def majority(truth: Array, wrong: float, repeats: int, rng: np.random.Generator) -> Array:
    """[N] what most of `repeats` labels say, each wrong independently."""
    votes = np.where(rng.random((repeats, truth.size)) < wrong, 1 - truth, truth)
    return np.asarray((votes.mean(axis=0) > 0.5).astype(float))


def bought(seed: int, data: int, wrong: float, extra: int, repeats: int) -> float:
    """Held-out accuracy of what the budget buys."""
    rng = np.random.default_rng([seed, data])
    head, fresh = planted(rng), comparisons(TEST, rng)
    pool = comparisons(BUDGET, rng)
    features = pool[: BUDGET // (extra + repeats)]
    label = majority((features @ head > 0).astype(float), wrong, repeats, rng)
    return accuracy(fitted(features, label), head, fresh)


def cured(seed: int, data: int, wrong: float, doubt: bool) -> dict[str, float]:
    """How many labels are flagged, how many of these rightly, and accuracy over that of all labels as they are."""
    rng = np.random.default_rng([seed, data, 1])
    head, fresh, features = planted(rng), comparisons(TEST, rng), comparisons(PAIRS, rng)
    lead = features @ head
    said = (rng.random(PAIRS) < expit(lead) if doubt else lead > 0).astype(float)
    flipped = rng.random(PAIRS) < wrong
    label = np.where(flipped, 1 - said, said)
    fold, chance = folds(np.arange(PAIRS), FOLDS, seed), np.empty(PAIRS)
    for k in range(FOLDS):
        chance[fold == k] = expit(features[fold == k] @ fitted(features[fold != k], label[fold != k]))
    flags = confident_errors(chance, label)
    at_random = rng.permutation(flags)
    before = accuracy(fitted(features, label), head, fresh)
    found = detection(flags, flipped)
    made = {"before": before, "flagged": found.flagged / PAIRS, "precision": found.precision, "recall": found.recall}
    for name, marked in (("", flags), (" at random", at_random)):
        made["drop" + name] = accuracy(fitted(features[~marked], label[~marked]), head, fresh) - before
        made["correct" + name] = accuracy(fitted(features, np.where(marked, said, label)), head, fresh) - before
    return made


def run_seed(seed: int) -> dict[str, Any]:
    """Every figure is the mean over data sets."""
    cost = {
        str(extra): {
            str(k): [statistics.fmean(bought(seed, d, rate, extra, k) for d in range(DATA_SETS)) for rate in RATES]
            for k in REPEATS
        }
        for extra in EXTRAS
    }
    errors = {}
    for name, (wrong, doubt) in LABELS.items():
        runs = [cured(seed, data, wrong, doubt) for data in range(DATA_SETS)]
        found = {key: statistics.fmean(run[key] for run in runs) for key in runs[0]}
        errors[name] = {key: value if np.isfinite(value) else None for key, value in found.items()}
    return {"seed": seed, "cost": cost, "errors": errors}


def lead_of_one(rows: Sequence[Mapping[str, Any]], extra: int, rate: float) -> list[float]:
    """Accuracy of one label a pair over that of five, a number a seed."""
    place = RATES.index(rate)
    costs = [row["cost"][str(extra)] for row in rows]
    return [cost[str(REPEATS[0])][place] - cost[str(REPEATS[-1])][place] for cost in costs]


def verdict(per_seed: Sequence[Mapping[str, Any]], minutes: float) -> dict[str, Any]:
    """The claim's object; `median` is what correcting flagged labels gains."""
    values = {
        f"one label over five, pairs cost {e}, {r:.0%} wrong": lead_of_one(per_seed, e, r)
        for e in EXTRAS
        for r in (ASKED, 0.0)
    }
    for name in LABELS:
        values |= {f"{cure}, {name}": [row["errors"][name][cure] for row in per_seed] for cure in CURES}
    medians = {key: statistics.median(found) for key, found in values.items()}
    intervals = {key: list(cluster_bootstrap([[value] for value in found])) for key, found in values.items()}

    def figure(name: str, key: str) -> float:
        return statistics.median(row["errors"][name][key] for row in per_seed)

    free, dear = (f"one label over five, pairs cost {extra}, {ASKED:.0%} wrong" for extra in EXTRAS)
    right = (f"one label over five, pairs cost {extra}, {0.0:.0%} wrong" for extra in EXTRAS)
    parts = {
        "free pairs: one label each": intervals[free][0] > 0,
        "dear pairs: five labels each": intervals[dear][1] < 0,
        "right labels need no repeats": all(intervals[key][1] > 0 for key in right),
        "flags are mostly right": figure("flipped", "precision") >= PRECISION and figure("flipped", "recall") >= RECALL,
        "dropping helps": intervals["drop, flipped"][0] > 0,
        "correcting helps": intervals["correct, flipped"][0] > intervals["correct at random, flipped"][1],
        "dropping at random does not": intervals["drop at random, flipped"][0] <= 0,
        "right labels are left alone": figure("right", "flagged") <= FEW and abs(medians["drop, right"]) <= NOTHING,
    }
    return {
        "id": "data_quality",
        "claim": CLAIM,
        "source": SOURCE,
        "threshold": f"at {ASKED:.0%} wrong labels paired intervals on either side of 0 by cost; precision >= "
        f"{PRECISION} and recall >= {RECALL}; intervals of dropping above 0, of correcting above that of as many at "
        f"random; without errors at most {FEW:.0%} flagged and accuracy within {NOTHING}",
        "per_seed": per_seed,
        "median": medians["correct, flipped"],
        "medians": medians,
        "intervals": intervals,
        "detection": {
            name: {key: figure(name, key) for key in ("flagged", *(("precision", "recall") if wrong else ()))}
            for name, (wrong, _) in LABELS.items()
        },
        "parts": parts,
        "holds": all(parts.values()),
        "minutes": minutes,
    }


def draw(answer: Mapping[str, Any]) -> Figure:
    """Accuracy by rate of wrong labels at both costs, mean over seeds; and what cures gain, a dot a seed."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    plots = figure.subplots(1, 3)
    rows = answer["per_seed"]
    for axes, extra in zip(plots, EXTRAS, strict=False):
        for k in REPEATS:
            mean = np.mean([row["cost"][str(extra)][str(k)] for row in rows], axis=0)
            axes.plot(RATES, mean, marker=".", label=f"{BUDGET // (extra + k)} pairs, {k} label{'s' * (k > 1)} each")
        axes.set_title(f"Accuracy where a pair costs {extra} labels more", loc="left", fontsize=10)
        axes.set_xlabel("share of labels that are wrong")
        axes.set_ylim(0.6, 1)
        axes.legend(fontsize=8)
    for place, (name, cure) in enumerate((name, cure) for name in ("flipped", "right") for cure in CURES):
        values = [row["errors"][name][cure] for row in rows]
        color = f"C{CURES.index(cure)}"
        plots[2].plot(place + np.linspace(-0.2, 0.2, len(values)), values, "o", color=color, alpha=0.7)
    plots[2].axhline(0, color="black", linewidth=0.8)
    plots[2].axvline(3.5, color="grey", linestyle=":", linewidth=0.8)
    plots[2].set_xticks(range(8), [cure.replace(" at ", "\nat\n") for _ in range(2) for cure in CURES], fontsize=8)
    plots[2].set_title(f"Accuracy gained, {ASKED:.0%} of labels flipped (left) or none", loc="left", fontsize=10)
    for axes in plots:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(arguments: list[str] | None = None) -> int:
    """0 when the claim holds, 1 otherwise."""
    return claim("data_quality", __doc__, run_seed, verdict, draw, arguments, seeds=10)


if __name__ == "__main__":
    sys.exit(main())
