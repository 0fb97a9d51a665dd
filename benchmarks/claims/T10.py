"""Does KTO bear the loss of nine tenths of the good answers? T10.py --seeds 5

Sampled reviews are good or bad by their true sentiment (tiny_lm.py), without any pairs. KTO learns from all of them;
with 90 % of the good ones dropped and the bad ones' weight lowered so that both kinds weigh the same (Ethayarajh et al.
2024, section 4.2); and, as the control, dropped with the weight left at 1. Another control learns from all with the
labels dealt out by chance. Measured on prompts of their own: how often an answer of the policy has a better sentiment
than one of the start, ties half. That rebalancing must gain with an interval above 0 was added after seeds 0 to 4 at 2
passes, whose medians alone would have passed by 0.001 where two of five controls did best of all. At 5 passes, tuned on
seeds 100 and 101, the committed seeds are 5 to 9 (--first 5). Writes T10.json, .svg and .png beside this file; exits 0
only where the claim holds.
"""

import logging
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import tiny_lm
import torch
from matplotlib.figure import Figure
from result import claim

from prefloop.configs.direct import DirectConfig
from prefloop.configs.shared import OptimConfig
from prefloop.data.jsonl import write_jsonl
from prefloop.ops.statistics import cluster_bootstrap
from prefloop.stages import direct
from prefloop.types import Completion, Prompt, Verdict

matplotlib.use("Agg")
CLAIM = "KTO without 90 % of the good answers is within 2 points of all of them, where its weights are rebalanced."
SOURCE = "Ethayarajh et al. 2024 (arXiv 2402.01306)"
POINTS = 0.02
PROMPTS, ANSWERS, DROPPED = 1000, 4, 0.9
EPOCHS, BATCH, RATE = 5, 16, 1e-3
TEST_PROMPTS, TEST_ANSWERS = 64, 16
WAYS = ("all", "rebalanced", "left at 1", "shuffled")


def judged(prompts: Sequence[Prompt], groups: Sequence[Sequence[Completion]]) -> list[Verdict]:
    """Answers with a sentiment above 0 are good, those below bad; the others are left out."""
    found = []
    for prompt, group in zip(prompts, groups, strict=True):
        for completion, score in zip(group, tiny_lm.sentiment([prompt] * len(group), group), strict=True):
            if score.value:
                found.append(Verdict(prompt=prompt, completion=completion, good=score.value > 0, by="simulated"))
    return found


def dropped(verdicts: Sequence[Verdict], share: float, seed: int) -> list[Verdict]:
    """The verdicts without a share of the good ones."""
    good = [verdict for verdict in verdicts if verdict.good]
    gone = {id(verdict) for verdict in random.Random(seed).sample(good, round(share * len(good)))}
    return [verdict for verdict in verdicts if id(verdict) not in gone]


def wins(checkpoint: str, prompts: Sequence[Prompt], start: Sequence[np.ndarray], seed: int) -> float:
    """Share of (answer of the policy, answer of the start to the same prompt) whose first has the better sentiment."""
    ours = scores(checkpoint, prompts, seed)
    leads = [mine[:, None] - theirs for mine, theirs in zip(ours, start, strict=True)]
    return float(np.mean([np.mean(np.where(lead == 0, 0.5, lead > 0)) for lead in leads]))


def scores(checkpoint: str, prompts: Sequence[Prompt], seed: int) -> list[np.ndarray]:
    """True rewards of answers to each prompt."""
    groups = tiny_lm.sampled(checkpoint, prompts, TEST_ANSWERS, seed)
    return [
        np.array([score.value for score in tiny_lm.sentiment([prompt] * len(group), group)])
        for prompt, group in zip(prompts, groups, strict=True)
    ]


