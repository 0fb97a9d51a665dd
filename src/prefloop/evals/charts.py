"""Charts of a report as SVG text for an HTML page, coloured by the page's CSS variables so that they follow its theme.

Every function returns one <svg> element without ids that could clash, script, links or fonts. Text stays text.
"""

import html
import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from prefloop.evals.reward_model import ReliabilityBin
from prefloop.evals.winrate import SliceRate

KL_BAND = 0.2
"""Half-width of the band around the KL target, as a share of it: where Ziegler et al. 2019 clip the error."""
_SMOOTHING = 5
_INK, _MUTED, _LINE, _BLUE, _ORANGE, _GREEN = (f"#{i:02x}0{i}0{i}" for i in range(1, 7))
_VARIABLES = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _LINE: "var(--line)",
    _BLUE: "var(--blue)",
    _ORANGE: "var(--orange)",
    _GREEN: "var(--green)",
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": _INK,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.xmargin": 0.02,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "text.color": _INK,
    "text.parse_math": False,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.labelcolor": _MUTED,
}


def loop_chart(rows: Sequence[Mapping[str, float]], *, kl_target: float | None, simulated: bool, width: float) -> str:
    """Score that is trained on, KL with its target band, KL coefficient and preference over steps; `width` in inches.

    rows: metrics.jsonl lines of a stage with rollouts. A series that was not logged leaves its panel out. Empty text
    when none was.
    """
    panels: list[tuple[str, str, float]] = [
        ("reward/score", "Score that is trained on (a reward model's in stds within prompts)", 3.0),
        ("kl/response", "KL to the reference (nats per response)", 3.0),
        ("kl/coef", "KL coefficient (reward per nat)", 1.6),
        ("gold/win_rate", "Preferred to the starting policy" + (", by simulated judges" if simulated else ""), 3.0),
    ]
    series = {name: [(row["step"], row[name]) for row in rows if name in row] for name, _, _ in panels}
    drawn = [panel for panel in panels if series[panel[0]]]
    if not drawn:
        return ""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, 0.5 + 0.56 * sum(height for _, _, height in drawn)), layout="constrained")
        heights = [height for _, _, height in drawn]
        grid = figure.subplots(len(drawn), sharex=True, squeeze=False, height_ratios=heights)
        for axes, (name, title, _) in zip(grid[:, 0], drawn, strict=True):
            axes.set_title(title)
            _PANELS[name](axes, [step for step, _ in series[name]], [value for _, value in series[name]], kl_target)
        grid[-1, 0].set_xlabel("step")
        grid[-1, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
        return _svg(
            figure,
            "Score that is trained on, KL to the reference, its coefficient and preference over steps",
            f"loop{width}",
        )


def _draw_reward(axes: Axes, steps: Sequence[float], values: Sequence[float], _: float | None) -> None:
    _draw_noisy(axes, steps, values, _BLUE)


def _draw_kl(axes: Axes, steps: Sequence[float], values: Sequence[float], target: float | None) -> None:
    if target is not None:
        axes.axhspan(target * (1 - KL_BAND), target * (1 + KL_BAND), color=_GREEN, alpha=0.16, linewidth=0)
        axes.axhline(target, color=_GREEN, linewidth=1.2, linestyle=(0, (5, 3)))
        axes.annotate(
            f"target {target:g} ± {KL_BAND:.0%}",
            (0.005, target * (1 + KL_BAND)),
            xycoords=("axes fraction", "data"),
            xytext=(2, -2),
            textcoords="offset points",
            va="top",
            color=_GREEN,
            fontsize=9.5,
        )
    axes.plot(steps, values, color=_ORANGE, marker=".", markersize=5)
    axes.set_ylim(bottom=min(0, *values))


def _draw_coefficient(axes: Axes, steps: Sequence[float], values: Sequence[float], _: float | None) -> None:
    axes.step(steps, values, where="post", color=_MUTED, linewidth=1.4)
    axes.set_ylim(0, max(values) * 1.15 or 1)
    axes.yaxis.set_major_locator(MaxNLocator(3))


def _draw_preference(axes: Axes, steps: Sequence[float], values: Sequence[float], _: float | None) -> None:
    axes.axhline(0.5, color=_MUTED, linewidth=1, linestyle=(0, (2, 2)))
    _draw_noisy(axes, steps, values, _GREEN)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylim(min(0.4, *values) - 0.02, max(0.6, *values) + 0.02)


_PANELS = {
    "reward/score": _draw_reward,
    "kl/response": _draw_kl,
    "kl/coef": _draw_coefficient,
    "gold/win_rate": _draw_preference,
}


def _draw_noisy(axes: Axes, steps: Sequence[float], values: Sequence[float], color: str) -> None:
    axes.plot(steps, values, ".", color=color, alpha=0.45, markersize=6, label="each step")
    axes.plot(steps, _smooth(values), color=color, label=f"mean of {_SMOOTHING} steps")
    axes.legend(loc="lower right", fontsize=9.5, ncols=2, borderaxespad=0.1, handlelength=1.4, columnspacing=1.2)


def _smooth(values: Sequence[float]) -> list[float]:
    """Centred moving mean over 5 values, over fewer at both ends."""
    half = _SMOOTHING // 2
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def slice_chart(overall: SliceRate, slices: Mapping[str, SliceRate], baseline: str) -> str:
    """Win rates with their intervals as dots on one axis with a line at 50%: all prompts, then slices, best first."""
    rows = [("all prompts", overall), *sorted(slices.items(), key=lambda item: -item[1].win_rate)]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.4, 0.75 + 0.31 * len(rows)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0.5, color=_MUTED, linewidth=1, linestyle=(0, (2, 2)))
        for y, (_, rate) in enumerate(rows):
            color = _BLUE if rate.low > 0.5 else _ORANGE if rate.high < 0.5 else _MUTED
            axes.plot([rate.low, rate.high], [y, y], color=color, linewidth=2.2 if y else 3)
            axes.plot(rate.win_rate, y, "o" if y else "D", color=color, markersize=6.5)
        axes.set_yticks(range(len(rows)), [f"{_short(name)} ({rate.n})" for name, rate in rows])
        axes.tick_params(axis="y", labelcolor=_INK, length=0)
        axes.grid(visible=False, axis="y")
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(min(0.25, *(r.low for _, r in rows)) - 0.03, max(0.75, *(r.high for _, r in rows)) + 0.03)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xlabel(f"win rate against {baseline}, 95% interval")
        return _svg(figure, f"Win rates against {baseline} by slice with 95% intervals", "slices")


