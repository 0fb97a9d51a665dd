"""Does a policy learn from rules alone, and what does GRPO do to the length of wrong answers? T11.py --seeds 5

Puzzles of tiny_lm.py: which of three digits is the largest? A model is fine-tuned to name it, as often right as not,
and to add up to twelve words, "so hm hm" after a right answer and "but rather rather" after a wrong one, so that it
knows how it did before it decides how long to go on. Then it is trained on the rule alone: by GRPO, by Dr. GRPO, by
GRPO with dynamic sampling; and, as a control, by GRPO on a reward that is a coin. All have the same start, prompts
and steps; no leash. Measured on puzzles that no run has seen: the share of right answers, and the mean length of
wrong ones. Asked: the rule gains 20 points and the coin no more than 3; fewer groups of a batch score all alike with
dynamic sampling; wrong answers grow longer by GRPO, whose mean over an answer's tokens makes long wrong ones cheap
(Liu et al. 2025), and not by Dr. GRPO. Tuned on seeds from 100 up, with one look at seed 0, so the results here are
of --first 1. Writes T11.json, .svg and .png beside this file; exits 0 only where the claim holds.
"""

import json
import multiprocessing
import random
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import tiny_lm
import torch
from matplotlib.figure import Figure
from result import claim

from prefloop.configs.group import GroupConfig
from prefloop.configs.rollout import KLConfig
from prefloop.configs.shared import OptimConfig
from prefloop.data.jsonl import write_jsonl
from prefloop.stages import group
from prefloop.types import Completion, Demonstration, Prompt, Score

matplotlib.use("Agg")
CLAIM = (
    "A tiny model gains 20 points of held-out accuracy from a rule, and not from a coin; dynamic sampling leaves fewer "
    "groups without variance; wrong answers grow longer under GRPO and not under Dr. GRPO."
)
SOURCE = "DeepSeek-R1 (arXiv 2501.12948), Yu et al. 2025 (2503.14476), Liu et al. 2025 (2503.20783)"
GAIN, COIN = 0.20, 0.03
LONGER, AS_LONG = 3.0, 1.0  # tokens that wrong answers grow by under GRPO at least, and under Dr. GRPO at most
STEPS, PROMPTS, GROUP, LR = 56, 18, 8, 4.5e-4
RUNS: dict[str, dict[str, Any]] = {
    "grpo": {"method": "grpo"},
    "dr-grpo": {"method": "dr-grpo"},
    "dynamic": {"method": "grpo", "draws": 4},
    "coin": {"method": "grpo", "reward": "tiny_lm:dice"},
}


