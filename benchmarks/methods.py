"""DPO, KTO, rejection sampling, online DPO, PPO and GRPO from the same SFT model, labels and reward model: methods.py.

Of each seed the loop of recipes/methods.toml up to the reward model runs once (runs/methods-seedN), then every method
from there (runs/methods-seedN-METHOD), with its evaluation on held-out prompts against the SFT model, which answers
once, in DPO's. What is finished is kept. Writes methods.json, .svg, .png and the table of docs/methods/choosing.md;
exits 0 only where every run ended.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import running
from matplotlib.figure import Figure

from prefloop.data.jsonl import write_atomic

matplotlib.use("Agg")
ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "methods.toml"
OUT = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "methods" / "choosing.md"
BEFORE = ("sft", "collect", "label", "reward")
METHODS: Mapping[str, tuple[str, str, tuple[str, ...]]] = {  # name, stage, what it sets
    "dpo": ("DPO", "direct", ()),
    "kto": ("KTO", "direct", ("direct.loss=kto",)),
    "rejection": ("rejection sampling", "rejection", ()),
    "online": ("online DPO", "online", ()),
    "ppo": ("PPO", "ppo", ()),
    "grpo": ("GRPO", "group", ()),
}
FIRST = next(iter(METHODS))  # its evaluation samples the SFT model's answers
BEGIN, END = "<!-- written by benchmarks/methods.py -->\n", "<!-- end -->\n"
MEASURED = """
The quickstart's task on SmolLM2-135M, {seeds} seeds; the same SFT model, labels and (but for DPO and KTO, which need
none) reward model. Win rates are the rubric's preference against SFT on held-out prompts, not that of people, with
95 % intervals over prompts; the spread is from the least to the most over seeds. KL to SFT in nats per response, length
in tokens, minutes of the method's own stage; SFT, answers, labels and reward model took {before} more. Measured on
{cpu}, {cores} cores, torch {torch}, by `python benchmarks/methods.py --methods {methods}`.

{table}
![Win rate by KL and by cost, a point a seed](../../benchmarks/results/methods.svg)

"""


def settings(seed: int, method: str) -> list[str]:
    """What the run of a method sets: its name, its stages, and where it begins."""
    base = f"runs/methods-seed{seed}"
    _, stage, own = METHODS[method]
    earlier = [] if method == FIRST else [f"{base}-{FIRST}/evaluate"]
    begins = {"policy": f"{base}/sft"} | (
        {"preferences": f"{base}/label"} if stage == "direct" else {"reward": f"{base}/reward"}
    )
    return [
        f"name=methods-seed{seed}-{method}",
        f'stages=["{stage}", "evaluate"]',
        *(f"{stage}.{key}={value}" for key, value in begins.items()),
        f'evaluate.baselines=["{base}/sft"]',
        f"evaluate.earlier={json.dumps(earlier)}",
        *own,
    ]


def measured(workspace: Path, seed: int, method: str) -> dict[str, Any]:
    """Figures of a finished method."""
    folder = workspace / "runs" / f"methods-seed{seed}-{method}"
    found, own = (_result(folder / stage) for stage in ("evaluate", METHODS[method][1]))
    models = found["models"]
    return {
        "win_rate": found["win_rate"],
        "low": found["win_rate_low"],
        "high": found["win_rate_high"],
        "length_controlled": found["win_rate_length_controlled"],
        "kl": found["kl_to_sft"],
        "tokens": models["policy"]["tokens"],
        "sft_tokens": models["sft"]["tokens"],
        "minutes": own["seconds"] / 60,
    }


def table(figures: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """A row a method: every seed's win rate, how far these are apart, and medians."""
    rows = [
        ["method", "win rate by seed", "median", "spread", "at equal length", "KL", "length", "minutes"],
        ["---"] * 8,
    ]
    for method, seeds in figures.items():

        def middle(name: str, of: Mapping[str, Mapping[str, float]] = seeds) -> float:
            return statistics.median(found[name] for found in of.values())

        won = [f["win_rate"] for f in seeds.values()]
        rates = ", ".join(f"{f['win_rate']:.3f} ({f['low']:.3f} to {f['high']:.3f})" for f in seeds.values())
        middles = (f"{middle('win_rate'):.3f}", f"{max(won) - min(won):.3f}", f"{middle('length_controlled'):.3f}")
        length = f"{middle('tokens'):.0f} (SFT {middle('sft_tokens'):.0f})"
        rows.append([METHODS[method][0], rates, *middles, f"{middle('kl'):.1f}", length, f"{middle('minutes'):.1f}"])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def draw(figures: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Figure:
    """Win rate with its interval by KL and by minutes, a colour a method, a point a seed."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    sides = {"kl": "KL to SFT (nats per response)", "minutes": "minutes of the method's own stage"}
    for axes, (by, label) in zip(figure.subplots(1, 2, sharey=True), sides.items(), strict=True):
        for (method, seeds), mark in zip(figures.items(), "os^DvP", strict=False):
            found = list(seeds.values())
            rates = [f["win_rate"] for f in found]
            bars = [[f["win_rate"] - f["low"] for f in found], [f["high"] - f["win_rate"] for f in found]]
            axes.errorbar([f[by] for f in found], rates, bars, fmt=mark, capsize=3, alpha=0.8, label=METHODS[method][0])
        axes.axhline(0.5, color="grey", linewidth=1, linestyle="--")
        axes.set_xlim(left=0)
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("win rate against SFT")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=6, frameon=False)
    return figure


def _result(folder: Path) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return found


def main(arguments: list[str] | None = None) -> int:
    """0 when every run ended, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="override a key of the recipe")
    parser.add_argument("--workspace", type=Path, default=Path(), help="folder that holds runs/; this one without it")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the results")
    parser.add_argument("--page", type=Path, default=PAGE, help="page whose table is written anew")
    parser.add_argument("--json", action="store_true", help="print on one line")
    options = parser.parse_args(arguments)
    methods = [name for name in METHODS if name in options.methods or name == FIRST]
    options.workspace.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        common = [*options.set, f"seed={seed}"]
        base = f"methods-seed{seed}"
        first = [f"name={base}", f"stages={json.dumps(BEFORE)}"]
        runs = [(base, first)] + [(f"{base}-{method}", settings(seed, method)) for method in methods]
        for name, own in runs:
            print(f"{name} ...", file=sys.stderr, flush=True)
            if failed := running.run(["run", str(RECIPE)], [*common, *own], options.workspace, name):
                print(failed, file=sys.stderr)
                return 1
    figures = {m: {str(s): measured(options.workspace, s, m) for s in options.seeds} for m in methods}
    minutes = [
        sum(_result(options.workspace / "runs" / f"methods-seed{seed}" / stage)["seconds"] for stage in BEFORE) / 60
        for seed in options.seeds
    ]
    answer = {"machine": running.machine(), "minutes_before": minutes, "methods": figures}
    write_atomic(options.out / "methods.json", json.dumps(answer, indent=2) + "\n")
    figure = draw(figures)
    with matplotlib.rc_context({"svg.hashsalt": "methods"}):
        figure.savefig(options.out / "methods.svg", metadata={"Date": None})
    figure.savefig(options.out / "methods.png", dpi=110)
    before, rest = options.page.read_text(encoding="utf-8").split(BEGIN)
    text = MEASURED.format(
        **running.machine(),
        seeds=len(minutes),
        methods=" ".join(methods),
        before=f"{statistics.median(minutes):.1f}",
        table=table(figures),
    )
    write_atomic(options.page, before + BEGIN + text + END + rest.split(END)[1])
    print(json.dumps(answer, indent=None if options.json else 2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
