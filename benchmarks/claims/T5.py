"""Do all pairs of a ranking belong into one batch element? T5.py --seeds 10

Answers are bags of words with Zipf's frequencies; the common words have a planted value, and of a prompt's 4 to 9
answers people make a ranking by the sum of these values and noise. A reward model with an embedding for each word
learns from the rankings in one pass with Adam. Grouped: all pairs of a prompt stand in one batch. Shuffled: the same
pairs, in batches of the same sizes, in random order, so that an answer comes back in up to 8 updates. Each arm's
learning rate is tuned on other seeds. Held-out loss is on fresh prompts and fresh noise. Controls: with 2 answers a
prompt both arms are the same and must end the same; and with plain SGD in place of Adam, to see where a gain comes
from: Adam's steps have one size however small a gradient is, so that a rare word moves once for each update it is in.

Cost: what data/forest makes of rankings of 2 to 9 answers, in trees of whole rankings and of single pairs: tokens, and
CPU seconds of a tiny transformer that scores them.
Writes T5.json, .svg and .png beside this file; exits 0 only where the claim holds.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from result import finish
from torch import Tensor, nn

from prefloop.configs.shared import EngineConfig
from prefloop.data.forest import tree_tokens
from prefloop.data.heldout import as_pairs
from prefloop.data.jsonl import text_completion
from prefloop.data.trees import preference_trees
from prefloop.engine.build import build_encoder
from prefloop.engine.local import LocalScorer
from prefloop.models.heads import reward_head
from prefloop.models.load import LoadedModel
from prefloop.models.tiny import tiny_model, tiny_tokenizer
from prefloop.ops.losses import bradley_terry
from prefloop.ops.statistics import cluster_bootstrap
from prefloop.types import Message, Preference, Prompt, Tree

matplotlib.use("Agg")
OUT = Path(__file__).parent
CLAIM = "Whole rankings as batch elements cost K encodings, not K(K-1), and end one pass with a lower held-out loss."
SOURCE = "Ouyang et al. 2022 (arXiv 2203.02155), section 3.5"
WORDS, VALUED, LENGTH, NOISE = 4000, 100, 12, 1.0
PROMPTS, BATCH, HELDOUT = 800, 4, 800
WIDTH, HIDDEN = 32, 64
RATES = {"adam": (5e-4, 1e-3, 1.25e-3, 1.5e-3, 2e-3, 3e-3, 6e-3), "sgd": (0.3, 1.0, 2.0, 4.0, 8.0)}
DEV = range(100, 103)
ARMS = ("grouped", "shuffled")
SETTINGS: Mapping[str, tuple[tuple[int, int], Literal["adam", "sgd"]]] = {
    "rankings": ((4, 9), "adam"),
    "pairs": ((2, 2), "adam"),
    "rankings, sgd": ((4, 9), "sgd"),
}
KS = range(2, 10)
RANKINGS = 8  # of each K, to measure the cost with
Groups = list[list[tuple[int, int]]]


class Bag(nn.Module):
    """Scores [N] of bags of words [N, LENGTH]."""

    def __init__(self, draw: torch.Generator) -> None:
        super().__init__()
        self.embedding = nn.Parameter(0.04 * torch.randn(WORDS, WIDTH, generator=draw))
        self.inner = nn.Parameter(torch.randn(WIDTH, HIDDEN, generator=draw) / WIDTH**0.5)
        self.bias = nn.Parameter(torch.zeros(HIDDEN))
        self.outer = nn.Parameter(torch.randn(HIDDEN, generator=draw) / HIDDEN**0.5)

    def forward(self, bags: Tensor) -> Tensor:
        mixed = self.embedding[bags].sum(-2) / LENGTH**0.5
        scores: Tensor = torch.tanh(mixed @ self.inner + self.bias) @ self.outer
        return scores


def rankings(value: Tensor, sizes: Sequence[int], draw: torch.Generator) -> tuple[Tensor, Groups]:
    """Answers [N, LENGTH], and of each prompt all pairs of its answers, the better one first."""
    shares = 1 / (torch.arange(WORDS) + 5.0)
    count = sum(sizes)
    bags = torch.multinomial(shares, count * LENGTH, replacement=True, generator=draw).view(count, LENGTH)
    seen = value[bags].sum(-1)
    seen = (seen / seen.std() + NOISE * torch.randn(count, generator=draw)).tolist()
    groups, first = [], 0
    for size in sizes:
        best = sorted(range(first, first + size), key=lambda i: -seen[i])
        groups.append([(best[i], best[j]) for i in range(size) for j in range(i + 1, size)])
        first += size
    return bags, groups


def prompts(k: tuple[int, int], pairs: int, draw: torch.Generator) -> list[int]:
    """Answers of each prompt, between the two of k, until there are so many pairs."""
    sizes: list[int] = []
    while pairs > 0:
        sizes.append(int(torch.randint(k[0], k[1] + 1, (1,), generator=draw)))
        pairs -= sizes[-1] * (sizes[-1] - 1) // 2
    return sizes


def batches(groups: Groups, arm: str, draw: torch.Generator) -> list[list[tuple[int, int]]]:
    """One pass in PROMPTS / BATCH batches; shuffled ones have the sizes of grouped ones."""
    order = torch.randperm(len(groups), generator=draw).tolist()
    edges = np.linspace(0, len(groups), PROMPTS // BATCH + 1).astype(int).tolist()
    made = [
        [pair for place in order[start:stop] for pair in groups[place]] for start, stop in itertools.pairwise(edges)
    ]
    if arm == "grouped":
        return made
    flat = [pair for batch in made for pair in batch]
    mixed = iter(torch.randperm(len(flat), generator=draw).tolist())
    return [[flat[next(mixed)] for _ in batch] for batch in made]


def loss_of(model: Bag, bags: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    used, place = torch.tensor(pairs).unique(return_inverse=True)
    scores = model(bags[used])[place]
    one = torch.ones(len(pairs))
    return bradley_terry(scores[:, 0], scores[:, 1], target=one, margin=0 * one, weight=one) / len(pairs)


def heldout_loss(seed: int, setting: str, arm: str, rate: float) -> float:
    """Of one pass at a learning rate that falls to 0. Arms differ in the order of pairs alone."""
    k, name = SETTINGS[setting]
    draw = torch.Generator().manual_seed(1000 + seed)
    value = torch.randn(WORDS, generator=draw) * (torch.arange(WORDS) < VALUED)
    mean = statistics.fmean(size * (size - 1) / 2 for size in range(4, 10))
    bags, groups = rankings(value, prompts(k, round(PROMPTS * mean), draw), draw)
    fresh, unseen = rankings(value, prompts((4, 9), round(HELDOUT * mean), draw), draw)
    model = Bag(draw)
    parts = list(model.parameters())
    optimizer = torch.optim.Adam(parts, betas=(0.9, 0.95)) if name == "adam" else torch.optim.SGD(parts)
    steps = batches(groups, arm, draw)
    for step, batch in enumerate(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / len(steps))
        loss = loss_of(model, bags, batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own is untyped
        optimizer.step()
    with torch.no_grad():
        return float(loss_of(model, fresh, [pair for group in unseen for pair in group]))


def tuned() -> dict[str, dict[str, dict[str, float]]]:
    """{setting: {arm: {learning rate: mean held-out loss over DEV}}}"""
    return {
        setting: {
            arm: {str(r): statistics.fmean(heldout_loss(s, setting, arm, r) for s in DEV) for r in RATES[name]}
            for arm in ARMS
        }
        for setting, (_, name) in SETTINGS.items()
    }


def trees_of(k: int, grouped: bool) -> list[Tree]:
    """RANKINGS prompts of 48 letters with k answers of 32, whole or by pairs."""
    encoder = build_encoder(LoadedModel(tiny_model(), tiny_tokenizer(), "tiny", ""))
    draw = np.random.default_rng(k)

    def text(length: int) -> str:
        return "".join(draw.choice(list("abcdefgh"), length))

    known = []
    for number in range(RANKINGS):
        prompt = Prompt(id=str(number), messages=(Message(role="user", content=text(48)),))
        items = tuple(text_completion(prompt, text(32)) for _ in range(k))
        known.append(Preference(prompt=prompt, items=items, ranking=tuple(range(k))))
    if not grouped:
        split = [pair for whole in known for pair in as_pairs(whole)]
        known = [replace(pair, group=str(number)) for number, pair in enumerate(split)]
    return preference_trees(known, encoder)


def cost() -> dict[str, dict[str, list[float]]]:
    """By arm and K of KS: tokens of the trees, and CPU seconds to score them, the least of three runs."""
    model = LoadedModel(tiny_model(layers=4), tiny_tokenizer(), "tiny", "")
    scorer = LocalScorer(model, token_budget=EngineConfig().token_budget, head=reward_head(64, 0))
    found: dict[str, dict[str, list[float]]] = {arm: {"tokens": [], "seconds": []} for arm in ARMS}
    for arm in ARMS:
        for k in KS:
            trees = trees_of(k, arm == "grouped")
            taken = []
            for _ in range(3):
                began = time.process_time()
                scorer.forward(trees, {"scores"})
                taken.append(time.process_time() - began)
            found[arm]["tokens"].append(sum(map(tree_tokens, trees)))
            found[arm]["seconds"].append(min(taken))
    return found


def gains(rows: Sequence[Mapping[str, Any]], setting: str) -> list[float]:
    """By how many nats the grouped arm's held-out loss is lower, a number a seed."""
    return [row[setting]["shuffled"] - row[setting]["grouped"] for row in rows]


