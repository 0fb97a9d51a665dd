"""Does mixing in pre-training gradients keep what PPO forgets, and a stronger leash not? T6.py --seeds 5

A model of tiny_lm.py is pre-trained on plain text (reviews and solved puzzles), fine-tuned on reviews, and improved by
PPO on their known sentiment with a weak fixed leash, as InstructGPT was: beside it once with PPO-ptx, once with the
leash 100 times as strong. Measured: the next-token loss on held-out text, of which the puzzles are what reviews make a
model forget, and the sentiment of held-out answers. Asked: PPO alone must forget (the control: there is something to
recover); of what lies between it and the pre-trained model PPO-ptx must recover at least half, at nine tenths of PPO's
gain in score; the strong leash must not do both.
Tuned on seeds from 100 up. Writes T6.json, .svg and .png beside this file; exits 0 only where the claim holds.
"""

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from result import claim
from tiny_lm import (
    ENGINE,
    MAX_TOKENS,
    measured,
    puzzle_demonstrations,
    review_demonstrations,
    review_prompts,
    sentiment,
    write_model,
)

from prefloop.configs.ppo import CriticConfig, PPOConfig, PtxConfig
from prefloop.configs.rollout import KLConfig
from prefloop.configs.sft import SFTConfig
from prefloop.configs.shared import OptimConfig
from prefloop.data.jsonl import write_jsonl
from prefloop.data.sources import load_demonstrations
from prefloop.data.trees import demonstration_trees
from prefloop.engine.build import build_encoder, build_scorer, load
from prefloop.stages import ppo, sft

matplotlib.use("Agg")
CLAIM = "PPO-ptx recovers most of what PPO forgets at an equal score; a leash 100 times as strong does not."
SOURCE = "Ouyang et al. 2022 (arXiv 2203.02155), section 4.2 and figure 33"
RECOVERED, KEPT = 0.5, 0.9
STEPS, BETA = 30, 0.05
CRITIC = OptimConfig(lr=2e-3, warmup=0.1, decay=False, eps=1e-5, head_lr=1e-2)
ARMS = {"ppo": (BETA, None), "ptx": (BETA, 0.1), "beta": (100 * BETA, None)}


def write_texts(path: Path, count: int, seed: int) -> None:
    """Plain text: as many reviews as solved puzzles, in an order by chance."""
    reviews = [d.completion for d in review_demonstrations(count, seed)]
    puzzles = [f" {d.prompt.messages[0].content}{d.completion}" for d in puzzle_demonstrations(count, seed, right=1.0)]
    texts = reviews + puzzles
    random.Random(seed).shuffle(texts)
    write_jsonl(path, [{"text": text} for text in texts])


def fitted(out: Path, model: Path, data: Path, seed: int, *, epochs: int, lr: float) -> str:
    """The SFT stage on texts or demonstrations; returns its folder."""
    sft.run(
        SFTConfig(
            out=str(out),
            model=str(model),
            demonstrations=str(data),
            epochs=epochs,
            batch=32,
            optim=OptimConfig(lr=lr),
            engine=ENGINE,
            save_every=10_000,
            seed=seed,
        )
    )
    return str(out)


def text_loss(checkpoint: str, data: Path) -> float:
    """Mean next-token loss, nats a token."""
    loaded = load(checkpoint, ENGINE)
    encoder = build_encoder(loaded)
    trees = [tree for d in load_demonstrations(data) for tree in demonstration_trees(d, encoder)]
    found = build_scorer(loaded, ENGINE).forward(trees, {"logprobs"})
    return float(-np.concatenate([reading.logprobs[0][1:] for reading in found]).mean())


