"""Does gold reward turn over as Gao's law says, and does the law foresee it? T13.py --seeds 5

Answers are points whose gold reward is known; reward models are fitted on few, more and many clean pairs, and on as
many with a quarter of the labels flipped; the policy is the best of n by the reward model (gold_toy.py). Asked: does
the proxy rise to the end while gold turns; does d(alpha - beta d) fit; do more data and less noise raise the peak; and
does the law, fitted on the first half of the run (by d), tell how high gold will get, better than the form of RL does
and than the highest that was seen so far. Controls: gold as its own proxy never turns; and where gold's penalty begins
only beyond what the first half sees, the law can but miss (reported, no part of the claim).
Tuned on seeds from 100 up: with a cost of 1 instead of 1.5 the rows were 6 to 17 % off there (median of two seeds).
Writes T13.json, .svg and .png beside this file; exits 0 only where the claim holds.
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

from prefloop.ops.ensembles import Form, best_of_n, best_of_n_kl, fit_gold_law, r_squared

matplotlib.use("Agg")
CLAIM = "Under best-of-n gold turns over while the proxy rises, as d(alpha - beta d), and half a run foresees the peak."
SOURCE = "Gao et al. 2022 (arXiv 2210.10760)"
ROWS = {"100": (100, 0.0), "200": (200, 0.0), "400": (400, 0.0), "400, flips": (400, 0.25)}  # pairs, share flipped
TURNS = ("100", "200", "400, flips")  # rows whose gold must turn inside the run
FIT, ERROR, FALL = 0.97, 0.1, 0.97
ANSWERS, DATA_SETS = 2**17, 3
NS = sorted({round(2 ** (k / 2)) for k in range(25)})
D = np.sqrt(best_of_n_kl(NS))
HALF = D[-1] / 2 >= D
FORMS: tuple[Form, ...] = ("best_of_n", "rl")


def curves(world: World, pairs: int, flips: float) -> tuple[Array, Array]:
    """(gold, proxy) of the best of each n, mean over data sets; both are 0 on average over all answers."""
    proxies = [world.members(pairs, flips, data, 1)[0] for data in range(DATA_SETS)]
    gold = np.mean([best_of_n(proxy, world.gold, NS) for proxy in proxies], axis=0)
    return gold, np.mean([best_of_n(proxy, proxy, NS) for proxy in proxies], axis=0)


def described(gold: Array, proxy: Array) -> dict[str, Any]:
    """A row's figures: fits on the whole run, and what fits on its first half say of the peak."""
    top = int(gold.argmax())
    fits = {form: r_squared(gold, fit_gold_law(form, D, gold).at(D)) for form in FORMS}
    early = {form: fit_gold_law(form, D[HALF], gold[HALF]) for form in FORMS}
    return {
        "peak": gold[top],
        "peak_d": D[top],
        "end": gold[-1],
        "proxy_rises": bool((np.diff(proxy) > 0).all()),
        "r_squared": fits["best_of_n"],
        "r_squared_rl": fits["rl"],
        "predicted": early["best_of_n"].peak().gold,
        "predicted_d": early["best_of_n"].peak().d,
        "error": abs(early["best_of_n"].peak().gold / gold[top] - 1),
        "error_rl": abs(early["rl"].peak().gold / gold[top] - 1),
        "error_seen": 1 - gold[HALF].max() / gold[top],
        "second_half_rms": float(np.sqrt(np.mean((early["best_of_n"].at(D) - gold)[~HALF] ** 2))),
        "second_half_rms_rl": float(np.sqrt(np.mean((early["rl"].at(D) - gold)[~HALF] ** 2))),
        "gold": gold.tolist(),
        "proxy": proxy.tolist(),
    }


def run_seed(seed: int) -> dict[str, Any]:
    """All rows of one gold reward, and the controls."""
    world = World(seed, ANSWERS, near=3.0, cost=1.5)
    rows = {name: described(*curves(world, *options)) for name, options in ROWS.items()}
    itself = best_of_n(world.gold, world.gold, NS)
    late = described(*curves(World(seed, ANSWERS, near=4.0, cost=0.5), *ROWS["400, flips"]))
    return {
        "seed": seed,
        "rows": rows,
        "control_gold_rises": bool((np.diff(itself) > 0).all()),
        "control_late": {key: late[key] for key in ("peak", "end", "r_squared", "predicted", "error")},
    }