def verdict(
    per_seed: Sequence[Mapping[str, Any]],
    costs: Mapping[str, Mapping[str, Sequence[float]]],
    grid: Mapping[str, Any],
    minutes: float,
) -> dict[str, Any]:
    """The claim's object; `median` is the gain with rankings, in nats a pair."""
    gain = {setting: gains(per_seed, setting) for setting in SETTINGS}
    medians = {setting: statistics.median(values) for setting, values in gain.items()}
    intervals = {setting: list(cluster_bootstrap([[value] for value in values])) for setting, values in gain.items()}
    growth = {arm: {name: made[-1] / made[0] for name, made in costs[arm].items()} for arm in ARMS}
    parts = {
        "lower loss": medians["rankings"] > 0 and intervals["rankings"][0] > 0,
        "pairs alone gain nothing": intervals["pairs"][0] <= 0 <= intervals["pairs"][1],
        "cost grows with K": all(growth["grouped"][name] <= KS[-1] / KS[0] for name in ("tokens", "seconds")),
    }
    return {
        "id": "T5",
        "claim": CLAIM,
        "source": SOURCE,
        "threshold": "median gain > 0 nats with a paired interval above 0, with 2 answers an interval that holds 0; "
        f"from K = {KS[0]} to {KS[-1]} tokens and seconds grow {KS[-1] / KS[0]} times at most",
        "per_seed": per_seed,
        "median": medians["rankings"],
        "medians": medians,
        "intervals": intervals,
        "cost": {"k": list(KS), "growth": growth, **costs},
        "tuning": grid,
        "parts": parts,
        "holds": all(parts.values()),
        "minutes": minutes,
    }


