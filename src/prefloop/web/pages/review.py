"""The items whose labels differ most, for a reviewer to look at one after another."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from prefloop.store.campaigns import Campaign
from prefloop.store.figures import Disputed
from prefloop.store.overview import ItemRow
from prefloop.web.pages.campaign import campaign_of, shell
from prefloop.web.security import allowed
from prefloop.web.templating import workspace
from prefloop.web.workspace import Workspace


@allowed("reviewer")
def review(request: Request) -> Response:
    work, campaign = workspace(request), campaign_of(request)
    shown, busy = work.live.of(campaign.run)
    waiting, done = queue(work, campaign)
    as_of = shown.figures.number if shown else None
    return shell(request, "campaign/review.html", campaign, waiting=waiting, done=done, as_of=as_of, busy=busy)


def queue(work: Workspace, campaign: Campaign) -> tuple[list[tuple[Disputed, ItemRow]], list[tuple[Disputed, ItemRow]]]:
    """The disputed items that no reviewer has judged, and those that one has; the lowest agreement first."""
    shown, _ = work.live.of(campaign.run)
    disputed = shown.figures.disputed if shown else []
    ids = [one.comparison_id for one in disputed]
    items, reviewed = work.overview.items_by_id(campaign.run, ids), work.overview.reviewed(campaign.run, ids)
    rows = [(one, items[one.comparison_id]) for one in disputed if one.comparison_id in items]
    waiting = [(one, row) for one, row in rows if one.comparison_id not in reviewed]
    return waiting, [(one, row) for one, row in rows if one.comparison_id in reviewed]


ROUTES = [Route("/c/{campaign}/review", review)]
