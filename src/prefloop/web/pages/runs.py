"""Runs as they train: reward, KL and preference on one chart, what else was logged, and answers before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from prefloop.store.campaigns import Campaign, MissingError
from prefloop.web import charts, runfiles
from prefloop.web.charts import Panel, Series, Unit
from prefloop.web.runfiles import RunFolder, Stage
from prefloop.web.security import allowed
from prefloop.web.templating import page, workspace


@dataclass(frozen=True, slots=True)
class Line:
    """A metric and what it is called; `panel` by panel from the top, whose axis it decides where it comes first."""

    metric: str
    name: str
    panel: int
    y: Unit = "number"
    reference: float | None = None


_ROLLOUTS = {
    "Reward, KL and preference": (
        Line("reward/score", "Score that is trained on", 0),
        Line("kl/response", "KL to the reference, nats per response", 1),
        Line("kl/target", "KL target", 1),
        Line("gold/win_rate", "Preferred to the starting policy", 2, "share", 0.5),
    ),
    "Entropy and length": (
        Line("policy/entropy", "Entropy, nats per token", 0),
        Line("length/tokens", "Length, tokens", 1),
        Line("length/stopped_share", "Answers that end by themselves", 2, "share"),
    ),
}
_ACCURACY = (
    Line("accuracy/train", "Accuracy on the batch in training", 0, "share", 0.5),
    Line("loss/train", "Loss", 1),
)
_REJECTION = (
    Line("reward/best", "Best of n, by prompts", 0),
    Line("reward/median", "Median of n", 0),
    Line("loss/train", "Fine-tuning loss", 1),
)
CHARTS: Mapping[str, Mapping[str, Sequence[Line]]] = {
    "ppo": _ROLLOUTS,
    "group": _ROLLOUTS,
    "online": _ROLLOUTS,
    "rejection": {"Rejection sampling": _REJECTION},
    "direct": {"Direct preference": _ACCURACY},
    "reward": {"Reward model": _ACCURACY},
    "sft": {"Fine-tuning": (Line("loss/train", "Loss", 0),)},
}
"""By stage, in the order of the page: title of the chart, its lines."""

_FIGURES = {
    "collect": ("answers:", "completions"),
    "label": ("labels:", "judgments"),
    "reward": ("held-out accuracy", "accuracy"),
    "ppo": ("KL over the last third", "kl_last_third"),
    "group": ("KL over the last third", "kl_last_third"),
    "online": ("KL over the last third", "kl_last_third"),
    "rejection": ("best less median", "max_minus_median"),
    "direct": ("held-out accuracy", "accuracy"),
    "evaluate": ("preferred to the start in", "win_rate"),
}
_SHARES = ("accuracy", "win_rate")


@allowed("reviewer")
def overview(request: Request) -> Response:
    return page(request, "runs/overview.html", runs=runfiles.find_all(workspace(request).folder))


@allowed("reviewer")
def show(request: Request) -> Response:
    work = workspace(request)
    run = runfiles.find(work.folder, request.path_params["run"])
    shown = [(stage, title, chart) for stage in CHARTS for title, chart in _charts(run, stage)]
    over = _overshoot(run)
    sides = runfiles.sides(run, _number(request, "prompt") - 1, request.query_params.get("before", "sft"))
    return page(
        request,
        "runs/run.html",
        run=run,
        now=_now(run),
        figures={name: _judged_by(stage) for name, stage in run.stages.items()},
        charts=shown,
        over=over,
        sides=sides,
        evaluation=run.stages["evaluate"].result if run.begun("evaluate") else {},
        reward=run.stages["reward"].result if run.begun("reward") else {},
        campaigns=_campaigns(request, run),
    )


@allowed("reviewer")
def series(request: Request) -> Response:
    """What a stage logged after step `after`, and how the run stands: a page asks for it while the run goes on."""
    run = runfiles.find(workspace(request).folder, request.path_params["run"])
    stage = run.stages.get(request.path_params["stage"])
    if stage is None:
        raise MissingError("This run has no such stage.")
    names = [line.metric for lines in CHARTS.get(stage.name, {}).values() for line in lines]
    found = runfiles.series(stage, names, _number(request, "after", -1))
    return JSONResponse({"state": run.state, "stage": _now(run), "step": stage.step, "series": found})


def _charts(run: RunFolder, name: str) -> list[tuple[str, Markup]]:
    """The charts of a stage that has logged something."""
    if not run.begun(name):
        return []
    stage, made = run.stages[name], []
    over = _overshoot(run) if stage is run.online else None
    for title, lines in CHARTS[name].items():
        found = runfiles.series(stage, [line.metric for line in lines], -1)
        drawn = [line for line in lines if found[line.metric]]
        panels = [
            Panel(
                series=[_series(line, found) for line in drawn if line.panel == place],
                y=next(line.y for line in drawn if line.panel == place),
                reference=next(line.reference for line in drawn if line.panel == place),
            )
            for place in sorted({line.panel for line in drawn})
        ]
        if panels:
            first = next(iter(CHARTS[name])) == title
            mark = over.step if over and first else None
            made.append(
                (" ".join(line.metric for line in drawn), charts.panels(title, panels, x_name="step", mark=mark))
            )
    return made


def _series(line: Line, found: Mapping[str, Sequence[runfiles.Point]]) -> Series:
    points = found[line.metric]
    return Series(name=line.name, x=[step for step, _ in points], y=[value for _, value in points])


def _overshoot(run: RunFolder) -> runfiles.Overshoot | None:
    if run.online is None:
        return None
    found = runfiles.series(run.online, ["reward/score", "gold/win_rate"], -1)
    return runfiles.overshoot(found["reward/score"], found["gold/win_rate"])


def _campaigns(request: Request, run: RunFolder) -> list[Campaign]:
    """Those whose labels are this run's."""
    return [c for c in workspace(request).campaigns.all() if c.run.startswith(f"runs/{run.name}/")]


def _now(run: RunFolder) -> str:
    return run.current.name if run.current else ""


def _number(request: Request, name: str, default: int = 1) -> int:
    try:
        return int(request.query_params.get(name, default))
    except ValueError:
        return default


def _judged_by(stage: Stage) -> str:
    """The figure that a finished stage is judged by."""
    name, key = _FIGURES.get(stage.name, ("", ""))
    value = stage.result.get(key)
    if not isinstance(value, int | float):
        return ""
    return f"{name} {100 * value:.1f} %" if key in _SHARES else f"{name} {value:,.4g}"


ROUTES = [
    Route("/runs", overview),
    Route("/runs/{run}", show),
    Route("/runs/{run}/{stage}/series", series),
]