def draw_figure(answer: Mapping[str, Any]) -> Figure:
    """Tuning curves, gains by setting, a dot a seed, and cost by K."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    curves, dots, price = figure.subplots(1, 3)
    for arm, color in zip(ARMS, ("tab:blue", "tab:orange"), strict=True):
        for setting, style in (("rankings", "-"), ("pairs", ":")):
            found = answer["tuning"][setting][arm]
            curves.plot([float(rate) for rate in found], list(found.values()), style, color=color, marker=".")
            curves.plot([], [], style, color=color, label=f"{arm}, {setting}")
        made = answer["cost"][arm]
        price.plot(answer["cost"]["k"], made["tokens"], "-", color=color, marker=".", label=f"{arm}: tokens")
        scale = answer["cost"]["grouped"]["tokens"][0] / answer["cost"]["grouped"]["seconds"][0]
        price.plot(answer["cost"]["k"], scale * np.array(made["seconds"]), ":", color=color, marker="x")
        price.plot([], [], ":", color=color, label=f"{arm}: CPU seconds, scaled")
    curves.set_xscale("log")
    curves.set_xticks([5e-4, 1e-3, 2e-3, 4e-3], ["0.0005", "0.001", "0.002", "0.004"], minor=False)
    curves.minorticks_off()
    curves.set_xlabel("learning rate (Adam)")
    curves.set_title("Held-out loss on the tuning seeds, nats", loc="left", fontsize=10)
    for place, setting in enumerate(SETTINGS):
        values = gains(answer["per_seed"], setting)
        dots.plot(place + np.linspace(-0.12, 0.12, len(values)), values, "o", alpha=0.7)
    dots.axhline(0, color="black", linewidth=0.8)
    dots.set_xticks(range(len(SETTINGS)), ["4 to 9 answers", "2 answers\n(control)", "4 to 9, plain SGD"])
    dots.set_title("Grouped below shuffled, nats of held-out loss", loc="left", fontsize=10)
    price.set_xlabel("answers in a ranking, K")
    price.set_title(f"Cost of encoding {RANKINGS} rankings", loc="left", fontsize=10)
    for axes in (curves, price):
        axes.legend(fontsize=8)
    for axes in (curves, dots, price):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(arguments: list[str] | None = None) -> int:
    """0 when the claim holds, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the results")
    parser.add_argument("--json", action="store_true", help="print on one line")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    start = time.monotonic()
    costs, grid = cost(), tuned()
    best = {
        setting: {arm: float(min(grid[setting][arm], key=grid[setting][arm].__getitem__)) for arm in ARMS}
        for setting in SETTINGS
    }
    per_seed = [
        {
            "seed": seed,
            **{
                setting: {arm: heldout_loss(seed, setting, arm, best[setting][arm]) for arm in ARMS}
                for setting in SETTINGS
            },
        }
        for seed in range(options.seeds)
    ]
    answer = verdict(per_seed, costs, grid, (time.monotonic() - start) / 60)
    return finish("T5", answer, draw_figure(answer), options.out, one_line=options.json)


if __name__ == "__main__":
    sys.exit(main())
