"""A campaign as its reviewers see it: how far it is, how far its labels can be trusted, what it asked when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from prefloop.configs.campaign import CampaignConfig
from prefloop.ops.agreement import RaterPairs
from prefloop.store.campaigns import Campaign
from prefloop.store.figures import CampaignFigures
from prefloop.types import Json
from prefloop.web import charts, settings
from prefloop.web.charts import Series
from prefloop.web.differences import differences
from prefloop.web.forms import field
from prefloop.web.security import allowed
from prefloop.web.templating import page, workspace

_PAIRS = 50
_PEOPLE = 30  # in a heatmap


class Change(NamedTuple):
    """A setting before and after a version."""

    label: str
    before: Markup
    after: Markup


class Pair(NamedTuple):
    """Two labelers, how many items both labeled, and how far they agree."""

    first: str
    second: str
    shared: int
    agreement: float
    kappa: float
    low: float
    high: float


def campaign_of(request: Request) -> Campaign:
    """The campaign of an address. Raises MissingError where there is none."""
    return workspace(request).campaigns.by_id(request.path_params["campaign"])


def shell(request: Request, template: str, campaign: Campaign, *, status: int = 200, **context: Json) -> Response:
    """A page of a campaign, below its name and its tabs."""
    return page(request, template, status=status, campaign=campaign, **context)


@allowed("reviewer")
def manage(request: Request) -> Response:
    work, campaign = workspace(request), campaign_of(request)
    shown, busy = work.live.of(campaign.run)
    return shell(
        request,
        "campaign/manage.html",
        campaign,
        whole=work.progress.campaign(campaign.run),
        counts=work.overview.counts(campaign.run),
        strata=work.overview.strata(campaign.run),
        shown=shown,
        busy=busy,
        pairs=_pairs(shown.figures) if shown else [],
        most=_PAIRS,
        plots=_plots(shown.figures) if shown else [],
    )


@allowed("reviewer")
def figures(request: Request) -> Response:
    """As of which label the figures are, for the script that looks out for newer ones."""
    shown, busy = workspace(request).live.of(campaign_of(request).run)
    return JSONResponse({"number": shown.figures.number if shown else None, "busy": busy})


@allowed("reviewer")
def set_state(request: Request) -> Response:
    campaign = campaign_of(request)
    workspace(request).campaigns.set_state(campaign.run, field(request, "state"), by=request.state.account.name)
    return RedirectResponse(f"/c/{campaign.id}/manage", 303)


@allowed("reviewer")
def versions(request: Request) -> Response:
    campaign = campaign_of(request)
    found = workspace(request).overview.versions(campaign.run)
    earlier = [*(one.config for one in found[1:]), None]
    shown = [(one, _changes(before, one.config)) for one, before in zip(found, earlier, strict=True)]
    return shell(request, "campaign/versions.html", campaign, versions=shown)


def _changes(before: CampaignConfig | None, after: CampaignConfig) -> list[Change]:
    if before is None:
        return []
    old, new = settings.shown(before), settings.shown(after)
    return [
        Change(setting.label, *differences(_said(setting.kind, old[name]), _said(setting.kind, new[name])))
        for name, setting in settings.FIELDS.items()
        if old[name] != new[name]
    ]


def _said(kind: str, text: str) -> str:
    return ("yes" if text else "no") if kind == "check" else text


def _pairs(found: CampaignFigures) -> list[Pair]:
    """The pairs of labelers with the most items in common."""
    both, names = found.pairs, _names(found)
    first, second = np.triu_indices(len(names), 1)
    order = np.argsort(-both.shared[first, second], kind="stable")
    return [
        Pair(
            names[a],
            names[b],
            int(both.shared[a, b]),
            *(float(matrix[a, b]) for matrix in (both.agreement, both.kappa, both.low, both.high)),
        )
        for a, b in zip(first[order].tolist(), second[order].tolist(), strict=True)
        if both.shared[a, b]
    ]


def _names(found: CampaignFigures) -> list[str]:
    return [found.labelers[rater].name for rater in found.pairs.raters.tolist()]


def _plots(found: CampaignFigures) -> list[Markup]:
    made: list[Markup] = []
    if found.over_time:
        middle = [(span.start + span.end) / 2 for span in found.over_time]
        hourly = [3600 * span.labels / (span.end - span.start) for span in found.over_time]
        agreed = [span.agreement for span in found.over_time]
        made.append(charts.line("Labels per hour", [Series(name="all", x=middle, y=hourly)], x="time"))
        if any(value is not None for value in agreed):
            over = [Series(name="agreement", x=middle, y=agreed)]
            made.append(charts.line("Agreement over time", over, x="time", y="share"))
    made += _by_slice(found)
    if 1 < len(found.pairs.raters) <= _PEOPLE and np.isfinite(found.pairs.agreement).any():
        made.append(_heatmap(found.pairs, _names(found)))
    sided = [one for one in found.labelers if one.left.n]
    if sided:
        sides = charts.bars(
            "Choices for the left answer, by labeler",
            [one.name for one in sided],
            [one.left.value for one in sided],
            low=[one.left.low for one in sided],
            high=[one.left.high for one in sided],
            unit="share",
            reference=0.5,
        )
        made.append(sides)
    return made


def _by_slice(found: CampaignFigures) -> list[Markup]:
    slices = {name or "no slice": one.percent for name, one in found.slices.items() if one.percent.n}
    if not slices:
        return []
    low, high = ([getattr(one, end) for one in slices.values()] for end in ("low", "high"))
    values = [one.value for one in slices.values()]
    return [charts.bars("Agreement by slice", list(slices), values, low=low, high=high, unit="share")]


def _heatmap(both: RaterPairs, names: Sequence[str]) -> Markup:
    return charts.heatmap("Agreement of each labeler with each other", names, names, both.agreement.tolist())


ROUTES = [
    Route("/c/{campaign}/manage", manage),
    Route("/c/{campaign}/figures", figures),
    Route("/c/{campaign}/state", set_state, methods=["POST"]),
    Route("/c/{campaign}/versions", versions),
]