def run_seed(seed: int) -> dict[str, Any]:
    """One start, one set of verdicts, four policies."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        os.environ["PREFLOOP_HOME"] = name
        start = tiny_lm.fine_tuned(root, tiny_lm.review_demonstrations(2000, seed), seed, epochs=3)
        prompts = tiny_lm.review_prompts(PROMPTS, seed=seed)
        known = judged(prompts, tiny_lm.sampled(start, prompts, ANSWERS, seed))
        fewer = dropped(known, DROPPED, seed)
        good, bad = (sum(v.good == label for v in fewer) for label in (True, False))
        write_jsonl(root / "all.jsonl", known)
        write_jsonl(root / "fewer.jsonl", fewer)
        test = tiny_lm.review_prompts(TEST_PROMPTS, seed=seed, split="test")
        before = scores(start, test, seed + 1)
        balance = sum(v.good for v in known) / bad
        answer: dict[str, Any] = {"seed": seed, "good": sum(v.good for v in known), "bad": bad, "good_left": good}
        answer["wins"] = {}
        for way, data, weight in (
            ("all", "all", balance),
            ("rebalanced", "fewer", good / bad),
            ("left at 1", "fewer", 1.0),
            ("shuffled", "all", balance),
        ):
            config = DirectConfig(
                out=str(root / way),
                policy=start,
                preferences=str(root / f"{data}.jsonl"),
                loss="kto",
                beta=0.1,
                undesirable=weight,
                shuffle_labels=way == "shuffled",
                epochs=EPOCHS,
                batch=BATCH,
                heldout=0.05,
                optim=OptimConfig(lr=RATE),
                engine=tiny_lm.ENGINE,
                save_every=10_000,
                seed=seed,
            )
            answer["wins"][way] = wins(direct.run(config)["checkpoint"], test, before, seed + 2)
        return answer


def verdict(per_seed: Sequence[Mapping[str, Any]], minutes: float) -> dict[str, Any]:
    """The claim's object; `median` is that of what is lost with the weights rebalanced."""

    def lost(way: str) -> float:
        return statistics.median(row["wins"]["all"] - row["wins"][way] for row in per_seed)

    def interval(way: str, other: str) -> list[float]:
        return list(cluster_bootstrap([[row["wins"][way] - row["wins"][other]] for row in per_seed]))

    gained = interval("rebalanced", "left at 1")
    parts = {
        "rebalanced is near": lost("rebalanced") <= POINTS,
        "left at 1 is not": lost("left at 1") > POINTS,
        "rebalancing gains": gained[0] > 0,
        "all learn": statistics.median(row["wins"]["all"] for row in per_seed) > 0.6,
        "shuffled learns nothing": abs(statistics.median(row["wins"]["shuffled"] for row in per_seed) - 0.5) < 0.05,
    }
    return {
        "id": "T10",
        "claim": CLAIM,
        "source": SOURCE,
        "threshold": f"median of what is lost of the win rate over the start, all answers less the tenth, <= {POINTS} "
        f"rebalanced and > {POINTS} with the weights at 1; interval over seeds of what rebalancing gains over that "
        "above 0; shuffled labels within 0.05 of 0.5",
        "per_seed": per_seed,
        "lost": {way: lost(way) for way in WAYS[1:]},
        "interval_lost_rebalanced": interval("all", "rebalanced"),
        "interval_gained_by_rebalancing": gained,
        "parts": parts,
        "median": lost("rebalanced"),
        "holds": all(parts.values()),
        "minutes": minutes,
    }


def draw(answer: Mapping[str, Any]) -> Figure:
    """Win rates of each way, a dot a seed, lines between runs of one seed."""
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for row in answer["per_seed"]:
        axes.plot(range(len(WAYS)), [row["wins"][way] for way in WAYS], "o-", color="C0", alpha=0.5)
    axes.plot(
        range(len(WAYS)),
        [statistics.median(row["wins"][way] for row in answer["per_seed"]) for way in WAYS],
        "_",
        color="black",
        markersize=28,
    )
    axes.axhline(0.5, color="grey", linewidth=0.8, linestyle="--")
    labels = ("all", "10 % of good,\nrebalanced", "10 % of good,\nweight 1", "all,\nlabels shuffled")
    axes.set_xticks(range(len(WAYS)), labels)
    axes.set_title("KTO: share of answers better than the start's", loc="left", fontsize=10)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(arguments: list[str] | None = None) -> int:
    """0 when the claim holds, 1 otherwise."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    return claim("T10", __doc__, run_seed, verdict, draw, arguments, seeds=5)


if __name__ == "__main__":
    sys.exit(main())
