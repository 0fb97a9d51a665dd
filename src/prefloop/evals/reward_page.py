"""A report on a reward as JSON for programs, a page for people, and lines for the terminal."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from rich.console import Group
from rich.text import Text

from prefloop.data.heldout import distinct_pairs
from prefloop.evals.charts import accuracy_chart, best_of_chart, interval_chart, map_chart, reliability_chart
from prefloop.evals.report import environment, plain
from prefloop.evals.reward_figures import FALSE_ALARMS, LEVEL_EACH, RewardFigures
from prefloop.evals.reward_model import ReliabilityBin
from prefloop.evals.reward_plan import ORIGINAL, Scored
from prefloop.evals.reward_verdicts import LEAST_SHIFT, Finding, probe_state
from prefloop.types import Json, Preference, to_json

_SHOWN_MISTAKES = 6
_MARKS = {"good": ("✓", "green"), "open": ("?", "yellow"), "bad": ("✗", "red")}
_EXPECTED = {"same": "stay", "no_gain": "not rise", "no_loss": "not fall", "drop": "fall", "fall": "fall far"}


def summary(figures: RewardFigures, found: Sequence[Finding]) -> dict[str, Any]:
    """The report for programs: verdicts and every figure; null where one is undefined."""
    probes = [to_json(probe) | {"state": probe_state(probe)} for probe in figures.probes]
    made = {"verdicts": to_json(found), "false_alarms": FALSE_ALARMS, "level_each": LEVEL_EACH}
    whole: dict[str, Any] = _finite(made | to_json(figures) | {"probes": probes})
    return whole


def page(result: Mapping[str, Any], heldout: Sequence[Preference], scored: Sequence[Scored]) -> str:
    """report.html: `result` as `summary` makes it, with its reward's name, and the texts that it is about."""
    return (
        environment()
        .get_template("reward.html")
        .render(
            result=result,
            charts={name: Markup(svg) for name, svg in _charts(result).items()},
            examples=_examples(scored),
            mistakes=_mistakes(heldout, scored),
            expected=_EXPECTED,
            number=_number,
            share=_share,
        )
    )


def terminal_summary(result: Mapping[str, Any]) -> Group:
    """The verdicts, and below a bad or open one what to do."""
    report = result["held_out"]
    head = f"{result['reward']}: {report['n']} held-out comparisons of {result['prompts']} prompts."
    lines = [Text(plain(head), "bold")]
    for verdict in result["verdicts"]:
        mark, color = _MARKS[verdict["state"]]
        lines.append(Text.assemble((f"{mark} {verdict['name']}: ", color), plain(verdict["text"])))
        if verdict["state"] == "bad":
            lines.append(Text(f"  -> {verdict['remedy']}"))
    return Group(*lines)


def _charts(result: Mapping[str, Any]) -> dict[str, str]:
    report, controls = result["held_out"], result["controls"]
    accuracies = {name: controls[name]["value"] for name in ("shorter wins", "longer wins", "TF-IDF pairs")}
    accuracies["the reward"] = report["accuracy"]
    if report["ceiling"] is not None:
        accuracies["ceiling"] = report["ceiling"]
    elif result["single"]["value"] is not None:
        accuracies |= {"the reward, single votes": result["single"]["value"]}
        accuracies |= {"ceiling, single votes": result["ceiling"]["value"]}
    charts = {
        "accuracy": accuracy_chart(
            accuracies,
            (report["accuracy_low"], report["accuracy_high"]),
            model="the reward",
        ),
        "reliability": reliability_chart([ReliabilityBin(**part) for part in report["reliability"]]),
    }
    tried = [probe for probe in result["probes"] if probe["shift"]["low"] is not None]
    rows = [(p["name"], *(p["shift"][key] for key in ("value", "low", "high")), p["state"]) for p in tried]
    for name, width in (("probes", 9.2), ("probes_narrow", 4.2)) if rows else ():
        charts[name] = interval_chart(
            rows,
            band=LEAST_SHIFT,
            axis="shift of the score, reference stds",
            title="Shift of the score by each change",
            width=width,
        )
    if best := [one for one in result["best_of"] if one["gain"]["low"] is not None]:
        gains = [(one["gain"]["value"], one["gain"]["low"], one["gain"]["high"]) for one in best]
        charts["best_of"] = best_of_chart([one["n"] for one in best], gains, [one["most"] for one in best])
    if result["disagreement"]:
        charts["map"] = map_chart([tuple(point) for point in result["disagreement"]["points"]])
    return charts


def _examples(scored: Sequence[Scored]) -> dict[str, dict[str, Any]]:
    """Of each change the answer on which it shifted the score in the middle of all."""
    originals = {one.ask.prompt.id: one for one in scored if one.ask.role == "probe" and one.ask.probe == ORIGINAL}
    found: dict[str, list[Scored]] = {}
    for one in scored:
        if one.ask.role == "probe" and one.ask.probe != ORIGINAL:
            found.setdefault(one.ask.probe, []).append(one)
    examples = {}
    for name, own in found.items():
        own.sort(key=lambda one: one.score - originals[one.ask.prompt.id].score)
        one = own[len(own) // 2]
        examples[name] = {"prompt": one.ask.prompt, "before": originals[one.ask.prompt.id], "after": one}
    return examples


def _mistakes(heldout: Sequence[Preference], scored: Sequence[Scored]) -> list[dict[str, Any]]:
    """The comparisons on which the reward is wrong by the most."""
    scores = {(o.ask.prompt.id, o.ask.completion.id): o.score for o in scored if o.ask.role == "heldout"}
    wrong: list[tuple[float, dict[str, Any]]] = []
    for pair in distinct_pairs(heldout):
        target = 1.0 if pair.target is None else pair.target
        a, b = ((item, scores[pair.prompt.id, item.id]) for item in pair.items)
        better, worse = (a, b) if target > 0.5 else (b, a)
        if target != 0.5 and worse[1] > better[1]:
            about = {"prompt": pair.prompt, "better": better, "worse": worse, "votes": max(target, 1 - target)}
            wrong.append((better[1] - worse[1], about))
    return [about for _, about in sorted(wrong, key=lambda one: one[0])[:_SHOWN_MISTAKES]]


def _finite(value: Json) -> Json:
    """JSON has no NaN and no infinity."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(figure: Mapping[str, Any] | float | None, digits: int = 2) -> str:
    """A figure with its interval."""
    if not isinstance(figure, Mapping):
        return "not known" if figure is None else f"{figure:.{digits}f}"
    if figure["value"] is None:
        return "not known"
    value, low, high = (None if figure[k] is None else f"{figure[k]:+.{digits}f}" for k in ("value", "low", "high"))
    return f"{value}" if low is None else f"{value} ({low} to {high})"


def _share(figure: Mapping[str, Any]) -> str:
    """A share's interval in percent."""
    return "" if figure["low"] is None else f"{100 * figure['low']:.1f} to {100 * figure['high']:.1f}%"
