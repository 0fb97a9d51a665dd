"""The report of a run: report.json for programs, report.html for people, a summary for the terminal.

Figures come from samples and labels, never from a stage's own result, so that they can be derived again.
Texts of models and users are hostile: escaped, isolated, their control and direction characters made visible.
"""

import json
import random
import unicodedata
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from rich.console import Group
from rich.table import Table
from rich.text import Text

from prefloop.configs.pipeline import STAGES, TRAINED
from prefloop.data.jsonl import write_atomic
from prefloop.data.rows import read_jsonl
from prefloop.evals.charts import (
    KL_BAND,
    accuracy_chart,
    cost_chart,
    loop_chart,
    reliability_chart,
    rounds_chart,
    slice_chart,
)
from prefloop.evals.reward_model import HeldoutPair, ReliabilityBin, RewardReport, measure
from prefloop.evals.rounds import all_rounds
from prefloop.evals.winrate import SliceRate, outcome, summarize
from prefloop.run import newest
from prefloop.types import PrefloopError

_ONLINE = ("ppo", "group", "online")
_CONTROL = tuple(f"control/{name}" for name in ("reward", *TRAINED, "evaluate"))
_SHOWN_SAMPLES = 10
_OUTCOMES = {1.0: "win", 0.5: "tie", 0.0: "loss"}
EVALUATED = (
    *("win_rate", "win_rate_low", "win_rate_high", "win_rate_length_controlled"),
    *("win_rate_vs_base", "win_rate_vs_base_low", "win_rate_vs_base_high"),
    *("kl_to_sft", "n_prompts", "wins", "ties", "losses", "slices", "sft_stopped_share", "policy_stopped_share"),
)


@dataclass(frozen=True, slots=True)
class _Stage:
    folder: Path
    config: Mapping[str, Any]
    run: Mapping[str, Any]
    result: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """One plain sentence on a run; `state`: good, open or bad."""

    state: str
    text: str


def build_report(root: Path) -> dict[str, Any]:
    """Read the stage folders under `root`, write its report.html and report.json, and return the latter.

    A stage that is missing or unfinished leaves its figures null and its part of the page out. Fractions are in 0..1,
    intervals 95 %, KL in nats per response, `minutes` the wall-clock time of the finished stages without the control.
    PrefloopError when `root` holds no stage, or a file that is damaged.
    """
    stages = {name: stage for name in (*STAGES, *_CONTROL) if (stage := _read_stage(newest(root, name)))}
    if not stages:
        raise PrefloopError(f"{root} holds no stage of a run; give the folder above sft/, ppo/, evaluate/.")
    samples = _samples(stages, "evaluate")
    evaluation = summarize(samples) if samples else None
    pairs = [heldout_pair(row) for row in _samples(stages, "reward")]
    reward = measure(pairs) if pairs else None
    rounds = all_rounds(root)
    report = {"run": root.resolve().name, **_figures(stages, evaluation, reward), "rounds": rounds}
    if rounds:
        once = sum(stage.result["seconds"] for stage in stages.values() if stage.result and stage.folder.parent == root)
        report["minutes"] = sum(one["minutes"] for one in rounds) + once / 60
    write_atomic(root / "report.json", json.dumps(report, indent=2, allow_nan=False) + "\n")
    write_atomic(root / "report.html", _page(report, stages, evaluation, reward, samples))
    return report


def heldout_pair(row: Mapping[str, Any]) -> HeldoutPair:
    """A line of a reward stage's samples.jsonl."""
    return HeldoutPair(**{f.name: row[f.name] for f in fields(HeldoutPair) if f.name in row})


