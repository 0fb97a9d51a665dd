"""Conversations with a blind checkpoint, to find where it fails. Which one it is stays on the server."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from prefloop.data.identity import names_a_model
from prefloop.store.campaigns import Campaign
from prefloop.store.redteam import Alternative, Conversation, kinds_of_failure
from prefloop.types import Json, PrefloopError
from prefloop.web.forms import field
from prefloop.web.partners import Reply
from prefloop.web.security import allowed
from prefloop.web.templating import page, workspace

NAMED = "The answer told which model it is, so it is not shown. Ask again, or say something else."


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A conversation in the list. failures: answers that were marked or bettered."""

    id: str
    state: str
    begins: str
    answers: int
    failures: int


@allowed("labeler")
def overview(request: Request) -> Response:
    campaign, who = _campaign(request), request.state.account.name
    found = workspace(request).red_team.mine(campaign, who)
    return page(request, "redteam/overview.html", campaign=campaign, cards=[_card(one) for one in found])


@allowed("labeler")
def begin(request: Request) -> Response:
    begun = workspace(request).red_team.begin(_campaign(request), request.state.account.name)
    return RedirectResponse(f"/talk/{begun.id}", 303)


@allowed("labeler")
def conversation(request: Request) -> Response:
    return _page(request)


@allowed("labeler")
def say(request: Request) -> Response:
    found, text, two = _mine(request), field(request, "text"), field(request, "two")
    try:
        found = workspace(request).red_team.say(
            found.id, found.annotator, turn=_number(request, "turn"), text=text, nonce=field(request, "nonce")
        )
    except PrefloopError as error:
        return _page(request, status=400, error=str(error), typed={"text": text, "two": two})
    if not found.answered:
        _ask(request, found, n=2 if two else 1)
    return _back(found)


@allowed("labeler")
def ask(request: Request) -> Response:
    """Again, where no answer came; else for another answer beside the one that stands there."""
    found, turn = _mine(request), _number(request, "turn")
    workspace(request).red_team.check_open(found)
    last = found.turns[-1] if found.state == "open" and turn == len(found.turns) - 1 else None
    if last and len(last.alternatives) < 2:
        _ask(request, found, n=1)
    return _back(found)


@allowed("labeler")
def pick(request: Request) -> Response:
    found = _mine(request)
    turn, which = _number(request, "turn"), _number(request, "which")
    return _back(workspace(request).red_team.pick(found.id, found.annotator, turn=turn, which=which))


@allowed("labeler")
def mark(request: Request) -> Response:
    found, work = _mine(request), workspace(request)
    turn, which = _number(request, "turn"), _number(request, "which")
    marks = [str(value) for value in request.state.form.getlist("mark")]
    note, better = field(request, "note"), field(request, "better") if "better" in request.state.form else None
    config = work.campaigns.by_run(found.run).config
    try:
        work.red_team.mark(
            found.id, found.annotator, config, turn=turn, which=which, marks=marks, note=note, better=better
        )
    except PrefloopError as error:
        typed = {"turn": turn, "which": which, "marks": marks, "note": note, "better": better or ""}
        return _page(request, status=400, error=str(error), typed=typed)
    return RedirectResponse(f"/talk/{found.id}#turn-{turn}", 303)


@allowed("labeler")
def finish(request: Request) -> Response:
    found, work = _mine(request), workspace(request)
    work.red_team.finish(found.id, found.annotator)
    return RedirectResponse(f"/c/{work.campaigns.by_run(found.run).id}/talk", 303)


@allowed("labeler")
def state(request: Request) -> Response:
    """What a page that waits asks for."""
    found = _mine(request)
    return JSONResponse({"waiting": workspace(request).partners.waiting(found.id)})


def _ask(request: Request, found: Conversation, *, n: int) -> None:
    """Have the checkpoint answer what the person said last; its answer goes into the store as soon as it is there."""
    work, place = workspace(request), len(found.turns) - found.answered
    names = {found.model, *work.campaigns.by_run(found.run).config.red_team}

    def deliver(replies: Sequence[Reply]) -> None:
        if any(names_a_model(reply.text, names) for reply in replies):
            raise PrefloopError(NAMED)
        made = [Alternative(text=reply.text, finished=reply.finished) for reply in replies]
        work.red_team.answer(found.id, found.annotator, turn=place, made=made)

    messages, seed = found.messages(place), secrets.randbits(62)
    work.partners.ask(found.id, found.model, messages, seed=seed, n=n, deliver=deliver)


def _page(
    request: Request,
    *,
    status: int = 200,
    error: str = "",
    typed: Mapping[str, Json] | None = None,
) -> Response:
    """typed: what was sent and not taken, to be mended."""
    work = workspace(request)
    waiting = work.partners.waiting(request.path_params["id"])
    found = _mine(request)  # after that: an answer that comes in between is on the page, or still waited for
    campaign = work.campaigns.by_run(found.run)
    return page(
        request,
        "redteam/conversation.html",
        status=status,
        campaign=campaign,
        id=found.id,
        state=found.state,
        turns=found.turns,
        answered=found.answered,
        to_pick=bool(found.turns) and found.answered and found.turns[-1].picked is None,
        kinds=kinds_of_failure(campaign.config),
        waiting=waiting,
        problem=work.partners.problem(found.id),
        once=secrets.token_urlsafe(16),
        error=error,
        typed=typed or {},
    )


def _card(found: Conversation) -> Card:
    answers = [alternative for turn in found.turns for alternative in turn.alternatives]
    bettered = sum(bool(turn.better) for turn in found.turns)
    return Card(
        id=found.id,
        state=found.state,
        begins=found.turns[0].text if found.turns else "",
        answers=sum(turn.role == "assistant" for turn in found.turns),
        failures=max(bettered, sum(bool(one.marks or one.note) for one in answers)),
    )


def _campaign(request: Request) -> Campaign:
    return workspace(request).campaigns.by_id(request.path_params["campaign"])


def _mine(request: Request) -> Conversation:
    return workspace(request).red_team.get(request.path_params["id"], request.state.account.name)


def _back(found: Conversation) -> Response:
    return RedirectResponse(f"/talk/{found.id}#turn-{len(found.turns) - 1}", 303)


def _number(request: Request, name: str) -> int:
    try:
        return int(field(request, name)[:9])
    except ValueError:
        raise PrefloopError("This form is not whole; reload the page.") from None


ROUTES = [
    Route("/c/{campaign}/talk", overview),
    Route("/c/{campaign}/talk", begin, methods=["POST"]),
    Route("/talk/{id}", conversation),
    Route("/talk/{id}/say", say, methods=["POST"]),
    Route("/talk/{id}/ask", ask, methods=["POST"]),
    Route("/talk/{id}/pick", pick, methods=["POST"]),
    Route("/talk/{id}/mark", mark, methods=["POST"]),
    Route("/talk/{id}/finish", finish, methods=["POST"]),
    Route("/talk/{id}/state", state),
]
