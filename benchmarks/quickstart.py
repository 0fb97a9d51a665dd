"""Run the quickstart for several seeds and check what it promises: quickstart.py --seeds 0 1 2 [--controls].

Each seed is `prefloop quickstart --set seed=N --set name=quickstart-seedN` in the workspace; what is finished there is
kept. Then results.json, curves.svg, curves.png, samples-seedN.md and README.md are written into benchmarks/quickstart/.
Exits 0 only where every claim that was measured holds.
"""

import argparse
import json
import random
import re
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import running
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from prefloop.data.jsonl import write_atomic
from prefloop.data.rows import read_jsonl
from prefloop.evals.winrate import SliceRate, outcome
from prefloop.ops.statistics import cluster_bootstrap, win_rate

matplotlib.use("Agg")
OUT = Path(__file__).parent / "quickstart"
KL_TOLERANCE = 0.3
SLICE_FLOOR = 0.45
SHOWN = 10
PANELS = (
    ("reward/score", "Reward-model score (stds within prompts)"),
    ("kl/response", "KL to the reference (nats per response)"),
    ("gold/win_rate", "Preferred to SFT (simulated judge)"),
)
SEED_COLUMNS = (
    *("seed", "win rate", "vs base", "equal length", "shuffled labels", "KL / target"),
    *("reward model (ceiling)", "minutes"),
)
PAGE = """# The quickstart, seed by seed

The whole loop on the shipped prompts. Annotators and judge are simulated by a rubric: win rates are the rubric's
preference on held-out prompts, not that of people.

    {command}

Measured on {cpu}, {cores} cores, {memory_gb} GB, Python {python}, torch {torch}. That command writes this page and the
files beside it; with `--collect-only` it takes runs that stand in the workspace.

{seeds}
Win rates are against SFT, with 95 % intervals over prompts; "shuffled labels" is the same loop as a control. KL is in
nats per response, its mean over the last third of the steps. The ceiling is what the noise-free rubric reaches on the
same held-out labels. Seeds that ran side by side took longer than one alone.

![Score, KL and preference by PPO step](curves.svg)

## What is promised

{claims}
## Win rate by kind of prompt, seeds together

{slices}
Answers before and after, drawn at random: {samples}. All figures: [results.json](results.json). How the recipe came
about, and what failed on the way: [TUNING.md](TUNING.md).
"""
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Claim:
    """A figure and what it should be, by seed (or by slice); None where it was not measured."""

    claim: str
    threshold: str
    values: Mapping[str, float | Mapping[str, float] | None]
    failing: tuple[str, ...]

    @property
    def holds(self) -> bool | None:
        """None where nothing was measured."""
        return None if all(value is None for value in self.values.values()) else not self.failing


def claims(reports: Mapping[str, Mapping[str, Any]], slices: Mapping[str, SliceRate]) -> list[Claim]:
    """What the quickstart promises, checked on each seed's report and on the slices of all seeds together."""

    def each(claim: str, threshold: str, value: Any, right: Any) -> Claim:
        found = {seed: value(report) for seed, report in reports.items()}
        wrong = tuple(seed for seed, v in found.items() if v is not None and not right(v, reports[seed]))
        return Claim(claim, threshold, found, wrong)

    def figure(name: str) -> Any:
        return lambda report: report[name]

    def off_target(report: Mapping[str, Any]) -> float | None:
        kl, target = report["kl_last_third"], report["kl_target"]
        return None if kl is None or target is None else abs(kl / target - 1)

    rates = {name: rate.win_rate for name, rate in slices.items()}
    return [
        each("win rate against SFT", ">= 0.60", figure("win_rate"), lambda v, _: v >= 0.60),
        each("its 95 % interval is above one half", "low > 0.5", figure("win_rate_low"), lambda v, _: v > 0.5),
        each("win rate against the base model", ">= 0.55", figure("win_rate_vs_base"), lambda v, _: v >= 0.55),
        each("win rate at equal length", "> 0.5", figure("win_rate_length_controlled"), lambda v, _: v > 0.5),
        Claim(
            "win rate in every slice, seeds together",
            f">= {SLICE_FLOOR}",
            rates,
            tuple(name for name, rate in rates.items() if rate < SLICE_FLOOR),
        ),
        each("SFT's answers end by themselves", ">= 0.9", figure("sft_stopped_share"), lambda v, _: v >= 0.9),
        each(
            "with shuffled labels nothing is gained",
            "95 % interval contains 0.5",
            figure("control_shuffled_labels"),
            lambda v, _: v["low"] <= 0.5 <= v["high"],
        ),
        each("KL over the last third of the steps / target - 1", f"within ±{KL_TOLERANCE}", off_target, _near),
        each(
            "reward model's accuracy on held-out labels",
            ">= halfway from chance to the labels' ceiling",
            figure("rm_accuracy"),
            lambda v, report: v >= 0.5 + (report["rm_ceiling"] - 0.5) / 2,
        ),
        each(
            "the same beside always picking the longer or the shorter",
            "above both",
            figure("rm_accuracy"),
            lambda v, report: v > max(report["rm_longer_wins"], report["rm_shorter_wins"]),
        ),
    ]


