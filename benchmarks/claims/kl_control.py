"""Does the KL controller reach its target from other coefficients, and another target? kl_control.py --run runs/NAME

From a finished run's SFT, reward model and collected answers, PPO alone runs again: with a quarter and with four times
the first coefficient for eight horizons (in one the coefficient changes by about e^clip at most, and KL answers some
steps later), and with twice the target for sixteen, as that is further from where all begin. Its runs are
runs/NAME-kl-*; what is finished is kept.
Writes kl_control.json, .svg and .png beside this file; exits 0 only where every variant comes within 30 %.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import matplotlib
import tomli_w
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from result import finish

from prefloop.data.rows import read_jsonl
from prefloop.evals.report import last_third_kl

matplotlib.use("Agg")
OUT = Path(__file__).parent
TOLERANCE = 0.3
CLAIM = "The adaptive KL controller reaches its target from a coefficient four times off, and a doubled target."
SOURCE = "Ziegler et al. 2019, section 2.2"
VARIANTS = {"coef-quarter": ("coef", 0.25, 8), "coef-4x": ("coef", 4.0, 8), "target-2x-long": ("target", 2.0, 16)}


def run_variant(run: Path, variant: str, threads: int) -> str | None:
    """PPO alone, with the recipe of the finished run and one key changed; the last line of a run that failed."""
    workspace, parent = run.parent.parent, f"runs/{run.name}"
    recipe = json.loads((run / "recipe.json").read_text(encoding="utf-8"))
    leash = json.loads((run / "ppo" / "config.json").read_text(encoding="utf-8"))["kl"]
    key, factor, horizons = VARIANTS[variant]
    settings = [
        f"name={run.name}-kl-{variant}",
        f"ppo.policy={parent}/sft",
        f"ppo.reward={parent}/reward",
        f"ppo.baseline={parent}/collect",
        f"ppo.kl.{key}={leash[key] * factor}",
        f"ppo.steps={math.ceil(horizons * leash['horizon'])}",
        *([f"engine.threads={threads}"] if threads else []),
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.toml"
        file.write_text(tomli_w.dumps(recipe), encoding="utf-8")
        command = [sys.executable, "-m", "prefloop", "ppo", str(file), *(w for s in settings for w in ("--set", s))]
        done = subprocess.run(command, cwd=workspace, capture_output=True, text=True, env=environment)
    return None if done.returncode == 0 else f"{variant}: {(done.stderr.strip().splitlines() or ['?'])[-1]}"


def measure(folder: Path) -> dict[str, float]:
    """First coefficient, target, and mean KL of the last third of the steps (nats per response), from the rollouts."""
    leash = json.loads((folder / "config.json").read_text(encoding="utf-8"))["kl"]
    kl = last_third_kl([row for _, row in read_jsonl(folder / "samples.jsonl")])
    if kl is None or leash["controller"] != "adaptive":
        raise SystemExit(f"kl_control.py: {folder} has no rollouts of an adaptive controller; give another run.")
    seconds = json.loads((folder / "result.json").read_text(encoding="utf-8"))["seconds"]
    return {
        "coef": leash["coef"],
        "target": leash["target"],
        "kl_last_third": kl,
        "ratio": kl / leash["target"],
        "minutes": seconds / 60,
    }


def verdict(per_variant: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """The claim's object; `median` is that of |KL / target - 1|."""
    errors = [abs(found["ratio"] - 1) for found in per_variant.values()]
    return {
        "id": "kl_control",
        "claim": CLAIM,
        "source": SOURCE,
        "threshold": f"|KL over the last third / target - 1| <= {TOLERANCE} in every variant",
        "per_variant": per_variant,
        "median": statistics.median(errors),
        "holds": max(errors) <= TOLERANCE,
        "minutes": sum(found["minutes"] for found in per_variant.values()),
    }


def draw(metrics: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """KL over its target, and the coefficient (logarithmic), by PPO step, a line a variant."""
    figure = Figure(figsize=(8, 6), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True)
    upper.axhspan(1 - TOLERANCE, 1 + TOLERANCE, alpha=0.12, color="tab:green", label=f"target ± {TOLERANCE:.0%}")
    for variant, rows in metrics.items():
        steps = [row["step"] for row in rows]
        upper.plot(steps, [row["kl/response"] / row["kl/target"] for row in rows], marker=".", label=variant)
        lower.step(steps, [row["kl/coef"] for row in rows], where="post", label=variant)
    upper.set_title("KL to the reference / target", loc="left", fontsize=10)
    lower.set_title("KL coefficient (reward per nat)", loc="left", fontsize=10)
    lower.set_yscale("log")
    lower.set_xlabel("PPO step")
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    upper.legend(fontsize=8)
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(arguments: list[str] | None = None) -> int:
    """0 when the claim holds, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run, such as runs/quickstart")
    parser.add_argument("--jobs", type=int, default=1, help="variants that run at a time")
    parser.add_argument("--threads", type=int, default=0, help="of each; 0 as in the run's recipe")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the results")
    parser.add_argument("--json", action="store_true", help="print on one line")
    options = parser.parse_args(arguments)
    run = options.run.resolve()
    if not (run / "recipe.json").exists() or run.parent.name != "runs":
        parser.error(f"{options.run} is no finished run under runs/; run its recipe to the end first")
    with ThreadPoolExecutor(options.jobs) as pool:
        failed = [f for f in pool.map(lambda v: run_variant(run, v, options.threads), VARIANTS) if f]
    if failed:
        print("\n".join(failed), file=sys.stderr)
        return 1
    folders = {"as it was": run / "ppo"}
    folders |= {variant: run.with_name(f"{run.name}-kl-{variant}") / "ppo" for variant in VARIANTS}
    answer = verdict({variant: measure(folder) for variant, folder in folders.items()})
    figure = draw({v: [row for _, row in read_jsonl(folder / "metrics.jsonl")] for v, folder in folders.items()})
    return finish("kl_control", answer, figure, options.out, one_line=options.json)


if __name__ == "__main__":
    sys.exit(main())