def reliability_chart(bins: Sequence[ReliabilityBin]) -> str:
    """Observed share against predicted probability; the diagonal is perfect calibration; area of a dot is its pairs."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.4, 3.5), layout="constrained")
        axes = figure.subplots()
        low = min(0.4, *(b.observed for b in bins)) - 0.03
        axes.plot([0.5, 1], [0.5, 1], color=_MUTED, linewidth=1, linestyle=(0, (2, 2)))
        axes.plot([b.predicted for b in bins], [b.observed for b in bins], color=_BLUE, linewidth=1.2, alpha=0.5)
        most = max(b.n for b in bins)
        axes.scatter(
            [b.predicted for b in bins], [b.observed for b in bins], [60 * b.n / most for b in bins], color=_BLUE
        )
        axes.set_xlim(0.48, 1.02)
        axes.set_ylim(low, 1.03)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_title("Does its confidence hold?")
        axes.set_xlabel("predicted share for its favourite")
        axes.set_ylabel("share of annotators")
        return _svg(figure, "Reliability of the reward model's confidence", "reliability")


def accuracy_chart(accuracies: Mapping[str, float | None], interval: tuple[float, float], *, model: str) -> str:
    """Bars of held-out accuracies; the one named `model` stands out and carries its interval. None is left out."""
    shown = [(name, value) for name, value in accuracies.items() if value is not None]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.4, 3.5), layout="constrained")
        axes = figure.subplots()
        values = [value for _, value in shown]
        ticks = range(len(shown))
        bars = axes.barh(ticks, values, 0.6, color=[_BLUE if name == model else _MUTED for name, _ in shown])
        for y, (bar, (name, value)) in enumerate(zip(bars, shown, strict=True)):
            bar.set_alpha(1 if name == model else 0.45)
            if name == model:
                axes.errorbar(
                    value, y, xerr=[[value - interval[0]], [interval[1] - value]], color=_INK, capsize=3, lw=1.2
                )
        axes.axvline(0.5, color=_MUTED, linewidth=1, linestyle=(0, (2, 2)))
        axes.set_yticks(ticks, [f"{name}\n{value:.1%}" for name, value in shown])
        axes.tick_params(axis="y", labelcolor=_INK, length=0)
        axes.grid(visible=False, axis="y")
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_title("Held-out pairs predicted right")
        return _svg(figure, "Accuracy of the reward model beside its controls and ceiling", "accuracy")


def rounds_chart(rounds: Sequence[Mapping[str, Any]]) -> str:
    """Score by the reward that was trained on and by the judge that watched, KL and win rate over the rounds of a run.
    What no round has is left out; empty text when that is all. rounds: see evals.rounds.round_figures."""
    panels = [
        ("proxy", "Score by the reward trained on", _BLUE),
        ("watch", "Score by the watching judge", _GREEN),
        ("kl", "KL to the baseline (nats per response)", _ORANGE),
        ("win_rate", "Preferred to the baseline", _GREEN),
    ]
    drawn = [panel for panel in panels if any(one[panel[0]] is not None for one in rounds)]
    if not drawn:
        return ""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.4, 0.5 + 1.5 * len(drawn)), layout="constrained")
        grid = figure.subplots(len(drawn), sharex=True, squeeze=False)[:, 0]
        for axes, (name, title, color) in zip(grid, drawn, strict=True):
            known = [one for one in rounds if one[name] is not None]
            places, values = [one["round"] for one in known], [one[name] for one in known]
            if name == "win_rate":
                axes.axhline(0.5, color=_MUTED, linewidth=1, linestyle=(0, (2, 2)))
                low, high = ([one[f"win_rate_{end}"] for one in known] for end in ("low", "high"))
                axes.vlines(places, low, high, color=color)
                axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            axes.plot(places, values, color=color, marker="o", markersize=5)
            axes.set_title(title)
        grid[-1].set_xlabel("round")
        grid[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        return _svg(figure, "Scores, KL and win rate over the rounds", "rounds")


def cost_chart(seconds: Mapping[str, float]) -> str:
    """Wall-clock minutes by stage."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.4, 0.65 + 0.3 * len(seconds)), layout="constrained")
        axes = figure.subplots()
        minutes = [value / 60 for value in seconds.values()]
        ticks = range(len(minutes))
        controls = [name.startswith("control") for name in seconds]
        axes.barh(ticks, minutes, 0.6, color=[_MUTED if control else _BLUE for control in controls])
        for y, value in zip(ticks, minutes, strict=True):
            axes.annotate(
                f"{value:.1f}", (value, y), xytext=(5, 0), textcoords="offset points", va="center", color=_INK
            )
        axes.set_yticks(ticks, [_short(name) for name in seconds])
        axes.tick_params(axis="y", labelcolor=_INK, length=0)
        axes.grid(visible=False, axis="y")
        axes.invert_yaxis()
        axes.set_xlim(0, max(minutes) * 1.12 or 1)
        axes.set_xlabel("minutes")
        return _svg(figure, "Wall-clock minutes by stage", "cost")


