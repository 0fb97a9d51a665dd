"""Who is nearer to the frontier of reward against KL: DPO, or PPO with the true reward? T8.py --seeds 5

Controlled sentiment on a tiny language (tiny_lm.py): pairs of a fine-tuned model's answers, labeled by their true
sentiment. DPO for a sweep of beta; PPO for a sweep of the price of KL, once with a reward model of the same pairs and
once with the true reward itself. Every policy is a point: mean true reward, and exact KL to the start. A PPO point is
dominated where a DPO point has no less reward at no more KL (as Rafailov et al. 2023 read their figure 2); points that
have hardly left the start are not counted. Beside them stands what is best of all: the start's own answers, reweighted
by exp(reward / price). Control: DPO on shuffled labels, which must gain next to nothing. Tuned on seed 100.
Writes T8.json, .svg and .png beside this file; exits 0 only where the claim holds.
"""

import logging
import os
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
from prefloop.configs.ppo import PPOConfig
from prefloop.configs.reward import RewardConfig
from prefloop.configs.rollout import KLConfig
from prefloop.configs.shared import OptimConfig
from prefloop.data.jsonl import write_jsonl
from prefloop.stages import direct, ppo, reward

matplotlib.use("Agg")
CLAIM = "On the frontier of true reward against KL most PPO points, with the true reward too, lie below a DPO point."
SOURCE = "Rafailov et al. 2023 (arXiv 2305.18290), section 6.1, figure 2"
PROMPTS, ANSWERS, EPOCHS = 600, 4, 3
BETAS = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
PRICES = (0.15, 0.5)
STEPS = 25
UNTRAINED = 0.1  # nats: who is nearer to the start than this is not counted
TEST_PROMPTS, TEST_ANSWERS = 48, 12
KINDS = ("DPO", "PPO, reward model", "PPO, true reward")
Point = Mapping[str, float]


