"""Verifiable rewards on the 135M model, with the control that must not help: rlvr.py --seeds 0 1 2.

Of each seed recipes/deepseek-r1.toml runs (runs/rlvr-seedN: SFT on a few hundred answers, GRPO against the verifier,
held-out problems), then the same GRPO from the same SFT model on rewards by dice (runs/rlvr-seedN-dice). What is
finished is kept. Writes rlvr.json, .svg and .png into benchmarks/results; exits 0 only where every seed began between
20 and 70 %, its paired gain is above 0 with 95 % confidence, dice moved it by at most 3 points, and it took at most 20
minutes.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import running
from matplotlib.figure import Figure

from prefloop.data.jsonl import write_atomic
from prefloop.data.rows import read_jsonl
from prefloop.types import Completion, Prompt, Score

matplotlib.use("Agg")
ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "deepseek-r1.toml"
OUT = ROOT / "benchmarks" / "results"
START, DICE, MINUTES, HELD_OUT = (0.2, 0.7), 0.03, 20.0, 400


def dice(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
    """0 or 1 by a hash of the answer's id: a reward that knows nothing."""
    return [Score(value=float(hashlib.sha256(c.id.encode()).digest()[0] % 2)) for c in completions]


def control(seed: int) -> list[str]:
    """What the control's run sets."""
    base = f"runs/rlvr-seed{seed}"
    return [
        f"name=rlvr-seed{seed}-dice",
        'stages=["group", "evaluate"]',
        *(f"group.policy={base}/sft", "group.mix=none", "group.reward=rlvr:dice"),
    ]


def measured(workspace: Path, seed: int) -> dict[str, Any]:
    """Figures of a seed's two runs, and whether they are as they should be."""
    own, other = (workspace / "runs" / f"rlvr-seed{seed}{name}" for name in ("", "-dice"))
    found, chance = (_result(folder / "evaluate") for folder in (own, other))
    minutes = sum(_result(own / stage)["seconds"] for stage in ("sft", "group", "evaluate")) / 60
    start = found["models"]["sft"]["score"]
    return {
        "seed": seed,
        "problems": found["n_prompts"],
        "start": start,
        "end": found["models"]["policy"]["score"],
        "gain": found["score_gain"],
        "low": found["score_gain_low"],
        "high": found["score_gain_high"],
        "dice_gain": chance["score_gain"],
        "dice_low": chance["score_gain_low"],
        "dice_high": chance["score_gain_high"],
        "minutes": minutes,
        "holds": START[0] <= start <= START[1]
        and found["score_gain_low"] > 0
        and abs(chance["score_gain"]) <= DICE
        and found["n_prompts"] >= HELD_OUT
        and minutes <= MINUTES,
    }


def draw(workspace: Path, per_seed: Sequence[Mapping[str, Any]]) -> Figure:
    """Each seed's gain on held-out problems, by the verifier and by dice; and how far apart the two runs' rollouts are,
    step by step, on the same problems."""
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    left.axhspan(-100 * DICE, 100 * DICE, color="grey", alpha=0.15, label="what dice may move")
    for place, name, label in ((-0.1, "", "verifier"), (0.1, "dice_", "dice")):
        rates, low, high = ([100 * f[f"{name}{key}"] for f in per_seed] for key in ("gain", "low", "high"))
        bars = [[r - x for r, x in zip(rates, low, strict=True)], [x - r for r, x in zip(rates, high, strict=True)]]
        at = [i + place for i in range(len(per_seed))]
        left.errorbar(at, rates, bars, fmt="o" if not name else "s", capsize=3, label=label)
    left.set_xticks(range(len(per_seed)), [str(f["seed"]) for f in per_seed])
    left.set_xlabel("seed")
    left.set_ylabel("gain on held-out problems (points)")
    for found in per_seed:
        shares = [
            [
                row["gold/score"]
                for _, row in read_jsonl(workspace / f"runs/rlvr-seed{found['seed']}{name}/group/metrics.jsonl")
            ]
            for name in ("", "-dice")
        ]
        apart = [100 * (ours - theirs) for ours, theirs in zip(*shares, strict=True)]
        right.plot(apart, "o-", markersize=3, label=f"seed {found['seed']}")
    right.set_xlabel("step")
    right.set_ylabel("right rollouts, verifier less dice (points)")
    for axes in (left, right):
        axes.axhline(0, color="grey", linewidth=1)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8)
    return figure


def _result(folder: Path) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return found


def main(arguments: list[str] | None = None) -> int:
    """0 when every seed is as it should be, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="override a key of the recipe")
    parser.add_argument("--workspace", type=Path, default=Path(), help="folder that holds runs/; this one without it")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the results")
    parser.add_argument("--json", action="store_true", help="print on one line")
    options = parser.parse_args(arguments)
    options.workspace.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for own in ([f"name=rlvr-seed{seed}"], control(seed)):
            name = own[0].removeprefix("name=")
            print(f"{name} ...", file=sys.stderr, flush=True)
            settings = [*options.set, f"seed={seed}", f'evaluate.baselines=["runs/rlvr-seed{seed}/sft"]', *own]
            if failed := running.run(["run", str(RECIPE)], settings, options.workspace, name):
                print(failed, file=sys.stderr)
                return 1
    per_seed = [measured(options.workspace, seed) for seed in options.seeds]
    answer = {
        "claim": "GRPO on a verifier raises the share of right answers to unseen problems; on dice it does not.",
        "source": "DeepSeek-R1 (arXiv 2501.12948); Dr. GRPO (arXiv 2503.20783)",
        "threshold": "paired gain above 0 (95 %) in each seed; dice within 3 points; 20 minutes",
        "machine": running.machine(),
        "per_seed": per_seed,
        "holds": all(found["holds"] for found in per_seed),
    }
    write_atomic(options.out / "rlvr.json", json.dumps(answer, indent=2) + "\n")
    figure = draw(options.workspace, per_seed)
    with matplotlib.rc_context({"svg.hashsalt": "rlvr"}):
        figure.savefig(options.out / "rlvr.svg", metadata={"Date": None})
    figure.savefig(options.out / "rlvr.png", dpi=110)
    print(json.dumps(answer, indent=None if options.json else 2))
    return 0 if answer["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