def first(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
    """1 where the answer begins with the largest digit, whatever follows."""
    return [
        Score(value=float(c.text.split()[:2] == ["answer", p.checks["largest"]]))
        for p, c in zip(prompts, completions, strict=True)
    ]


def demonstrations(count: int, seed: int) -> list[Demonstration]:
    """Answers of which half are right, each followed by a verdict and up to twelve words of its kind."""
    chance, found = random.Random(seed), []
    for index, prompt in enumerate(tiny_lm.puzzle_prompts(count, seed=seed)):
        largest = prompt.checks["largest"]
        others = [digit for digit in prompt.messages[0].content.split()[1:] if digit != largest]
        right = chance.random() < 0.5
        tail = (" so" + " hm" * chance.randint(0, 12)) if right else (" but" + " rather" * chance.randint(0, 12))
        said = f" answer {largest if right else chance.choice(others)}{tail}"
        found.append(Demonstration(id=f"{prompt.id}/{index}", prompt=prompt, completion=said))
    return found


def measured(checkpoint: str, seed: int) -> dict[str, float]:
    """On the 200 held-out puzzles, 8 answers each: the share of right ones, mean tokens of right and wrong ones."""
    prompts = tiny_lm.puzzle_prompts(200, split="test")
    groups = tiny_lm.sampled(checkpoint, prompts, 8, seed)
    asked = [prompt for prompt, answers in zip(prompts, groups, strict=True) for _ in answers]
    answers = [answer for group in groups for answer in group]
    right = np.array([score.value for score in first(asked, answers)], dtype=bool)
    lengths = np.array([len(answer.tokens) for answer in answers])
    return {
        "right": float(right.mean()),
        "length_right": float(lengths[right].mean()) if right.any() else 0.0,
        "length_wrong": float(lengths[~right].mean()) if not right.all() else 0.0,
        "wrong": int((~right).sum()),
    }


def trained(root: str, start: str, name: str, seed: int) -> dict[str, Any]:
    """One run: what its policy is on held-out puzzles, and the share of flat groups of its batches along the run."""
    torch.set_num_threads(1)
    settings = {"reward": "T11:first", **RUNS[name]}
    config = GroupConfig(
        out=f"{root}/{name}",
        policy=start,
        prompts=f"{root}/prompts.jsonl",
        steps=STEPS,
        prompts_per_step=PROMPTS,
        group=GROUP,
        max_tokens=tiny_lm.MAX_TOKENS,
        missing_stop_score=None,
        kl=KLConfig(controller="fixed", coef=0.0),
        optim=OptimConfig(lr=LR, warmup=0.05, decay=False),
        engine=tiny_lm.ENGINE,
        save_every=10_000,
        seed=seed,
        **settings,
    )
    group.run(config)
    rows = [json.loads(line) for line in Path(config.out, "metrics.jsonl").read_text().splitlines()]
    flat = [row["reward/flat_groups"] for row in rows]
    return measured(config.out, seed) | {"flat": float(np.mean(flat)), "flat_along": flat}


def run_seed(seed: int) -> dict[str, Any]:
    """One start, and from it each of RUNS."""
    with tempfile.TemporaryDirectory() as root, ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        start = tiny_lm.fine_tuned(Path(root) / "start", demonstrations(1500, seed), seed, epochs=6)
        write_jsonl(f"{root}/prompts.jsonl", tiny_lm.puzzle_prompts(420, seed=seed))
        waiting = {name: pool.submit(trained, root, start, name, seed) for name in RUNS}
        return {"seed": seed, "start": measured(start, seed), **{name: run.result() for name, run in waiting.items()}}


def verdict(per_seed: Sequence[Mapping[str, Any]], minutes: float) -> dict[str, Any]:
    """The claim's object; `median` is that of the gain by GRPO."""

    def change(name: str, key: str) -> float:
        return statistics.median(row[name][key] - row["start"][key] for row in per_seed)

    gains = {name: change(name, "right") for name in RUNS}
    longer = {name: change(name, "length_wrong") for name in ("grpo", "dr-grpo")}
    flat = {name: statistics.median(row[name]["flat"] for row in per_seed) for name in ("grpo", "dynamic")}
    parts = {
        "starts at 20 to 70 %": all(0.2 <= row["start"]["right"] <= 0.7 for row in per_seed),
        "the rule gains": all(gains[name] >= GAIN for name in RUNS if name != "coin"),
        "the coin does not": gains["coin"] <= COIN,
        "fewer flat groups": all(row["dynamic"]["flat"] < row["grpo"]["flat"] for row in per_seed),
        "wrong answers grow under GRPO": longer["grpo"] >= LONGER,
        "and not under Dr. GRPO": longer["dr-grpo"] <= AS_LONG,
    }
    return {
        "id": "T11",
        "claim": CLAIM,
        "source": SOURCE,
        "threshold": f"held-out gain >= {GAIN} by every rule's run and <= {COIN} by the coin's; flat groups fewer in "
        f"every seed; wrong answers longer by >= {LONGER} tokens under GRPO, <= {AS_LONG} under Dr. GRPO (medians)",
        "per_seed": per_seed,
        "gain": gains,
        "wrong_longer": longer,
        "flat": flat,
        "parts": parts,
        "median": gains["grpo"],
        "holds": all(parts.values()),
        "minutes": minutes,
    }


def draw(answer: Mapping[str, Any]) -> Figure:
    """Held-out accuracy, flat groups along the run, and how much longer answers became; a dot a seed."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    plots = figure.subplots(1, 3)
    seeds = answer["per_seed"]
    for place, name in enumerate(("start", *RUNS)):
        plots[0].plot([place] * len(seeds), [row[name]["right"] for row in seeds], "o", color=f"C{place}", alpha=0.7)
    plots[0].set_xticks(range(1 + len(RUNS)), ("start", *RUNS))
    plots[0].set_ylim(0, 1)
    plots[0].set_title("Share of right answers, held out", loc="left", fontsize=10)
    for place, name in ((1, "grpo"), (3, "dynamic")):
        mean = np.mean([row[name]["flat_along"] for row in seeds], axis=0)
        plots[1].plot(np.convolve(mean, np.ones(5) / 5, "valid"), color=f"C{place}", label=name)
    plots[1].legend(fontsize=8)
    plots[1].set_ylim(0, 1)
    plots[1].set_xlabel("step")
    plots[1].set_title("Groups that scored all alike, share of the batch", loc="left", fontsize=10)
    ticks = [(name, kind) for kind in ("wrong", "right") for name in ("grpo", "dr-grpo")]
    for place, (name, kind) in enumerate(ticks):
        grown = [row[name][f"length_{kind}"] - row["start"][f"length_{kind}"] for row in seeds]
        plots[2].plot([place] * len(grown), grown, "o", color=f"C{1 + list(RUNS).index(name)}", alpha=0.7)
    plots[2].axhline(0, color="black", linewidth=0.8)
    plots[2].set_xticks(range(len(ticks)), [f"{kind},\n{name}" for name, kind in ticks], fontsize=8)
    plots[2].set_title("Answers longer by, tokens", loc="left", fontsize=10)
    for axes in plots:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(arguments: list[str] | None = None) -> int:
    """0 when the claim holds, 1 otherwise."""
    torch.set_num_threads(1)
    return claim("T11", __doc__, run_seed, verdict, draw, arguments, seeds=5)


if __name__ == "__main__":
    sys.exit(main())
