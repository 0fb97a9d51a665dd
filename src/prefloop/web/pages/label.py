"""What a labeler does: read what a campaign asks, judge its tasks one after another, take an answer back.

Nothing here may name the kind of a task, what wrote an answer, or what others said of it."""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Mapping

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from prefloop.store.answers import Answer, AnswerError
from prefloop.store.assignment import PausedError, Task
from prefloop.store.campaigns import Campaign, MissingError
from prefloop.types import CANT_JUDGE, Json, to_json
from prefloop.web import answerform
from prefloop.web.differences import differences, similar
from prefloop.web.errors import wants_json
from prefloop.web.security import allowed
from prefloop.web.steering import addresses_reader
from prefloop.web.templating import page, workspace

SAID = {
    "nothing": "Nothing is left for you here right now.",
    "paused": "Nothing is handed out to you right now. Ask whoever invited you.",
    "undone": "There is no answer to take back.",
}
_ROLES = {"user": "User", "assistant": "Assistant", "system": "Instructions"}


@allowed("labeler")
def intro(request: Request) -> Response:
    """What the campaign is, and how far this labeler is in it. How far the whole of it is is for reviewers alone: after
    a task a labeler could tell by it whether that was a known answer."""
    work, campaign, account = workspace(request), _campaign(request), request.state.account
    config = campaign.config
    practice = config.calibration if config.feedback else 0
    return page(
        request,
        "label/intro.html",
        campaign=campaign,
        mine=work.progress.labeler(campaign.run, account.name, practice),
        whole=work.progress.campaign(campaign.run) if account.may("reviewer") else None,
        said=next((SAID[word] for word in request.query_params if word in SAID), ""),
    )


@allowed("labeler")
def onward(request: Request) -> Response:
    """To the labeler's next task."""
    return _redirect(_next(request, _campaign(request)))


@allowed("labeler")
def undo(request: Request) -> Response:
    """Take the labeler's last answer back, and to its task again."""
    campaign = _campaign(request)
    task = workspace(request).answers.withdraw(campaign, request.state.account.name)
    return _redirect(f"/t/{task.id}" if task else f"/c/{campaign.id}?undone")


@allowed("labeler")
def show(request: Request) -> Response:
    """One task with what the labeler has so far; of a finished one the answer as given, to `?change` or to look at."""
    work, task = workspace(request), _task(request)
    if task.state != "done":
        return _form(request, task, answerform.written(task.draft))
    answer = answerform.written(work.answers.given(task))
    change = "change" in request.query_params
    return _form(request, task, answer, locked=not change, confirmed=("change",) if change else ())


@allowed("labeler")
def known(request: Request) -> Response:
    """After a task of the practice round: its known answer."""
    work, task = workspace(request), _task(request)
    answer = work.progress.known(task, request.state.account.name)
    if answer is None:
        raise MissingError("There is no known answer to show.")
    order = sorted(range(len(answer.ranks)), key=lambda place: answer.ranks[place])
    given = answerform.written(work.answers.given(task))
    return page(request, "label/known.html", known=answer, order=order, given=given, **_view(request, task))


@allowed("labeler")
def submit(request: Request) -> Response:
    """Keep an answer, then on to the next task."""
    work, task, name = workspace(request), _task(request), request.state.account.name
    form: FormData = request.state.form
    answer, nonce = answerform.read(form, task.config, len(task.shown)), str(form.get("nonce", ""))
    problems, confirm = _unready(request, task, form, answer)
    if not problems:
        try:
            work.answers.submit(task.id, name, answer, nonce=nonce)
        except AnswerError as error:
            problems = error.fields
    if not problems:
        to = f"/t/{task.id}/known" if work.progress.known(task, name) else _next(request, _campaign_of(request, task))
        return JSONResponse({"to": to}) if wants_json(request) else _redirect(to)
    if wants_json(request):
        return JSONResponse({"problems": problems, "confirm": confirm}, 400)
    nonce = nonce if _is_token(nonce) else ""
    confirmed = {*form.getlist("confirm"), confirm}
    return _form(request, task, answer, status=400, nonce=nonce, problems=problems, confirmed=confirmed)


@allowed("labeler")
def draft(request: Request) -> Response:
    """Keep what the form says so far."""
    task = _task(request)
    answer = answerform.read(request.state.form, task.config, len(task.shown))
    workspace(request).desk.save_draft(task.id, request.state.account.name, to_json(answer))
    return Response(status_code=204)