def last_third_kl(rollouts: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean over the last third of the steps (at least one) of the mean KL of a step's rollouts, nats per response."""
    by_step: defaultdict[int, list[float]] = defaultdict(list)
    for row in rollouts:
        if "kl" in row:
            by_step[row["step"]].append(row["kl"])
    last = sorted(by_step)[-max(1, len(by_step) // 3) :]
    return sum(sum(by_step[step]) / len(by_step[step]) for step in last) / len(last) if last else None


def _figures(
    stages: Mapping[str, _Stage], evaluation: Mapping[str, Any] | None, reward: RewardReport | None
) -> dict[str, Any]:
    control = _samples(stages, "control/evaluate")
    shuffled = summarize(control) if control else None
    online = _online(stages)
    leash = stages[online].config.get("kl", {}) if online else {}
    label = stages["label"].result if "label" in stages else None
    return {
        "minutes": sum(s for name, s in _seconds(stages).items() if name not in _CONTROL) / 60,
        **{key: evaluation[key] if evaluation else None for key in EVALUATED},
        "control_shuffled_labels": shuffled
        and {"win_rate": shuffled["win_rate"], "low": shuffled["win_rate_low"], "high": shuffled["win_rate_high"]},
        "baseline": _baseline(stages["evaluate"].config) if evaluation else None,
        "kl_target": leash.get("target") if _leash(leash) == "target" else None,
        "kl_leash": _leash(leash) if online else None,
        "kl_last_third": last_third_kl(_samples(stages, online)) if online else None,
        "rm_accuracy": reward and reward.accuracy,
        "rm_accuracy_low": reward and reward.accuracy_low,
        "rm_accuracy_high": reward and reward.accuracy_high,
        "rm_ceiling": reward and reward.ceiling,
        "rm_longer_wins": reward and reward.longer_wins,
        "rm_shorter_wins": reward and reward.shorter_wins,
        "simulated": bool(label["simulated"]) if label else None,
        "judges": list(label.get("judges", ())) if label else [],
        "online_judges": _online_judges(stages),
    }


def _online_judges(stages: Mapping[str, _Stage]) -> list[str]:
    """The models that decided the pairs of online DPO."""
    return [judge["name"] for judge in stages["online"].config.get("judges", ())] if "online" in stages else []


def online_stage(evaluated: Mapping[str, Any] | None, present: Container[str]) -> str | None:
    """The stage whose rollouts tell of the policy that was evaluated; None when that came by another way.

    evaluated: the evaluation's configuration, None before there is one; present: names of the stages that are there.
    """
    if evaluated is not None and evaluated.get("policy"):
        name = Path(evaluated["policy"]).name
        return name if name in _ONLINE and name in present else None
    return next((name for name in _ONLINE if name in present), None)


def _online(stages: Mapping[str, _Stage]) -> str | None:
    return online_stage(stages["evaluate"].config if "evaluate" in stages else None, stages)


def _seconds(stages: Mapping[str, _Stage]) -> dict[str, float]:
    return {name: stage.result["seconds"] for name, stage in stages.items() if stage.result}


def verdicts(report: Mapping[str, Any]) -> list[Verdict]:
    """What the figures of a report say, in plain sentences; a figure that is null leaves its sentence out."""
    said = []
    if report["win_rate"] is not None:
        said.append(_preference_verdict(report))
    if report["control_shuffled_labels"] and report["win_rate"] is not None:
        said.append(_control_verdict(report))
    if report["kl_last_third"] is not None:
        said.append(_kl_verdict(report))
    if report["rm_accuracy"] is not None:
        said.append(_reward_verdict(report))
    return said


def _preference_verdict(report: Mapping[str, Any]) -> Verdict:
    low, high = report["win_rate_low"], report["win_rate_high"]
    state, opening = (
        ("good", "Preference rose")
        if low > 0.5
        else ("bad", "Preference fell")
        if high < 0.5
        else ("open", "No change shown")
    )
    return Verdict(
        state,
        f"{opening}: the policy's answers are preferred to {report['baseline']}'s in {_percent(report['win_rate'])} of "
        f"comparisons "
        f"(95% interval {_interval(low, high)}, {report['n_prompts']} held-out prompts); "
        f"at equal length {_percent(report['win_rate_length_controlled'])}.",
    )


def _baseline(config: Mapping[str, Any]) -> str:
    """What an evaluation's main baseline is called."""
    first = Path(next(iter(config.get("baselines", ())), "sft"))
    return "SFT" if "sft" in (first.name, first.parent.name) else "the start"


def _leash(kl: Mapping[str, Any]) -> str:
    """What holds the KL per response of a stage with rollouts: "target" where it has one."""
    if kl.get("controller") in ("adaptive", "rate"):
        return "target" if kl.get("per", "response") == "response" else "target per token"
    return {"fixed": "fixed coefficient", None: "no coefficient"}.get(kl.get("controller"), "scheduled coefficient")


def _control_verdict(report: Mapping[str, Any]) -> Verdict:
    control = report["control_shuffled_labels"]
    clear = report["win_rate_low"] > control["high"]
    return Verdict(
        "good" if clear else "open",
        f"The same loop on shuffled labels reaches {_percent(control['win_rate'])} "
        f"({_interval(control['low'], control['high'])}): "
        + ("the gain comes from the labels." if clear else "the run is not clearly above this control."),
    )


def _kl_verdict(report: Mapping[str, Any]) -> Verdict:
    kl, target = report["kl_last_third"], report["kl_target"]
    measured = f"{kl:.2f} nats per response over the last third of the steps"
    if target is None:
        return Verdict("open", f"KL was {measured}, without a target per response ({report['kl_leash']}).")
    on_target = abs(kl / target - 1) <= KL_BAND
    opening = "KL was on target" if on_target else "KL was off target"
    return Verdict("good" if on_target else "bad", f"{opening}: {measured} (target {target:g} ± {KL_BAND:.0%}).")


def _reward_verdict(report: Mapping[str, Any]) -> Verdict:
    best = max(report["rm_longer_wins"], report["rm_shorter_wins"])
    state, opening = (
        ("good", "The reward model beats its controls")
        if report["rm_accuracy_low"] > best
        else ("open", "The reward model is above its controls, but within noise")
        if report["rm_accuracy"] > best
        else ("bad", "The reward model is no better than its controls")
    )
    ceiling = "" if report["rm_ceiling"] is None else f"; these labels' ceiling is {_percent(report['rm_ceiling'])}"
    return Verdict(
        state,
        f"{opening}: it predicts {_percent(report['rm_accuracy'])} of held-out labels "
        f"({_interval(report['rm_accuracy_low'], report['rm_accuracy_high'])}), "
        f"picking the longer answer {_percent(report['rm_longer_wins'])}, "
        f"the shorter {_percent(report['rm_shorter_wins'])}{ceiling}.",
    )


def terminal_summary(report: Mapping[str, Any]) -> Group:
    """A few lines for the terminal: the verdicts, and a table of win rates by slice."""
    marks = {"good": ("✓", "green"), "open": ("?", "yellow"), "bad": ("✗", "red")}
    lines = [Text.assemble((f"{marks[v.state][0]} ", marks[v.state][1]), v.text) for v in verdicts(report)]
    cost = Text(f"{report['run']}: {report['minutes']:.1f} minutes.", style="bold")
    if report["simulated"]:
        by = plain(f"Labels are given by models ({', '.join(report['judges'])})")
        rubric = "Labels and preferences are simulated by a rubric"
        cost.append(f" {by if report['judges'] else rubric}, not given by people.", style="yellow")
    if report["online_judges"]:
        cost.append(f" Models decided pairs ({plain(', '.join(report['online_judges']))}).", style="yellow")
    parts: list[Text | Table] = [cost, *lines]
    if report["slices"]:
        table = Table("slice", "win rate", "95% interval", "prompts", box=None, header_style="dim", pad_edge=False)
        for name, rate in report["slices"].items():
            interval = _interval(rate["low"], rate["high"])
            table.add_row(Text(plain(name)), _percent(rate["win_rate"]), interval, str(rate["n"]))
        parts.append(table)
    return Group(*parts)


def _page(
    report: Mapping[str, Any],
    stages: Mapping[str, _Stage],
    evaluation: Mapping[str, Any] | None,
    reward: RewardReport | None,
    samples: Sequence[Mapping[str, Any]],
) -> str:
    return (
        environment()
        .get_template("report.html")
        .render(
            report=report,
            verdicts=verdicts(report),
            interval=_interval,
            charts={name: Markup(svg) for name, svg in _charts(report, stages, reward).items()},
            models={name: evaluation["models"][name] for name in _order(evaluation["models"])} if evaluation else {},
            reward=reward,
            reward_result=_result(stages, "reward"),
            label=_result(stages, "label"),
            samples=_side_by_side(samples) if samples else [],
            seconds=_seconds(stages),
            stages=stages,
        )
    )


def environment() -> Environment:
    """Templates of reports: all text is escaped, and what is undefined raises."""
    made = Environment(
        loader=PackageLoader("prefloop.evals"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"percent": _percent, "shown": shown, "plain": plain, "pretty": _pretty}
    return made


def _charts(report: Mapping[str, Any], stages: Mapping[str, _Stage], reward: RewardReport | None) -> dict[str, str]:
    charts = {}
    if online := _online(stages):
        rows = _lines(stages[online].folder / "metrics.jsonl")
        simulated = bool(report["simulated"])
        for name, width in (("loop", 9.2), ("loop_narrow", 4.2)):
            charts[name] = loop_chart(rows, kl_target=report["kl_target"], simulated=simulated, width=width)
    if report["slices"]:
        overall = SliceRate(report["win_rate"], report["win_rate_low"], report["win_rate_high"], report["n_prompts"])
        slices = {name: SliceRate(**rate) for name, rate in report["slices"].items()}
        charts["slices"] = slice_chart(overall, slices, report["baseline"])
    if reward:
        accuracies = {
            "always shorter": reward.shorter_wins,
            "always longer": reward.longer_wins,
            "reward model": reward.accuracy,
            "ceiling": reward.ceiling,
        }
        interval = (reward.accuracy_low, reward.accuracy_high)
        charts["accuracy"] = accuracy_chart(accuracies, interval, model="reward model")
        if bins := _result(stages, "reward").get("reliability"):
            charts["reliability"] = reliability_chart([ReliabilityBin(**b) for b in bins])
    if report["rounds"]:
        charts["rounds"] = rounds_chart(report["rounds"])
    if seconds := _seconds(stages):
        charts["cost"] = cost_chart(seconds)
    return charts


def _order(models: Mapping[str, object]) -> list[str]:
    """From the first model of the loop to its last; other baselines stand in front."""
    order = ("base", "sft", "policy")
    return sorted(models, key=lambda name: (order.index(name) if name in order else -1, name))


def _side_by_side(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Random prompts, and of each a random answer before and after; whoever won."""
    rng = random.Random(0)
    answers: defaultdict[str, defaultdict[str, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        answers[sample["prompt"]["id"]][sample["model"]].append(sample)
    chosen = []
    for prompt in rng.sample(sorted(answers), min(_SHOWN_SAMPLES, len(answers))):
        before, after = (
            rng.choice(sorted(answers[prompt][model], key=lambda s: str(s["completion"]["id"])))
            for model in ("sft", "policy")
        )
        result = _OUTCOMES[outcome(after["score"], before["score"])]
        chosen.append({"prompt": after["prompt"], "before": before, "after": after, "outcome": result})
    return chosen


def shown(text: object) -> Markup:
    """Text of a model or user for the page: escaped, isolated in <bdi>, with hidden characters spelled out."""
    parts = (
        Markup('<span class="hidden">U+{:04X}</span>').format(ord(c)) if _is_hidden(c) else escape(c) for c in str(text)
    )
    return Markup("<bdi>{}</bdi>").format(Markup("").join(parts))


def plain(text: str) -> str:
    return "".join(f"U+{ord(c):04X}" if _is_hidden(c) or c in "\n\t" else c for c in text)


def _is_hidden(character: str) -> bool:
    return character not in "\n\t" and unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}%"


def _interval(low: float, high: float) -> str:
    return f"{100 * low:.1f} to {100 * high:.1f}%"


def _pretty(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _result(stages: Mapping[str, _Stage], name: str) -> Mapping[str, Any]:
    return (stages[name].result if name in stages else None) or {}


def _read_stage(folder: Path) -> _Stage | None:
    config, run, result = (_json(folder / f"{name}.json") for name in ("config", "run", "result"))
    return None if config is None else _Stage(folder, config, run or {}, result)


def _json(path: Path) -> Any:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise PrefloopError(f"{path} is damaged ({error}); run the stage again.") from None


def _samples(stages: Mapping[str, _Stage], name: str) -> list[dict[str, Any]]:
    """The samples of a finished stage."""
    stage = stages.get(name)
    return _lines(stage.folder / "samples.jsonl") if stage and stage.result else []


def _lines(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_jsonl(path)] if path.exists() and path.stat().st_size else []
