"""Where everybody arrives: their campaigns, or for a first visitor three ways to begin."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from prefloop.store.campaigns import Campaign
from prefloop.types import Json
from prefloop.web import example, sources
from prefloop.web.security import allowed
from prefloop.web.templating import page, workspace

_ORDER = ("open", "paused", "closed")


@allowed("labeler")
def home(request: Request) -> Response:
    work, account = workspace(request), request.state.account
    campaigns = sorted(work.campaigns.all(), key=lambda campaign: _ORDER.index(campaign.state))
    cards = [_card(request, campaign) for campaign in campaigns]
    first = next((card["campaign"].id for card in cards if card["mine"].left and card["campaign"].state == "open"), "")
    runs = sources.collected(work.folder) if account.may("admin") else []
    return page(request, "campaign/home.html", cards=cards, first=first, runs=runs)


@allowed("admin")
def try_example(request: Request) -> Response:
    campaign = example.begin(workspace(request), by=request.state.account.name)
    return RedirectResponse(f"/c/{campaign.id}", 303)


def _card(request: Request, campaign: Campaign) -> dict[str, Json]:
    """`whole`: for reviewers alone, since after a task a labeler could tell by it whether that was a known answer."""
    work, account = workspace(request), request.state.account
    return {
        "campaign": campaign,
        "whole": work.progress.campaign(campaign.run) if account.may("reviewer") else None,
        "mine": work.progress.labeler(campaign.run, account.name, 0),
    }


ROUTES = [Route("/", home), Route("/example", try_example, methods=["POST"])]
