"""The items of a campaign: the list, each with its answers and labels, and the queue of those that need a look."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from prefloop.configs.campaign import STRENGTHS
from prefloop.store.answers import AnswerError
from prefloop.store.campaigns import Campaign
from prefloop.store.overview import PAGE, STATES, Filter, ItemRow
from prefloop.types import CANT_JUDGE, Json, PrefloopError
from prefloop.web import answerform
from prefloop.web.differences import differences, similar
from prefloop.web.forms import field
from prefloop.web.pages.campaign import campaign_of, shell
from prefloop.web.pages.review import queue
from prefloop.web.security import allowed
from prefloop.web.templating import workspace

_LARGEST_PRIORITY = 1e9


@allowed("reviewer")
def items(request: Request) -> Response:
    """A page of the list. Filters have fixed names; what they are compared with is only ever a value."""
    work, campaign, asked = workspace(request), campaign_of(request), request.query_params
    state = asked.get("state", "")
    chosen = Filter(slice=asked.get("slice", ""), mix=asked.get("mix", ""), state=state if state in STATES else "")
    rows = work.overview.items(campaign.run, chosen, after=_number(asked.get("after", "")))
    filters = {name: value for name in ("slice", "mix", "state") if (value := getattr(chosen, name))}
    strata = work.overview.strata(campaign.run)
    return shell(
        request,
        "campaign/items.html",
        campaign,
        rows=rows,
        chosen=chosen,
        states=STATES[1:],
        slices=sorted({group.slice for group in strata} - {""}),
        mixes=sorted({group.mix for group in strata} - {""}),
        more=urlencode({**filters, "after": rows[-1].number}) if len(rows) == PAGE else "",
        first=urlencode(filters) if asked.get("after") else None,
    )


@allowed("reviewer")
def item(request: Request) -> Response:
    return _item(request, campaign_of(request))


@allowed("reviewer")
def hold(request: Request) -> Response:
    """Keep an item back, or hand it out again."""
    campaign, row = _chosen(request)
    reason = field(request, "reason").replace("\0", "").strip()[:200]
    if field(request, "do") == "hold" and not reason:
        return _item(request, campaign, {"reason": "Say why this item is held back."})
    reason = reason if field(request, "do") == "hold" else ""
    workspace(request).campaigns.hold(campaign.run, row.comparison.id, reason, by=request.state.account.name)
    return _back(campaign, row)


@allowed("reviewer")
def prioritise(request: Request) -> Response:
    campaign, row = _chosen(request)
    try:
        priority = float(field(request, "priority"))
    except ValueError:
        priority = float("nan")
    if not abs(priority) <= _LARGEST_PRIORITY:
        return _item(request, campaign, {"priority": "Write a number; the highest go first."})
    priorities = {row.comparison.id: priority}
    workspace(request).campaigns.set_priorities(campaign.run, priorities, by=request.state.account.name)
    return _back(campaign, row)


@allowed("reviewer")
def judge(request: Request) -> Response:
    """The reviewer's own label of an item."""
    work, (campaign, row) = workspace(request), _chosen(request)
    nonce, by = field(request, "nonce"), request.state.account.name
    if not re.fullmatch(r"[A-Za-z0-9_-]{16,64}", nonce):
        raise PrefloopError("This form is not one of ours; reload the page.")
    answer = answerform.read(request.state.form, campaign.config, len(row.comparison.items))
    try:
        work.answers.review(campaign, row.comparison.id, by, answer, nonce=nonce)
    except AnswerError as error:
        return _item(request, campaign, error.fields)
    if not field(request, "queue"):
        return _back(campaign, row)
    waiting = [other.number for _, other in queue(work, campaign)[0] if other.number != row.number]
    address = f"items/{waiting[0]}?queue=1" if waiting else "review"
    return RedirectResponse(f"/c/{campaign.id}/{address}", 303)


def verdict(content: Mapping[str, Json]) -> list[tuple[str, str]]:
    """What a judgment says, by axis where it has several; answers are numbered from 1."""
    if CANT_JUDGE in content["flags"]:
        return [("", CANT_JUDGE)]
    if content["axes"]:
        return [(axis, _preference(value)) for axis, value in content["axes"].items()]
    ranking, probability = content["ranking"], content["probability"]
    if ranking is None:
        return [("", f"answer 1 is better with {probability:.0%}")]
    if len(ranking) == 2:
        strength = content["strength"] or 0
        return [("", _preference(((ranking[0] < ranking[1]) - (ranking[0] > ranking[1])) * max(strength, 1), strength))]
    levels = [[str(i + 1) for i, rank in enumerate(ranking) if rank == level] for level in sorted(set(ranking))]
    return [("", " > ".join(" = ".join(level) for level in levels))]


def _preference(value: int, strength: int | None = None) -> str:
    if value == 0:
        return "a tie"
    how = "" if strength == 0 else f", {STRENGTHS[abs(value) - 1]}"
    return f"answer {1 if value > 0 else 2}{how}"


def _item(request: Request, campaign: Campaign, problems: Mapping[str, str] | None = None) -> Response:
    work, name = workspace(request), request.state.account.name
    row = work.overview.item(campaign.run, _number(request.path_params["number"]))
    labels = work.overview.labels(campaign.run, row.comparison.id)
    texts = [answer.text for answer in row.comparison.items]
    alike = len(texts) == 2 and similar(*texts)
    form = request.state.form if problems else None
    return shell(
        request,
        "campaign/item.html",
        campaign,
        status=400 if problems else 200,
        row=row,
        labels=[(label, verdict(label.content)) for label in labels],
        differences=differences(*texts) if alike else None,
        strengths=answerform.strengths(campaign.config.ties),
        given=answerform.read(form, campaign.config, len(texts)) if form is not None else answerform.written(None),
        mine=next((label for label in labels if label.annotator == name and label.latest), None),
        cant_judge=CANT_JUDGE,
        nonce_of_form=secrets.token_urlsafe(16),
        problems=problems or {},
        queued=bool(request.query_params.get("queue") or (problems and field(request, "queue"))),
    )


def _chosen(request: Request) -> tuple[Campaign, ItemRow]:
    campaign = campaign_of(request)
    return campaign, workspace(request).overview.item(campaign.run, _number(request.path_params["number"]))


def _back(campaign: Campaign, row: ItemRow) -> Response:
    return RedirectResponse(f"/c/{campaign.id}/items/{row.number}", 303)


def _number(text: str) -> int:
    """A whole number of an address; 0, which nothing has, for anything else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


ROUTES = [
    Route("/c/{campaign}/items", items),
    Route("/c/{campaign}/items/{number}", item),
    Route("/c/{campaign}/items/{number}/hold", hold, methods=["POST"]),
    Route("/c/{campaign}/items/{number}/priority", prioritise, methods=["POST"]),
    Route("/c/{campaign}/items/{number}/judge", judge, methods=["POST"]),
]