def run_seed(seed: int) -> dict[str, Any]:
    """One start, one set of pairs, all policies of it."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        os.environ["PREFLOOP_HOME"] = name
        start = tiny_lm.fine_tuned(root, tiny_lm.review_demonstrations(2000, seed), seed, epochs=3)
        prompts = tiny_lm.review_prompts(PROMPTS, seed=seed)
        groups = tiny_lm.sampled(start, prompts, ANSWERS, seed)
        pairs = tiny_lm.compared(groups, prompts, tiny_lm.sentiment, seed)
        write_jsonl(root / "pairs.jsonl", pairs)
        write_jsonl(root / "prompts.jsonl", prompts)
        test = tiny_lm.review_prompts(TEST_PROMPTS, seed=seed, split="test")
        common: dict[str, Any] = {"engine": tiny_lm.ENGINE, "save_every": 10_000, "seed": seed}

        def point(knob: float, result: Mapping[str, Any]) -> dict[str, float]:
            rewards = {"reward": tiny_lm.sentiment}
            return {"knob": knob} | tiny_lm.measured(result["checkpoint"], start, test, TEST_ANSWERS, seed, rewards)

        def dpo(beta: float, shuffle: bool = False) -> dict[str, float]:
            config = DirectConfig(
                out=str(root / f"dpo-{beta}-{shuffle}"),
                policy=start,
                preferences=str(root / "pairs.jsonl"),
                beta=beta,
                epochs=EPOCHS,
                batch=32,
                heldout=0.05,
                shuffle_labels=shuffle,
                optim=OptimConfig(lr=1e-3),
                **common,
            )
            return point(beta, direct.run(config))

        def online(price: float, judge: str) -> dict[str, float]:
            config = PPOConfig(
                out=str(root / f"ppo-{price}-{Path(judge).name}"),
                policy=start,
                reward=judge,
                prompts=str(root / "prompts.jsonl"),
                steps=STEPS,
                prompts_per_step=16,
                group=4,
                max_tokens=tiny_lm.MAX_TOKENS,
                leave_one_out=True,
                missing_stop_score=None,
                kl=KLConfig(controller="fixed", coef=price),
                optim=OptimConfig(lr=1e-3, warmup=0.0, decay=True, eps=1e-5),
                **common,
            )
            return point(price, ppo.run(config))

        fitted = RewardConfig(
            out=str(root / "reward"),
            model=start,
            preferences=str(root / "pairs.jsonl"),
            epochs=EPOCHS,
            batch=32,
            optim=OptimConfig(lr=3e-3, head_lr=1e-2),
            **common,
        )
        accuracy = reward.run(fitted)["accuracy"]
        answers = tiny_lm.sampled(start, test, 4 * TEST_ANSWERS, seed + 1)
        points = {
            KINDS[0]: [dpo(beta) for beta in BETAS],
            KINDS[1]: [online(price, str(root / "reward")) for price in PRICES],
            KINDS[2]: [online(price, "tiny_lm:sentiment") for price in PRICES],
        }
        own = np.array(
            [[s.value for s in tiny_lm.sentiment([p] * len(a), a)] for p, a in zip(test, answers, strict=True)]
        )
        return {
            "seed": seed,
            "pairs": len(pairs),
            "reward_accuracy": accuracy,
            "points": points,
            "best": [reweighted(own, price) for price in (10, 3, 2, 1, 0.7, 0.5, 0.4)],
            "control": dpo(BETAS[1], shuffle=True),
            "dominated": {kind: dominated(points[kind], points[KINDS[0]]) for kind in KINDS[1:]},
            "share_of_best": {kind: [share_of_best(p, own) for p in points[kind]] for kind in KINDS},
        }


def reweighted(rewards: np.ndarray, price: float) -> dict[str, float]:
    """Reward and KL of the start's answers [P, n] to each prompt weighted by exp(reward / price), the optimum at that
    price of KL: no policy has more reward at that KL."""
    weight = np.exp(rewards / price)
    share = weight / weight.mean(axis=1, keepdims=True)
    return {"reward": float(np.mean(share * rewards)), "kl": float(np.mean(share * np.log(share)))}


def share_of_best(point: Point, rewards: np.ndarray) -> float | None:
    """A point's reward over the most that its KL allows; None where the start's answers do not reach so far."""
    line = [reweighted(rewards, price) for price in np.geomspace(20, 0.3, 60)]
    kl, best = [p["kl"] for p in line], [p["reward"] for p in line]
    return float(point["reward"] / np.interp(point["kl"], kl, best)) if point["kl"] <= kl[-1] else None


def dominated(points: Sequence[Point], by: Sequence[Point]) -> list[bool]:
    """Of each point that has left the start, whether one of `by` has no less reward at no more KL."""
    left = [p for p in points if p["kl"] > UNTRAINED]
    return [any(q["reward"] >= p["reward"] and q["kl"] <= p["kl"] for q in by) for p in left]


def verdict(per_seed: Sequence[Mapping[str, Any]], minutes: float) -> dict[str, Any]:
    """The claim's object; `median` is that of the share of PPO's points, of either kind, that a DPO point dominates."""
    pooled = {kind: [x for row in per_seed for x in row["dominated"][kind]] for kind in KINDS[1:]}
    share = {kind: float(np.mean(found)) if found else 0.0 for kind, found in pooled.items()}
    each = [[x for kind in KINDS[1:] for x in row["dominated"][kind]] for row in per_seed]
    best = {kind: [x for row in per_seed for x in row["share_of_best"][kind] if x is not None] for kind in KINDS}
    parts = {
        "reward model": share[KINDS[1]] > 0.5,
        "true reward": share[KINDS[2]] > 0.5,
        "shuffled labels gain little": statistics.median(row["control"]["reward"] for row in per_seed) < 0.3,
    }
    return {
        "id": "T8",
        "claim": CLAIM,
        "source": SOURCE,
        "threshold": f"more than half of the PPO points over {UNTRAINED} nats dominated by a DPO point of their seed, "
        "of each kind; DPO on shuffled labels at a median reward below 0.3",
        "per_seed": per_seed,
        "dominated": share,
        "counted": {kind: len(found) for kind, found in pooled.items()},
        "share_of_best": {kind: statistics.median(found) if found else None for kind, found in best.items()},
        "parts": parts,
        "median": statistics.median(float(np.mean(found)) for found in each),
        "holds": all(parts.values()),
        "minutes": minutes,
    }


def draw(answer: Mapping[str, Any]) -> Figure:
    """All points of all seeds, with the best line, and DPO's points of each seed joined."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for row in answer["per_seed"]:
        line = sorted(row["best"], key=lambda p: p["kl"])
        axes.plot([p["kl"] for p in line], [p["reward"] for p in line], color="grey", linewidth=0.8)
        for index, (kind, marker) in enumerate(zip(KINDS, "o^s", strict=True)):
            points = sorted(row["points"][kind], key=lambda p: p["kl"])
            label = kind if row is answer["per_seed"][0] else None
            style = "-" if index == 0 else ""
            axes.plot(
                [p["kl"] for p in points],
                [p["reward"] for p in points],
                marker + style,
                color=f"C{index}",
                alpha=0.7,
                linewidth=0.6,
                label=label,
            )
        axes.plot(row["control"]["kl"], row["control"]["reward"], "x", color="black", alpha=0.7)
    axes.plot([], [], "x", color="black", label="DPO, shuffled labels")
    axes.plot([], [], color="grey", linewidth=0.8, label="best at a KL")
    axes.set_xlabel("KL to the start, nats a response")
    axes.set_title("True reward by KL", loc="left", fontsize=10)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(arguments: list[str] | None = None) -> int:
    """0 when the claim holds, 1 otherwise."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    return claim("T8", __doc__, run_seed, verdict, draw, arguments, seeds=5)


if __name__ == "__main__":
    sys.exit(main())