def verdict(per_seed: Sequence[Mapping[str, Any]], minutes: float) -> dict[str, Any]:
    """The claim's object; `median` is that of the predicted peaks' relative errors over seeds and rows that turn."""

    def over(key: str, name: str) -> list[float]:
        return [row["rows"][name][key] for row in per_seed]

    def middle(key: str) -> dict[str, float]:
        return {name: statistics.median(over(key, name)) for name in ROWS}

    peaks, fits = middle("peak"), middle("r_squared")
    errors = {key: statistics.median(e for n in TURNS for e in over(key, n)) for key in ("error", "error_seen")}
    rms = [[e for n in ROWS for e in over(f"second_half_rms{form}", n)] for form in ("", "_rl")]
    parts = {
        "turns": all(e <= FALL * p for n in TURNS for e, p in zip(over("end", n), over("peak", n), strict=True)),
        "proxy rises": all(all(over("proxy_rises", name)) for name in ROWS),
        "fits": min(fits.values()) >= FIT,
        "more data raise the peak": peaks["100"] < peaks["200"] < peaks["400"],
        "less noise raises the peak": peaks["400, flips"] < peaks["400"],
        "foreseen": all(statistics.median(over("error", name)) <= ERROR for name in TURNS),
        "better than the other form": all(ours < theirs for ours, theirs in zip(*rms, strict=True)),
        "better than what was seen": errors["error"] < errors["error_seen"],
        "gold itself never turns": all(row["control_gold_rises"] for row in per_seed),
    }
    return {
        "id": "T13",
        "claim": CLAIM,
        "source": SOURCE,
        "threshold": f"in {', '.join(TURNS)}: end <= {FALL} peak for every seed, median error of the peak that half "
        f"the run predicts <= {ERROR}; in all: median R^2 >= {FIT}, second half closer than the other form each seed",
        "per_seed": per_seed,
        "d": D.tolist(),
        "peaks": peaks,
        "r_squared": fits,
        "error": middle("error"),
        "error_seen": middle("error_seen"),
        "error_control_late": statistics.median(row["control_late"]["error"] for row in per_seed),
        "parts": {name: bool(part) for name, part in parts.items()},
        "median": errors["error"],
        "holds": all(parts.values()),
        "minutes": minutes,
    }


def draw(answer: Mapping[str, Any]) -> Figure:
    """Gold by d, a colour a row, the law of the first half dashed; proxies; predicted against observed peaks."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    seeds = answer["per_seed"]
    for colour, name in enumerate(ROWS):
        gold = np.mean([row["rows"][name]["gold"] for row in seeds], axis=0)
        law = fit_gold_law("best_of_n", D[HALF], gold[HALF])
        left.plot(D, gold, color=f"C{colour}", marker=".", label=f"{name} ({answer['error'][name]:.0%} off)")
        left.plot(D, law.at(D), color=f"C{colour}", linestyle="--", linewidth=1)
        middle.plot(D, np.mean([row["rows"][name]["proxy"] for row in seeds], axis=0), color=f"C{colour}", marker=".")
        for row in seeds:
            right.plot(row["rows"][name]["peak"], row["rows"][name]["predicted"], "o", color=f"C{colour}", alpha=0.7)
    for row in seeds:
        right.plot(row["control_late"]["peak"], row["control_late"]["predicted"], "x", color="black")
    left.axvspan(0, D[HALF][-1], color="grey", alpha=0.1)
    left.set_title("Gold of the best of n; dashed: law of the first half (grey)", loc="left", fontsize=10)
    left.legend(fontsize=7, title="pairs", title_fontsize=7)
    middle.set_title("Proxy of the best of n", loc="left", fontsize=10)
    ends = [0, max(max(p["peak"] for p in row["rows"].values()) for row in seeds) * 1.2]
    right.plot(ends, ends, color="black", linewidth=0.8)
    right.set_title("Gold's peak, predicted by half the run", loc="left", fontsize=10)
    right.set_xlabel("observed (x: penalty begins late)")
    for axes in (left, middle):
        axes.set_xlabel("d = sqrt(KL), KL in nats")
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(arguments: list[str] | None = None) -> int:
    """0 when the claim holds, 1 otherwise."""
    torch.set_num_threads(1)
    return claim("T13", __doc__, run_seed, verdict, draw, arguments, seeds=5)


if __name__ == "__main__":
    sys.exit(main())