def interval_chart(
    rows: Sequence[tuple[str, float, float, float, str]], *, band: float, axis: str, title: str, width: float
) -> str:
    """Values with their intervals as dots, a row each, coloured by state (good, open, bad), over a band around 0.

    rows: (name, value, low, high, state); what lies farther out than six times the band stands at the edge as an arrow.
    `width` in inches, `axis`: what the values are.
    """
    edge = 6 * band
    colors = {"good": _GREEN, "open": _MUTED, "bad": _ORANGE}
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, 0.75 + 0.25 * len(rows)), layout="constrained")
        axes = figure.subplots()
        axes.axvspan(-band, band, color=_MUTED, alpha=0.14, linewidth=0)
        for state, color in colors.items():
            own = [(y, *row[1:4]) for y, row in enumerate(rows) if row[4] == state]
            inside = [one for one in own if abs(one[1]) <= edge]
            axes.hlines(
                [y for y, *_ in inside], [o[2] for o in inside], [o[3] for o in inside], color=color, linewidth=2
            )
            axes.plot([o[1] for o in inside], [y for y, *_ in inside], "o", color=color, markersize=6)
            for marker, sign in (("<", -1), (">", 1)):
                outside = [y for y, value, *_ in own if sign * value > edge]
                axes.plot([sign * edge] * len(outside), outside, marker, color=color, markersize=6)
        axes.set_yticks(range(len(rows)), [_short(name) for name, *_ in rows])
        axes.tick_params(axis="y", labelcolor=_INK, length=0)
        axes.grid(visible=False, axis="y")
        axes.set_xlim(-edge - 0.1, edge + 0.1)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(axis)
        return _svg(figure, title, f"{title}{width}")


