"""One labeler in one campaign: pace, agreement, side, known answers, and what their labels weigh."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from prefloop.store.accounts import Account
from prefloop.store.campaigns import MissingError
from prefloop.store.figures import CampaignFigures, Labeler
from prefloop.web import charts
from prefloop.web.charts import Series
from prefloop.web.forms import field
from prefloop.web.pages.campaign import campaign_of, shell
from prefloop.web.security import allowed
from prefloop.web.templating import workspace

_SPANS = 24


@allowed("reviewer")
def labeler(request: Request) -> Response:
    return _page(request)


@allowed("reviewer")
def pause(request: Request) -> Response:
    """Hand out no more tasks to somebody, or hand them out again. Reviewers may do so with labelers alone."""
    work, me, name = workspace(request), request.state.account, request.path_params["name"]
    account = work.accounts.find(name)
    if account is None:
        raise MissingError("There is no such account.")
    if not _may_pause(me, account):
        return _page(request, error="Only an admin can pause a reviewer or an admin.")
    work.accounts.pause(account.name, field(request, "do") == "pause", by=me.name)
    return RedirectResponse(request.url.path, 303)


def weight(accuracy: float | None) -> float | None:
    """What a label of somebody of this accuracy weighs: its log-odds, in nats."""
    return None if accuracy is None or not 0 < accuracy < 1 else math.log(accuracy / (1 - accuracy))


def _page(request: Request, *, error: str = "") -> Response:
    work, campaign, name = workspace(request), campaign_of(request), request.path_params["name"]
    shown, _ = work.live.of(campaign.run)
    found = next((one for one in shown.figures.labelers if one.name == name), None) if shown else None
    account = work.accounts.find(name)
    account = account if account and account.name == name else None
    if found is None and account is None:
        raise MissingError("Nobody of that name has labeled here.")
    return shell(
        request,
        "campaign/labeler.html",
        campaign,
        status=400 if error else 200,
        name=name,
        found=found,
        as_of=shown.figures.number if shown else None,
        person=account,
        may_pause=account is not None and _may_pause(request.state.account, account),
        weight=weight(found.accuracy) if found else None,
        error=error,
        plots=[*_with_others(shown.figures, found), *_pace(work.overview.times(campaign.run, name))]
        if shown and found
        else [],
    )


def _may_pause(me: Account, other: Account) -> bool:
    return me.may("admin") or other.role == "labeler"


def _with_others(figures: CampaignFigures, mine: Labeler) -> list[Markup]:
    both, names = figures.pairs, [figures.labelers[rater].name for rater in figures.pairs.raters.tolist()]
    if mine.name not in names:
        return []
    me = names.index(mine.name)
    others = [place for place in range(len(names)) if both.shared[me, place] and place != me]
    if not others:
        return []
    values, low, high = ([float(matrix[me, place]) for place in others] for matrix in (both.kappa, both.low, both.high))
    labels = [f"{names[place]}, {both.shared[me, place]} pairs of answers" for place in others]
    return [charts.bars("Cohen's kappa with others", labels, values, low=low, high=high, unit="signed", reference=0.0)]


def _pace(times: Sequence[tuple[float, float | None]]) -> list[Markup]:
    """How quick the last answers were, in spans of equally many."""
    size = max(1, math.ceil(len(times) / _SPANS))
    spans = [times[start : start + size] for start in range(0, len(times), size)]
    took = [sorted(seconds for _, seconds in span if seconds is not None) for span in spans]
    if len(spans) < 2 or not any(took):
        return []
    middle = [one[len(one) // 2] if one else None for one in took]
    series = [Series(name="median", x=[span[-1][0] for span in spans], y=middle)]
    return [charts.line(f"Seconds an answer took, the last {len(times):,}", series, x="time")]


ROUTES = [
    Route("/c/{campaign}/labelers/{name:path}", labeler),
    Route("/c/{campaign}/labelers/{name:path}", pause, methods=["POST"]),
]
