"""Do margins by strength help where answers differ most? T15.py --seeds 20

Answers have features and a planted strength, a fixed random network of them. People see each strength with some noise,
prefer the higher one and say how much higher: much, more, slightly, barely (a quarter of the pairs each). A smaller
network learns from the choices alone, with the small and the large margins of Llama 2, and, as a control, with the same
margins dealt out at random: what these gain too is no use of strength. Accuracy is on fresh pairs, against their
labels, by the labels' own strength.
Writes T15.json, .svg and .png beside this file; exits 0 only where the claim holds.
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
import torch
from matplotlib.figure import Figure
from result import finish
from torch import Tensor, nn

from prefloop.ops.losses import bradley_terry
from prefloop.ops.statistics import cluster_bootstrap

matplotlib.use("Agg")
OUT = Path(__file__).parent
CLAIM = "Margins by strength raise the accuracy on pairs that people call significantly better."
SOURCE = "Touvron et al. 2023 (Llama 2), tables 27 and 28"
MARGINS = {"none": (0.0, 0.0, 0.0, 0.0), "small": (0.0, 1 / 3, 2 / 3, 1.0), "large": (0.0, 1.0, 2.0, 3.0)}
DRAWN = ("small", "large", "small, dealt", "large, dealt")
BUCKETS = ("barely", "slightly", "better", "much")
WIDTH, PLANTED, LEARNED = 16, 64, 16
NOISE = 1.8  # without margins about as often right in each bucket as Llama 2 says of its model
TRAIN, TEST, BATCH, EPOCHS, RATE = 4000, 8000, 64, 2, 1e-2


def network(hidden: int, generator: torch.Generator) -> nn.Sequential:
    made = nn.Sequential(nn.Linear(WIDTH, hidden), nn.Tanh(), nn.Linear(hidden, 1))
    with torch.no_grad():
        for parameter in made.parameters():
            spread = parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.0
            parameter.normal_(0.0, 1.0, generator=generator).mul_(spread)
    return made


def labeled(planted: nn.Sequential, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Features [count, 2, WIDTH] of pairs, the preferred answer first, and their bucket [count], 0 (barely) to 3."""
    x = torch.randn(count, 2, WIDTH, generator=generator)
    with torch.no_grad():
        seen = planted(x).squeeze(-1)
        seen = seen / seen.std() + NOISE * torch.randn(count, 2, generator=generator)
    order = seen.argsort(dim=1, descending=True)
    x = x.gather(1, order[..., None].expand_as(x))
    lead = (seen[:, 0] - seen[:, 1]).abs()
    edges = lead.quantile(torch.tensor([0.25, 0.5, 0.75]))
    return x, torch.bucketize(lead, edges)


def fit(x: Tensor, margin: Tensor, seed: int) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    model = network(LEARNED, generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    one = torch.ones(BATCH)
    total = EPOCHS * (len(x) // BATCH)
    orders = [torch.randperm(len(x), generator=generator) for _ in range(EPOCHS)]
    for step in range(total):
        epoch, place = divmod(step, len(x) // BATCH)
        members = orders[epoch][place * BATCH : (place + 1) * BATCH]
        scores = model(x[members]).squeeze(-1)
        loss = bradley_terry(scores[:, 0], scores[:, 1], target=one, margin=margin[members], weight=one) / BATCH
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / total)
        optimizer.step()
    return model


def accuracies(model: nn.Sequential, x: Tensor, bucket: Tensor) -> dict[str, float]:
    with torch.no_grad():
        scores = model(x).squeeze(-1)
    right = (scores[:, 0] > scores[:, 1]).float()
    found = {name: float(right[bucket == k].mean()) for k, name in enumerate(BUCKETS)}
    return found | {"all": float(right.mean())}


def run_seed(seed: int) -> dict[str, Any]:
    """Accuracy by margins and bucket; all start from the same weights and see the same pairs in the same order."""
    generator = torch.Generator().manual_seed(1000 + seed)
    planted = network(PLANTED, generator)
    x, bucket = labeled(planted, TRAIN, generator)
    fresh = labeled(planted, TEST, generator)
    found: dict[str, Any] = {}
    for name, margins in MARGINS.items():
        found[name] = accuracies(fit(x, torch.tensor(margins)[bucket], seed), *fresh)
    dealt = bucket[torch.randperm(TRAIN, generator=generator)]
    for name in ("small", "large"):
        found[f"{name}, dealt"] = accuracies(fit(x, torch.tensor(MARGINS[name])[dealt], seed), *fresh)
    return {"seed": seed, **found}


def gains(rows: Sequence[Mapping[str, Any]], one: str, other: str, bucket: str = "much") -> list[float]:
    """How much more often one is right than the other, a number a seed."""
    return [row[one][bucket] - row[other][bucket] for row in rows]


def verdict(per_seed: Sequence[Mapping[str, Any]], minutes: float) -> dict[str, Any]:
    """The claim's object; `median` is that of the small margins' gain in the bucket "much"."""
    pairs = [(name, "none") for name in DRAWN] + [(name, f"{name}, dealt") for name in ("small", "large")]
    gain = {f"{one} over {other}": gains(per_seed, one, other) for one, other in pairs}
    intervals = {name: list(cluster_bootstrap([[value] for value in values])) for name, values in gain.items()}
    median = statistics.median(gain["small over none"])
    return {
        "id": "T15",
        "claim": CLAIM,
        "source": SOURCE,
        "threshold": "median gain of small margins > 0 with a paired interval above 0, and none of dealt ones",
        "per_seed": per_seed,
        "median": median,
        "medians": {name: statistics.median(values) for name, values in gain.items()},
        "intervals": intervals,
        "holds": median > 0 and intervals["small over none"][0] > 0 and intervals["small, dealt over none"][0] <= 0,
        "minutes": minutes,
    }


def draw(answer: Mapping[str, Any]) -> Figure:
    """Gain over no margins by bucket, the median and all seeds; gains in the bucket "much"."""
    rows = answer["per_seed"]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, color in zip(DRAWN, ("tab:blue", "tab:orange", "tab:cyan", "tab:gray"), strict=True):
        rise = np.array([[100 * g for g in gains(rows, name, "none", bucket)] for bucket in BUCKETS])
        left.plot(BUCKETS, rise, color=color, alpha=0.1)
        left.plot(BUCKETS, np.median(rise, axis=1), color=color, marker="o", label=name)
    left.legend(fontsize=8)
    left.set_title("Accuracy over that without margins, points", loc="left", fontsize=10)
    right.boxplot([[100 * g for g in gains(rows, name, "none")] for name in DRAWN], tick_labels=list(DRAWN))
    right.set_title('The same among pairs called "much better"', loc="left", fontsize=10)
    for axes in (left, right):
        axes.axhline(0, color="black", linewidth=0.8)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(arguments: list[str] | None = None) -> int:
    """0 when the claim holds, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the results")
    parser.add_argument("--json", action="store_true", help="print on one line")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    start = time.monotonic()
    per_seed = [run_seed(seed) for seed in range(options.seeds)]
    answer = verdict(per_seed, (time.monotonic() - start) / 60)
    return finish("T15", answer, draw(answer), options.out, one_line=options.json)


if __name__ == "__main__":
    sys.exit(main())