def best_of_chart(ns: Sequence[int], gains: Sequence[tuple[float, float, float]], most: Sequence[float]) -> str:
    """Gain of gold by n, (value, low, high) each, beside what gold itself would gain."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.4, 3.0), layout="constrained")
        axes = figure.subplots()
        axes.axhline(0, color=_MUTED, linewidth=1, linestyle=(0, (2, 2)))
        axes.plot(ns, most, color=_MUTED, marker=".", label="gold itself")
        axes.plot(ns, [value for value, _, _ in gains], color=_BLUE, marker="o", markersize=5, label="the reward")
        axes.fill_between(
            ns, [low for _, low, _ in gains], [high for _, _, high in gains], color=_BLUE, alpha=0.16, lw=0
        )
        axes.set_xscale("log", base=2)
        axes.set_xticks(ns, [str(n) for n in ns])
        axes.set_xlabel("n")
        axes.set_title("Gold gained by the best of n (gold stds)")
        axes.legend(loc="upper left", fontsize=9.5)
        return _svg(figure, "Gain of gold by best of n", "best of n")


def map_chart(points: Sequence[tuple[float, float, str]]) -> str:
    """(distance, disagreement, where from) as dots: held-out answers and, if any, new samples."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.4, 3.3), layout="constrained")
        axes = figure.subplots()
        for role, color, label in (("heldout", _BLUE, "held-out answers"), ("new", _ORANGE, "new samples")):
            own = [(x, y) for x, y, where in points if where == role]
            if own:
                axes.plot([x for x, _ in own], [y for _, y in own], ".", color=color, alpha=0.55, label=label)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("distance from the training answers")
        axes.set_ylabel("std over members")
        axes.legend(fontsize=9.5)
        return _svg(figure, "Disagreement of the members by distance from the training answers", "map")


def _short(name: str) -> str:
    printable = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in name)
    return printable if len(printable) <= 24 else printable[:23] + "…"


def _svg(figure: Figure, label: str, salt: str) -> str:
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[\w.]+_\d+"| font-family: [^;]*;', "", svg)
    opening, body = svg.split(">", 1)
    view = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', opening)
    assert view, "matplotlib writes a viewBox"
    size = f'viewBox="{view[0][9:-1]}" width="{math.ceil(float(view[1]) * 4 / 3)}"'
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    for color, variable in _VARIABLES.items():
        body = body.replace(color, variable)
    return f'<svg {namespaces} {size} role="img" aria-label="{html.escape(label)}">{body}'
