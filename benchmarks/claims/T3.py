"""Does PPO with the adaptive controller hold its KL and gain reward, as Ziegler et al. saw? T3.py --seeds 5

Mock sentiment: the reward is the known one of tiny_lm.py, whose std is 1 among the start's answers, so that nothing but
the policy is learned. PPO as in 2019: TensorFlow's epsilon, linear decay, whitened advantages, a value head, the price
of KL in the reward, the code's controller with its clip of 0.2 and a horizon of a few batches. Asked of the last
third of steps, as medians over seeds: KL near the target of 6 nats a response, score at least 1.5 above the start's;
and of every step of every seed, that the coefficient is the formula's, worked out anew from the logged KL. Controls:
the first coefficient, kept, must miss the target; random rewards must gain no score.
Tuned on seeds from 100 up. Writes T3.json, .svg and .png beside this file; exits 0 only where the claim holds.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure
from result import claim
from tiny_lm import ENGINE, MAX_TOKENS, fine_tuned, measured, review_demonstrations, review_prompts, sentiment

from prefloop.configs.ppo import PPOConfig
from prefloop.configs.rollout import KLConfig
from prefloop.configs.shared import OptimConfig
from prefloop.data.jsonl import write_jsonl
from prefloop.data.rows import read_jsonl
from prefloop.stages import ppo

matplotlib.use("Agg")
CLAIM = "Adaptive KL holds KL within 20 % of 6 nats a response over the last third, at a score 1.5 stds up or more."
SOURCE = "Ziegler et al. 2019 (arXiv 1909.08593)"
TARGET, TOLERANCE, GAIN = 6.0, 0.2, 1.5
STEPS, PROMPTS, GROUP = 45, 8, 4
EPISODES = PROMPTS * GROUP
LEASH = KLConfig(coef=0.6, target=TARGET, horizon=2.0, clip=0.2)
ARMS = {
    "adaptive": ("sentiment", LEASH),
    "fixed": ("sentiment", KLConfig(controller="fixed", coef=LEASH.coef)),
    "dice": ("dice", LEASH),
}


def trained(folder: Path, start: str, seed: int, reward: str, kl: KLConfig) -> list[dict[str, Any]]:
    """PPO's metrics, a row a step."""
    ppo.run(
        PPOConfig(
            out=str(folder),
            policy=start,
            reward=f"tiny_lm:{reward}",
            watch="tiny_lm:sentiment",
            prompts=str(folder.parent / "prompts.jsonl"),
            steps=STEPS,
            prompts_per_step=PROMPTS,
            group=GROUP,
            max_tokens=MAX_TOKENS,
            epochs=4,
            minibatches=1,
            kl=kl,
            optim=OptimConfig(lr=2e-3, warmup=0.0, eps=1e-5, eps_hat=True, head_lr=1e-2),
            engine=ENGINE,
            save_every=10_000,
            seed=seed,
        )
    )
    return [row for _, row in read_jsonl(folder / "metrics.jsonl")]


def formula(rows: Sequence[Mapping[str, float]]) -> float:
    """The largest relative difference between the logged coefficients and beta (1 + clip(KL/target - 1) n/horizon),
    worked out from the first coefficient and the logged KL."""
    beta, worst = LEASH.coef, 0.0
    for row in rows:
        worst = max(worst, abs(row["kl/coef"] / beta - 1))
        beta *= 1 + min(max(row["kl/exact"] / TARGET - 1, -0.2), 0.2) / LEASH.horizon
    return worst


def run_seed(seed: int) -> dict[str, Any]:
    """One start, and PPO from it in each arm; figures of the last third of the steps."""
    answer: dict[str, Any] = {"seed": seed}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        start = fine_tuned(root / "start", review_demonstrations(1000, seed), seed, epochs=3)
        write_jsonl(root / "prompts.jsonl", review_prompts(seed=seed))
        fresh = review_prompts(24, seed=seed, split="test")
        base = measured(start, start, fresh, 8, seed, {"sentiment": sentiment})["sentiment"]
        for arm, (reward, kl) in ARMS.items():
            rows = trained(root / arm, start, seed, reward, kl)
            last = rows[-(STEPS // 3) :]
            after = measured(str(root / arm), start, fresh, 8, seed, {"sentiment": sentiment})
            answer[arm] = {
                "kl_last_third": statistics.fmean(row["kl/response"] for row in last),
                "gain": statistics.fmean(row["gold/score"] for row in last) - base,
                "gain_heldout": after["sentiment"] - base,
                "stopped": after["stopped"],
                "kl": [row["kl/response"] for row in rows],
                "score": [row["gold/score"] for row in rows],
                "coef": [row["kl/coef"] for row in rows],
                "formula": formula(rows) if kl == LEASH else None,
            }
    return answer | {"base": base}


def verdict(per_seed: Sequence[Mapping[str, Any]], minutes: float) -> dict[str, Any]:
    """The claim's object; `median` is that of the KL over the last third."""

    def of(arm: str, key: str) -> list[float]:
        return [row[arm][key] for row in per_seed]

    parts = {
        "kl": abs(statistics.median(of("adaptive", "kl_last_third")) / TARGET - 1) <= TOLERANCE,
        "score": statistics.median(of("adaptive", "gain")) >= GAIN,
        "formula": all(worst < 1e-9 for arm in ("adaptive", "dice") for worst in of(arm, "formula")),
        "a fixed coefficient misses": abs(statistics.median(of("fixed", "kl_last_third")) / TARGET - 1) > TOLERANCE,
        "dice gain nothing": abs(statistics.median(of("dice", "gain_heldout"))) < 0.3,
    }
    return {
        "id": "T3",
        "claim": CLAIM,
        "source": SOURCE,
        "threshold": f"medians: KL of the last third within {TOLERANCE:.0%} of {TARGET:g}, score >= {GAIN} above "
        "the start's; coefficients equal to the formula; a fixed one misses; random rewards gain < 0.3",
        "per_seed": per_seed,
        "seeds_within": sum(abs(kl / TARGET - 1) <= TOLERANCE for kl in of("adaptive", "kl_last_third")),
        "seeds_gained": sum(gain >= GAIN for gain in of("adaptive", "gain")),
        "gain": statistics.median(of("adaptive", "gain")),
        "parts": parts,
        "median": statistics.median(of("adaptive", "kl_last_third")),
        "holds": all(parts.values()),
        "minutes": minutes,
    }


def draw(answer: Mapping[str, Any]) -> Figure:
    """KL, score and coefficient by step, a line a seed."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    plots = figure.subplots(1, 3)
    titles = {"kl": "KL to the start, nats a response", "score": "True sentiment, stds", "coef": "KL coefficient"}
    for axes, (key, title) in zip(plots, titles.items(), strict=True):
        for place, arm in enumerate(ARMS):
            for number, row in enumerate(answer["per_seed"]):
                axes.plot(row[arm][key], color=f"C{place}", alpha=0.6, linewidth=1, label=None if number else arm)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    plots[0].axhspan(TARGET * (1 - TOLERANCE), TARGET * (1 + TOLERANCE), color="grey", alpha=0.15)
    plots[0].legend(fontsize=8)
    return figure


def main(arguments: list[str] | None = None) -> int:
    """0 when the claim holds, 1 otherwise."""
    torch.set_num_threads(1)
    return claim("T3", __doc__, run_seed, verdict, draw, arguments, seeds=5, clock=time.process_time)


if __name__ == "__main__":
    sys.exit(main())