def run_seed(seed: int) -> dict[str, Any]:
    """One pre-trained model, one start, and PPO from it in each arm."""
    answer: dict[str, Any] = {"seed": seed}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_model(root / "random", seed)
        write_texts(root / "texts.jsonl", 1000, seed)
        write_texts(root / "heldout.jsonl", 150, seed + 1000)
        write_jsonl(root / "demonstrations.jsonl", review_demonstrations(1000, seed + 2000))
        write_jsonl(root / "prompts.jsonl", review_prompts(seed=seed))
        fresh = review_prompts(24, seed=seed, split="test")
        known = fitted(root / "pretrained", root / "random", root / "texts.jsonl", seed, epochs=3, lr=3e-3)
        start = fitted(root / "start", root / "pretrained", root / "demonstrations.jsonl", seed, epochs=2, lr=1e-3)
        base = measured(start, start, fresh, 8, seed, {"score": sentiment})
        answer["pretrained"] = {"loss": text_loss(known, root / "heldout.jsonl")}
        answer["start"] = {"loss": text_loss(start, root / "heldout.jsonl"), "score": base["score"]}
        for arm, (beta, coef) in ARMS.items():
            ppo.run(
                PPOConfig(
                    out=str(root / arm),
                    policy=start,
                    reward="tiny_lm:sentiment",
                    prompts=str(root / "prompts.jsonl"),
                    steps=STEPS,
                    prompts_per_step=8,
                    group=4,
                    max_tokens=MAX_TOKENS,
                    epochs=1,
                    minibatches=2,
                    kl=KLConfig(controller="fixed", coef=beta),
                    ptx=PtxConfig(data=str(root / "texts.jsonl"), coef=coef, ratio=1.0) if coef else None,
                    critic=CriticConfig(checkpoint="policy", optim=CRITIC),
                    optim=OptimConfig(lr=2e-3, warmup=0.1, decay=False, eps=1e-5, head_lr=1e-2),
                    engine=ENGINE,
                    save_every=10_000,
                    seed=seed,
                )
            )
            after = measured(str(root / arm), start, fresh, 8, seed, {"score": sentiment})
            loss = text_loss(str(root / arm), root / "heldout.jsonl")
            answer[arm] = {"loss": loss, "gain": after["score"] - base["score"], "kl": after["kl"]}
    lost = answer["ppo"]["loss"] - answer["pretrained"]["loss"]
    for arm in ("ptx", "beta"):
        answer[arm]["recovered"] = (answer["ppo"]["loss"] - answer[arm]["loss"]) / lost
        answer[arm]["gain_kept"] = answer[arm]["gain"] / answer["ppo"]["gain"]
    return answer | {"forgot": answer["ppo"]["loss"] - answer["start"]["loss"]}


def verdict(per_seed: Sequence[Mapping[str, Any]], minutes: float) -> dict[str, Any]:
    """The claim's object; `median` is that of the share that PPO-ptx recovers."""

    def median(arm: str, key: str) -> float:
        return statistics.median(row[arm][key] for row in per_seed)

    recovered = {arm: median(arm, "recovered") for arm in ("ptx", "beta")}
    kept = {arm: median(arm, "gain_kept") for arm in ("ptx", "beta")}
    forgot = statistics.median(row["forgot"] for row in per_seed)
    parts = {
        "ppo forgets": forgot > 0 and all(row["forgot"] > 0 for row in per_seed),
        "ptx recovers": recovered["ptx"] >= RECOVERED,
        "at an equal score": kept["ptx"] >= KEPT,
        "beta does not": recovered["beta"] < RECOVERED or kept["beta"] < KEPT,
    }
    return {
        "id": "T6",
        "claim": CLAIM,
        "source": SOURCE,
        "threshold": f"PPO alone loses on held-out text in every seed; medians: PPO-ptx recovers >= {RECOVERED} of "
        f"what lies between it and the pre-trained model, with >= {KEPT} of its gain; beta x 100 not both",
        "per_seed": per_seed,
        "forgot": forgot,
        "recovered": recovered,
        "gain_kept": kept,
        "parts": parts,
        "median": recovered["ptx"],
        "holds": all(parts.values()),
        "minutes": minutes,
    }


def draw(answer: Mapping[str, Any]) -> Figure:
    """Held-out text loss by model, a line a seed; and loss against gain."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = ["pretrained", "start", *ARMS]
    for row in answer["per_seed"]:
        left.plot(names, [row[name]["loss"] for name in names], color="tab:blue", alpha=0.4, marker="o")
    left.set_title("Loss on held-out text, nats a token", loc="left", fontsize=10)
    for place, arm in enumerate(ARMS):
        rows = [row[arm] for row in answer["per_seed"]]
        right.plot([r["gain"] for r in rows], [r["loss"] for r in rows], "o", color=f"C{place}", label=arm)
    right.set_title("The same against the gain in sentiment, stds", loc="left", fontsize=10)
    right.set_xlabel("gain")
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(arguments: list[str] | None = None) -> int:
    """0 when the claim holds, 1 otherwise."""
    torch.set_num_threads(1)
    return claim("T6", __doc__, run_seed, verdict, draw, arguments, seeds=5, clock=time.process_time)


if __name__ == "__main__":
    sys.exit(main())