@allowed("labeler")
def renew(request: Request) -> Response:
    """Keep the task for the labeler whose page is open."""
    return JSONResponse({"seconds": workspace(request).desk.renew(_task(request).id, request.state.account.name)})


def _unready(request: Request, task: Task, form: FormData, answer: Answer) -> tuple[Mapping[str, str], str]:
    """What stands in the way of keeping an answer, and what the next attempt thereby confirms."""
    nonce, confirmed = str(form.get("nonce", "")), form.getlist("confirm")
    if not _is_token(nonce):
        return {"": "This form is not one of ours; reload the page."}, ""
    if form.get("version") != str(task.version):
        return {"": "What this campaign asks has changed. Look again, please, then submit."}, "reload"
    done = task.state == "done" and workspace(request).answers.receipt(task.id, nonce) is None
    if done and "change" not in confirmed:
        return {"": "You have answered this task already. Submit again to replace that answer by this one."}, "change"
    if answerform.unchanged(answer) and CANT_JUDGE not in answer.flags and "unchanged" not in confirmed:
        return {"ranks": "This is the order in which the answers were shown. Submit again if you mean it."}, "unchanged"
    return {}, ""


def _form(
    request: Request,
    task: Task,
    answer: Answer,
    *,
    status: int = 200,
    nonce: str = "",
    problems: Mapping[str, str] | None = None,
    locked: bool = False,
    confirmed: Collection[Json] = (),
) -> Response:
    config, name = task.config, request.state.account.name
    return page(
        request,
        "label/task.html",
        status=status,
        given=answer,
        ticket=nonce or secrets.token_urlsafe(16),
        problems=problems or {},
        locked=locked,
        confirmed=[word for word in ("change", "unchanged") if word in confirmed],
        strengths=answerform.strengths(config.ties),
        keys=answerform.flag_keys(config.flags),
        order=answerform.order(answer, len(task.shown)),
        mine=workspace(request).progress.labeler(task.run, name, 0),
        **_view(request, task),
    )


def _view(request: Request, task: Task) -> dict[str, Json]:
    """All of a task that labelers may see."""
    texts = [task.comparison.items[item].text for item in task.shown]
    names = ["Left", "Right"] if len(texts) == 2 else [f"Answer {chr(ord('A') + place)}" for place in range(len(texts))]
    return {
        "id": task.id,
        "campaign": _campaign_of(request, task),
        "config": task.config,
        "version": task.version,
        "prompt": [(_ROLES.get(m.role, m.role), m.content) for m in task.comparison.prompt.messages],
        "answers": [_shown(name, text) for name, text in zip(names, texts, strict=True)],
        "differences": differences(*texts) if len(texts) == 2 and similar(*texts) else None,
    }


def _shown(name: str, text: str) -> dict[str, Json]:
    return {"name": name, "text": text, "raw": text, "to_reader": addresses_reader(text)}


def _next(request: Request, campaign: Campaign) -> str:
    """Address of the labeler's next task, or of the campaign's page, which says why there is none."""
    try:
        task = workspace(request).desk.next_task(campaign, request.state.account.name)
    except PausedError:
        return f"/c/{campaign.id}?paused"
    return f"/t/{task.id}" if task else f"/c/{campaign.id}?nothing"


def _campaign(request: Request) -> Campaign:
    return workspace(request).campaigns.by_id(request.path_params["campaign"])


def _campaign_of(request: Request, task: Task) -> Campaign:
    return workspace(request).campaigns.by_run(task.run)


def _task(request: Request) -> Task:
    return workspace(request).desk.task(request.path_params["task"], request.state.account.name)


def _redirect(to: str) -> RedirectResponse:
    return RedirectResponse(to, 303)


def _is_token(text: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9_-]{16,64}", text) is not None


ROUTES = [
    Route("/c/{campaign}", intro),
    Route("/c/{campaign}/next", onward, methods=["POST"]),
    Route("/c/{campaign}/undo", undo, methods=["POST"]),
    Route("/t/{task}", show),
    Route("/t/{task}/known", known),
    Route("/t/{task}/submit", submit, methods=["POST"]),
    Route("/t/{task}/draft", draft, methods=["POST"]),
    Route("/t/{task}/renew", renew, methods=["POST"]),
]
