"""Do intervals cover what they promise, are ratings recovered, and are published figures reproduced? T19.py --seeds 5

Simulations whose true figure is known count how often each 95 % interval covers it: Wilson's, the bootstrap over
prompts of a win rate, those over items of agreement figures, and that of Bradley-Terry strengths. The published alphas
and kappas are those of Krippendorff 2011, Fleiss 1971 and Gwet 2014.
Writes T19.json, .svg and .png beside this file; exits 0 only where the claim holds.
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

from prefloop.ops.agreement import (
    cohen_kappa,
    fleiss_kappa,
    gwet_ac1,
    krippendorff_alpha,
    percent_agreement,
    tally,
)
from prefloop.ops.ratings import bradley_terry
from prefloop.ops.statistics import cluster_bootstrap, wilson

matplotlib.use("Agg")
OUT = Path(__file__).parent
CLAIM = "95 % intervals cover the truth, Bradley-Terry recovers ratings, published alphas and kappas are reproduced."
SOURCE = "Field and Welsh 2007; Bradley and Terry 1952; Krippendorff 2011; Fleiss 1971; Gwet 2014"
COVERAGE = (0.93, 0.97)
CORRELATION = 0.95
SIMULATIONS = 2000  # over all seeds
RESAMPLES = 500
UNITS, RATERS, ACCURACY = 200, 4, 0.8
ITEMS, COMPARED = 10, 800
Array = NDArray[Any]

KRIPPENDORFF = ["123321412___", "1233224125_3", "_3332342251_", "12332441251_"]  # a rater a row
FLEISS = [
    [0, 0, 0, 0, 14],
    [0, 2, 6, 4, 2],
    [0, 0, 3, 5, 6],
    [0, 3, 9, 2, 0],
    [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0],
    [3, 2, 6, 3, 0],
    [2, 5, 3, 2, 2],
    [6, 5, 2, 1, 0],
    [0, 2, 2, 3, 7],
]
ABSTRACTORS = [[13, 0, 0], [0, 20, 7], [0, 4, 56]]


def interval_covers(rng: np.random.Generator) -> dict[str, float]:
    """Of one simulation each: whether the interval holds the true figure; of strengths, for what share of the items."""
    chance = rng.uniform(0.05, 0.95)
    low, high = wilson(rng.binomial(80, chance), 80)
    covers = {"wilson": float(low <= chance <= high)}
    wins = rng.random((120, 2)) < rng.beta(3, 2, size=120)[:, None]  # the two samples of a prompt are alike
    low, high = cluster_bootstrap(list(wins), resamples=RESAMPLES, seed=int(rng.integers(2**32)))
    covers["win rate"] = float(low <= 3 / 5 <= high)
    covers |= agreement_covers(rng)
    strength = rng.normal(size=ITEMS)
    strength -= strength.mean()
    one = rng.integers(ITEMS, size=COMPARED)
    other = (one + rng.integers(1, ITEMS, size=COMPARED)) % ITEMS
    won = rng.random(COMPARED) < expit(strength[one] - strength[other])
    found = bradley_terry(one, other, won, cluster=np.arange(COMPARED))
    covers["strength"] = float(np.mean(np.abs(found.strength - strength) < 1.96 * found.error))
    return covers | {"correlation": float(np.corrcoef(found.strength, strength)[0, 1])}


def agreement_covers(rng: np.random.Generator) -> dict[str, float]:
    """Raters who say which of two values is true, each right four times in five, with missing labels."""
    truth = rng.random(UNITS) < 0.7
    said = np.where(rng.random((RATERS, UNITS)) < ACCURACY, truth, ~truth)
    there = rng.random((RATERS, UNITS)) < 0.7
    unit = np.broadcast_to(np.arange(UNITS), said.shape)[there]
    table, options = tally(unit, said[there]), {"resamples": RESAMPLES, "seed": int(rng.integers(2**32))}
    found = {
        "percent": percent_agreement(table, **options),
        "alpha": krippendorff_alpha(table, **options),
        "fleiss": fleiss_kappa(table, **options),
        "gwet": gwet_ac1(table, **options),
        "cohen": cohen_kappa(said[0], said[1], **options),
    }
    equal, first = ACCURACY**2 + (1 - ACCURACY) ** 2, 0.7 * ACCURACY + 0.3 * (1 - ACCURACY)
    chance = dict.fromkeys(found, first**2 + (1 - first) ** 2) | {"percent": 0.0, "gwet": 2 * first * (1 - first)}
    expected = {name: (equal - by_chance) / (1 - by_chance) for name, by_chance in chance.items()}
    return {name: float(figure.low <= expected[name] <= figure.high) for name, figure in found.items()}


def published() -> dict[str, tuple[float, float]]:
    """What we find, and what was published, to as many digits."""
    labels = [(u, int(v)) for row in KRIPPENDORFF for u, v in enumerate(row) if v != "_"]
    example = tally(*zip(*labels, strict=True))
    levels = {"nominal": 0.743, "ordinal": 0.815, "interval": 0.849, "ratio": 0.797}
    found = {f"alpha, {level}": (krippendorff_alpha(example, level).value, value) for level, value in levels.items()}
    unit, value = np.nonzero(np.array(FLEISS))
    times = np.array(FLEISS)[unit, value]
    found["kappa, Fleiss"] = fleiss_kappa(tally(np.repeat(unit, times), np.repeat(value, times))).value, 0.210
    a, b = (np.repeat(side, np.ravel(ABSTRACTORS)) for side in (np.repeat([0, 1, 2], 3), np.tile([0, 1, 2], 3)))
    found["kappa, Cohen"] = cohen_kappa(a, b).value, 0.796
    found["AC1, Gwet"] = gwet_ac1(tally(np.tile(np.arange(a.size), 2), np.concatenate([a, b]))).value, 0.849
    return found


def run_seed(seed: int, simulations: int) -> dict[str, Any]:
    """Coverage by figure, and the median correlation of recovered ratings, over simulations of one seed."""
    rng = np.random.default_rng(seed)
    rows = [interval_covers(rng) for _ in range(simulations)]
    correlation = statistics.median(row.pop("correlation") for row in rows)
    coverage = {name: statistics.mean(row[name] for row in rows) for name in rows[0]}
    return {"seed": seed, "simulations": simulations, "coverage": coverage, "correlation": correlation}


def verdict(
    per_seed: Sequence[Mapping[str, Any]], found: Mapping[str, tuple[float, float]], minutes: float
) -> dict[str, Any]:
    """The claim's object; `median` is that of the figures' coverage over all simulations."""
    names = per_seed[0]["coverage"]
    coverage = {name: statistics.mean(row["coverage"][name] for row in per_seed) for name in names}
    correlation = statistics.median(row["correlation"] for row in per_seed)
    reproduced = all(abs(ours - theirs) <= 5e-4 for ours, theirs in found.values())
    covered = all(COVERAGE[0] <= share <= COVERAGE[1] for share in coverage.values())
    return {
        "id": "T19",
        "claim": CLAIM,
        "source": SOURCE,
        "threshold": f"each coverage within {COVERAGE}, correlation of ratings >= {CORRELATION}, published to 5e-4",
        "per_seed": per_seed,
        "coverage": coverage,
        "correlation": correlation,
        "published": {name: {"ours": ours, "published": theirs} for name, (ours, theirs) in found.items()},
        "median": statistics.median(coverage.values()),
        "holds": covered and correlation >= CORRELATION and reproduced,
        "minutes": minutes,
    }


def draw(answer: Mapping[str, Any]) -> Figure:
    """Coverage by figure, over all simulations and by seed; and published figures against ours."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = list(answer["coverage"])
    left.axvspan(*COVERAGE, alpha=0.12, color="tab:green")
    for row in answer["per_seed"]:
        left.plot([row["coverage"][name] for name in names], names, ".", color="tab:blue", alpha=0.4)
    left.plot([answer["coverage"][name] for name in names], names, "o", color="black")
    left.set_title("Coverage of 95 % intervals (dots: by seed)", loc="left", fontsize=10)
    shown = answer["published"]
    right.plot([0, 1], [0, 1], color="black", linewidth=0.8)
    for name, pair in shown.items():
        right.plot(pair["published"], pair["ours"], "o", label=name)
    right.set_title("Alphas and kappas: published, and ours", loc="left", fontsize=10)
    right.set_xlabel("published")
    right.legend(fontsize=7)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(arguments: list[str] | None = None) -> int:
    """0 when the claim holds, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="the simulations are spread over them")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the results")
    parser.add_argument("--json", action="store_true", help="print on one line")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    per_seed = [run_seed(seed, SIMULATIONS // options.seeds) for seed in range(options.seeds)]
    answer = verdict(per_seed, published(), (time.monotonic() - start) / 60)
    return finish("T19", answer, draw(answer), options.out, one_line=options.json)


if __name__ == "__main__":
    sys.exit(main())