def _near(value: float, _: object) -> bool:
    return value <= KL_TOLERANCE


def pooled_slices(evaluations: Sequence[Rows]) -> dict[str, SliceRate]:
    """Win rate against SFT by slice over the comparisons of all seeds; the interval resamples prompts, each with the
    comparisons of every seed, as the seeds share their prompts. evaluations: each seed's lines of
    evaluate/samples.jsonl."""
    outcomes: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for rows in evaluations:
        scores: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
        for row in rows:
            scores[row["prompt"]["slice"], row["prompt"]["id"], row["model"]].append(row["score"])
        for (name, prompt, model), ours in scores.items():
            if model == "policy" and name:
                theirs = scores[name, prompt, "sft"]
                outcomes[name][prompt] += [outcome(a, b) for a in ours for b in theirs]
    return {name: _rate([outcomes[name][prompt] for prompt in sorted(outcomes[name])]) for name in sorted(outcomes)}


def _rate(clusters: Sequence[Sequence[float]]) -> SliceRate:
    low, high = cluster_bootstrap(clusters)
    return SliceRate(win_rate(clusters), low, high, len(clusters))


def samples_page(rows: Rows, seed: int) -> str:
    """Random prompts with an answer before (SFT) and after (policy), whoever won, as Markdown."""
    answers: defaultdict[str, defaultdict[str, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        answers[row["prompt"]["id"]][row["model"]].append(row)
    rng = random.Random(seed)
    parts = [
        f"# Before and after, seed {seed}\n\nRandom prompts and answers, losses included. Scores are the rubric's.\n"
    ]
    for number, prompt in enumerate(rng.sample(sorted(answers), min(SHOWN, len(answers))), 1):
        before, after = (
            rng.choice(sorted(answers[prompt][m], key=lambda r: str(r["completion"]["id"]))) for m in ("sft", "policy")
        )
        result = {1.0: "win", 0.5: "tie", 0.0: "loss"}[outcome(after["score"], before["score"])]
        turns = (f"{m['role']}: {m['content']}" for m in after["prompt"]["messages"])
        parts.append(f"## {number}: {result}\n\n" + fenced("\n".join((f"[{after['prompt']['slice']}]", *turns))))
        for name, row in (("SFT", before), ("Policy", after)):
            end = "ended" if row["completion"]["finish_reason"] == "stop" else "cut off"
            parts.append(f"{name}, score {row['score']:.3f}, {end}:\n\n{fenced(row['completion']['text'])}")
    return "\n".join(parts)


def fenced(text: str) -> str:
    """Text of users and models as a code block that it cannot end; hidden and direction characters are spelled out."""
    hidden = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    plain = "".join(f"U+{ord(c):04X}" if c not in "\n\t" and unicodedata.category(c) in hidden else c for c in text)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", plain)), default=0))
    return f"{fence}text\n{plain}\n{fence}\n"


def draw(metrics: Mapping[str, Rows], kl_target: float | None) -> Figure:
    """Score, KL with the claimed band around its target, and preference, by PPO step, a line a seed."""
    figure = Figure(figsize=(8, 8), layout="constrained")
    grid = figure.subplots(len(PANELS), sharex=True)
    for axes, (name, title) in zip(grid, PANELS, strict=True):
        for seed, rows in metrics.items():
            points = [(row["step"], row[name]) for row in rows if name in row]
            axes.plot([x for x, _ in points], [y for _, y in points], marker=".", label=f"seed {seed}")
        axes.set_title(title, loc="left", fontsize=10)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    if kl_target is not None:
        low, high = kl_target * (1 - KL_TOLERANCE), kl_target * (1 + KL_TOLERANCE)
        grid[1].axhspan(low, high, alpha=0.12, color="tab:green", label=f"target {kl_target:g} ± {KL_TOLERANCE:.0%}")
        grid[1].legend(fontsize=8)
    grid[2].axhline(0.5, color="grey", linewidth=1, linestyle="--")
    grid[0].legend(fontsize=8)
    grid[-1].set_xlabel("PPO step")
    grid[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def run_seed(seed: int, workspace: Path, settings: Sequence[str]) -> str | None:
    """Run one seed's quickstart; the last line of a run that failed."""
    name = f"quickstart-seed{seed}"
    return running.run(["quickstart"], [f"seed={seed}", f"name={name}", *settings], workspace, name)


def run_seeds(seeds: Sequence[int], workspace: Path, settings: Sequence[str], controls: bool, jobs: int) -> list[str]:
    """Run all seeds, `jobs` at a time, their controls last as those are shorter; what failed."""

    def control(seed: int, main: Future[str | None]) -> str | None:
        return main.result() or run_seed(seed, workspace, [*settings, "controls=true"])

    with ThreadPoolExecutor(jobs) as pool:
        wanted = {seed: pool.submit(run_seed, seed, workspace, settings) for seed in seeds}
        if controls:
            wanted = {seed: pool.submit(control, seed, main) for seed, main in wanted.items()}
    return [line for future in wanted.values() if (line := future.result())]


def collect(workspace: Path, seeds: Sequence[int], out: Path, command: str) -> bool:
    """Write everything under `out` from the run folders; whether every claim that was measured holds."""
    roots = {str(seed): workspace / "runs" / f"quickstart-seed{seed}" for seed in seeds}
    reports = {seed: json.loads((root / "report.json").read_text(encoding="utf-8")) for seed, root in roots.items()}
    evaluations = {seed: _rows(root / "evaluate" / "samples.jsonl") for seed, root in roots.items()}
    metrics = {seed: _rows(root / "ppo" / "metrics.jsonl") for seed, root in roots.items()}
    slices = pooled_slices(list(evaluations.values()))
    checked = claims(reports, slices)
    holds = all(claim.holds is not False for claim in checked)
    results = {
        "machine": running.machine(),
        "command": command,
        "seeds": reports,
        "pooled_slices": {name: asdict(rate) for name, rate in slices.items()},
        "claims": [asdict(claim) | {"holds": claim.holds} for claim in checked],
        "holds": holds,
    }
    write_atomic(out / "results.json", json.dumps(results, indent=2, allow_nan=False) + "\n")
    figure = draw(metrics, next(iter(reports.values()))["kl_target"])
    with matplotlib.rc_context({"svg.hashsalt": "quickstart"}):
        figure.savefig(out / "curves.svg", metadata={"Date": None})
    figure.savefig(out / "curves.png", dpi=110)
    for seed, rows in evaluations.items():
        page = samples_page(rows, int(seed)).encode("utf-8", "replace")
        write_atomic(out / f"samples-seed{seed}.md", page)
    write_atomic(out / "README.md", readme(results))
    return holds


def readme(results: Mapping[str, Any]) -> str:
    """The page beside the results."""
    rates = [
        [name, _interval(r["win_rate"], r["low"], r["high"]), str(r["n"])]
        for name, r in results["pooled_slices"].items()
    ]
    verdict = {True: "holds", False: "**fails**", None: "not measured"}
    checked = [[c["claim"], c["threshold"], verdict[c["holds"]], ", ".join(c["failing"])] for c in results["claims"]]
    return PAGE.format(
        **results["machine"],
        command=results["command"],
        seeds=_table(SEED_COLUMNS, [_seed_row(seed, report) for seed, report in results["seeds"].items()]),
        claims=_table(("claim", "threshold", "", "where not"), checked),
        slices=_table(("slice", "win rate (95 % interval)", "prompts"), rates),
        samples=", ".join(f"[seed {seed}](samples-seed{seed}.md)" for seed in results["seeds"]),
    )


def _seed_row(seed: str, report: Mapping[str, Any]) -> list[str]:
    control = report["control_shuffled_labels"] or {"win_rate": None, "low": None, "high": None}
    return [
        seed,
        _interval(report["win_rate"], report["win_rate_low"], report["win_rate_high"]),
        _number(report["win_rate_vs_base"]),
        _number(report["win_rate_length_controlled"]),
        _interval(control["win_rate"], control["low"], control["high"]),
        f"{_number(report['kl_last_third'], 2)} / {_number(report['kl_target'], 1)}",
        f"{_number(report['rm_accuracy'])} ({_number(report['rm_ceiling'])})",
        _number(report["minutes"], 1),
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _interval(rate: float | None, low: float | None, high: float | None) -> str:
    return "-" if rate is None else f"{_number(rate)} ({_number(low)} to {_number(high)})"


def _rows(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_jsonl(path)]


def main(arguments: list[str] | None = None) -> int:
    """0 when every run succeeds and every claim holds, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--controls", action="store_true", help="also the loop on shuffled labels, for each seed")
    parser.add_argument("--jobs", type=int, default=1, help="seeds that run at a time")
    parser.add_argument("--threads", type=int, default=0, help="of each; 0 takes all cores")
    parser.add_argument("--workspace", type=Path, default=Path(), help="folder that holds runs/; this one without it")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="override a key of the recipe")
    parser.add_argument("--collect-only", action="store_true", help="run nothing, gather from finished runs")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the results")
    options = parser.parse_args(arguments)
    settings = [f"engine.threads={options.threads}"] * bool(options.threads)
    settings += options.set
    if not options.collect_only:
        options.workspace.mkdir(parents=True, exist_ok=True)
        failed = run_seeds(options.seeds, options.workspace, settings, options.controls, options.jobs)
        if failed:
            print("\n".join(failed), file=sys.stderr)
            return 1
    words = ["python benchmarks/quickstart.py --seeds", *map(str, options.seeds)]
    words += ["--controls"] * options.controls + [f"--jobs {options.jobs} --threads {options.threads}"]
    words += [f"--set {setting}" for setting in options.set]
    holds = collect(options.workspace, options.seeds, options.out, " ".join(words))
    print((options.out / "results.json").read_text(encoding="utf-8"), end="")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
