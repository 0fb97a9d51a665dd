"""Does rejection sampling beat fine-tuning on answers chosen at random? T17.py --seeds 5

A tiny language model (tiny_lm.py) answers each prompt 16 times; the best by the true sentiment is kept, or any one, and
the policy is fine-tuned on what was kept, equally much. Asked: the true reward on fresh prompts, the best over the
random control, and whether 16 answers give more than 4. Second control: the best by dice, which must do what random
ones do. Also reported: what selection can gain, max less median, by the number of answers.
Tuned on seeds from 100 up. Writes T17.json, .svg and .png beside this file; exits 0 only where the claim holds.
"""

import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from result import claim
from tiny_lm import ENGINE, MAX_TOKENS, fine_tuned, measured, review_demonstrations, review_prompts, sentiment

from prefloop.configs.rejection import RejectionConfig
from prefloop.configs.shared import OptimConfig
from prefloop.data.jsonl import write_jsonl
from prefloop.stages import rejection

matplotlib.use("Agg")
CLAIM = "Fine-tuning on the best of n answers beats as much of it on random ones, and more so for a larger n."
SOURCE = "Touvron et al. 2023 (Llama 2, arXiv 2307.09288), section 3.2.3 and figure 7"
GAIN = 0.4  # stds of the start's answers
DICE = 0.25  # of that gain, at most
ARMS: Mapping[str, Mapping[str, Any]] = {
    "best of 16": {"n": 16, "reward": "tiny_lm:sentiment"},
    "best of 4": {"n": 4, "reward": "tiny_lm:sentiment"},
    "random": {"n": 16, "reward": "tiny_lm:sentiment", "select": "random"},
    "best by dice": {"n": 16, "reward": "tiny_lm:dice"},
}
NS = (1, 2, 4, 8, 16)


def run_seed(seed: int) -> dict[str, Any]:
    """One model, one set of prompts; true reward of fresh answers by arm."""
    rewards = {"reward": sentiment}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        start = fine_tuned(folder / "start", review_demonstrations(512, seed), seed)
        write_jsonl(folder / "prompts.jsonl", review_prompts(128, seed=seed))
        fresh = review_prompts(96, seed=seed, split="test")
        found: dict[str, Any] = {"start": measured(start, start, fresh, 4, seed, rewards)}
        for name, options in ARMS.items():
            out = str(folder / name)
            settings = RejectionConfig(
                out=out,
                policy=start,
                prompts=str(folder / "prompts.jsonl"),
                max_tokens=MAX_TOKENS,
                epochs=3,
                batch=32,
                optim=OptimConfig(lr=3e-3),
                engine=ENGINE,
                seed=seed,
                **options,
            )
            result = rejection.run(settings)
            found[name] = measured(out, start, fresh, 4, seed, rewards) | {
                key: result[key] for key in ("best_of", "median", "score_kept", "kept")
            }
    best = found["best of 16"]
    spread = [best["best_of"][str(n)] - best["median"] for n in NS]
    gains = {name: found["best of 16"]["reward"] - found[name]["reward"] for name in ("best of 4", "random", "start")}
    dice = found["best by dice"]["reward"] - found["random"]["reward"]
    return {"seed": seed, **found, "max_minus_median": spread, "gain_over": gains, "dice_over_random": dice}


def verdict(per_seed: Sequence[Mapping[str, Any]], minutes: float) -> dict[str, Any]:
    """The claim's object; `median` is the gain of the best of 16 over random ones."""
    median = statistics.median(row["gain_over"]["random"] for row in per_seed)
    dice = statistics.median(row["dice_over_random"] for row in per_seed)
    parts = {
        "gain over random": median >= GAIN,
        "in every seed": all(row["gain_over"]["random"] > 0 for row in per_seed),
        "16 over 4": statistics.median(row["gain_over"]["best of 4"] for row in per_seed) > 0,
        "max less median grows": all(np.all(np.diff(row["max_minus_median"]) > 0) for row in per_seed),
        "as many answers": all(len({row[name]["kept"] for name in ARMS}) == 1 for row in per_seed),
        "dice gain nothing": abs(dice) <= DICE * median,
    }
    return {
        "id": "T17",
        "claim": CLAIM,
        "source": SOURCE,
        "threshold": f"median gain over the random control of equal size >= {GAIN} stds and above 0 in every seed; 16 "
        f"answers over 4; max less median grows with n in every seed; the best by dice within {DICE} of the gain",
        "per_seed": per_seed,
        "median_dice_over_random": dice,
        "parts": parts,
        "median": median,
        "holds": all(parts.values()),
        "minutes": minutes,
    }


def draw(answer: Mapping[str, Any]) -> Figure:
    """True reward by arm, a line a seed; what selection can gain by the number of answers."""
    rows = answer["per_seed"]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = ["start", "best by dice", "random", "best of 4", "best of 16"]
    for row in rows:
        left.plot(names, [row[name]["reward"] for name in names], color="tab:blue", alpha=0.35, marker=".")
        right.plot(NS, row["max_minus_median"], color="tab:orange", alpha=0.5, marker=".")
    left.plot(names, [statistics.median(row[name]["reward"] for row in rows) for name in names], "o", color="black")
    left.set_title("True reward of the fine-tuned policy, stds of the start", loc="left", fontsize=10)
    right.set_title("What selection can gain: max less median, stds", loc="left", fontsize=10)
    right.set_xscale("log", base=2)
    right.set_xticks(NS, [str(n) for n in NS])
    right.set_xlabel("answers per prompt")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(arguments: list[str] | None = None) -> int:
    """0 when the claim holds, 1 otherwise."""
    torch.set_num_threads(1)
    return claim("T17", __doc__, run_seed, verdict, draw, arguments, seeds=5)


if __name__ == "__main__":
    sys.exit(main())
