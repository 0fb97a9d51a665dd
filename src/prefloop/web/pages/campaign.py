"""A campaign as its reviewers see it: how far it is, how far its labels can be trusted, what it asked when."""

from __future__ import annotations

from typing import NamedTuple

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from prefloop.configs.campaign import CampaignConfig
from prefloop.store.campaigns import Campaign
from prefloop.types import Json
from prefloop.web import settings
from prefloop.web.differences import differences
from prefloop.web.forms import field
from prefloop.web.security import allowed
from prefloop.web.templating import page, workspace


class Change(NamedTuple):
    """A setting before and after a version."""

    label: str
    before: Markup
    after: Markup


def campaign_of(request: Request) -> Campaign:
    """The campaign of an address. Raises MissingError where there is none."""
    return workspace(request).campaigns.by_id(request.path_params["campaign"])


def shell(request: Request, template: str, campaign: Campaign, *, status: int = 200, **context: Json) -> Response:
    """A page of a campaign, below its name and its tabs."""
    return page(request, template, status=status, campaign=campaign, **context)


@allowed("reviewer")
def manage(request: Request) -> Response:
    work, campaign = workspace(request), campaign_of(request)
    return shell(
        request,
        "campaign/manage.html",
        campaign,
        whole=work.progress.campaign(campaign.run),
        counts=work.overview.counts(campaign.run),
        strata=work.overview.strata(campaign.run),
    )


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


ROUTES = [
    Route("/c/{campaign}/manage", manage),
    Route("/c/{campaign}/state", set_state, methods=["POST"]),
    Route("/c/{campaign}/versions", versions),
]
