"""A new campaign, and a new version of one: a form, with what was typed kept whatever is wrong with it."""

from __future__ import annotations

from pathlib import Path

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from prefloop.configs.campaign import CampaignConfig
from prefloop.store.campaigns import MissingError
from prefloop.types import PrefloopError
from prefloop.web import settings, sources
from prefloop.web.errors import sentence
from prefloop.web.pages.campaign import campaign_of, shell
from prefloop.web.pages.transfer import HOW, begin_import, read_how
from prefloop.web.security import allowed
from prefloop.web.settings import FormError, Typed
from prefloop.web.templating import page, workspace

_OWN = ("run", "path", "collected", "items", *HOW, "do", "version")


@allowed("admin")
def new(request: Request) -> Response:
    run = request.query_params.get("run", "")
    known = run in sources.collected(workspace(request).folder)
    own = {"collected": run if known else "", "path": "", **HOW}
    typed = settings.shown(CampaignConfig()) | own | {"run": _name_for(request, run) if known else ""}
    return _new_form(request, typed, {})


@allowed("admin")
def create(request: Request) -> Response:
    work, by, typed = workspace(request), request.state.account.name, _typed(request)
    problems: dict[str, str] = {}
    config = CampaignConfig()
    try:
        config = settings.read(typed)
    except FormError as error:
        problems |= error.fields
    for name, check in {"run": _run, "source": _source}.items():
        try:
            typed |= check(request, typed)
        except PrefloopError as error:
            problems[name] = sentence(error)
    if typed["do"] == "preview":
        return _new_form(request, typed, {}, preview=True)
    if problems:
        return _new_form(request, typed, problems)
    campaign = work.campaigns.create(typed["run"], config, by=by)
    if items := typed["items"] or typed["path"]:
        begin_import(request, campaign, work.folder / items, read_how(request))
        return RedirectResponse(f"/c/{campaign.id}/transfer", 303)
    return RedirectResponse(f"/c/{campaign.id}/manage", 303)


@allowed("reviewer")
def edit(request: Request) -> Response:
    return _edit_form(request, settings.shown(campaign_of(request).config), {})


@allowed("reviewer")
def change(request: Request) -> Response:
    campaign, typed = campaign_of(request), _typed(request)
    if typed["do"] == "preview":
        return _edit_form(request, typed, {}, preview=True)
    if typed["version"] != str(campaign.version):
        moved = f"This campaign is at version {campaign.version} by now; look at what changed, then save again."
        return _edit_form(request, typed, {"": moved})
    try:
        workspace(request).campaigns.change(campaign.run, settings.read(typed), by=request.state.account.name)
    except FormError as error:
        return _edit_form(request, typed, error.fields)
    return RedirectResponse(f"/c/{campaign.id}/versions", 303)


def _typed(request: Request) -> dict[str, str]:
    given = {name: value for name, value in request.state.form.items() if isinstance(value, str)}
    return dict.fromkeys((*_OWN, *settings.FIELDS), "") | given | {"items": ""}


def _run(request: Request, typed: Typed) -> dict[str, str]:
    run = settings.read_run(typed["run"])
    try:
        workspace(request).campaigns.by_run(run)
    except MissingError:
        return {"run": run}
    raise PrefloopError(f"There is a campaign {run} already; choose another name.")


def _source(request: Request, typed: Typed) -> dict[str, str]:
    """Where the items come from, from the workspace on; empty for nothing yet. An upload is kept at once, so that a
    form that comes back for another reason still has it."""
    folder, upload = workspace(request).folder, request.state.form.get("upload")
    uploaded = upload if isinstance(upload, UploadFile) and upload.filename else None
    if sum(map(bool, (uploaded, typed["path"].strip(), typed["collected"]))) > 1:
        raise PrefloopError("Name one source of items, not several.")
    read_how(request)
    if uploaded:
        return {"path": sources.keep_upload(folder, uploaded)}
    if typed["collected"]:
        if typed["collected"] not in sources.collected(folder):
            raise PrefloopError("Choose one of the run folders.")
        return {"items": f"{typed['collected']}/samples.jsonl"}
    return {"path": _relative(folder, sources.find_file(folder, typed["path"]))} if typed["path"].strip() else {}


def _relative(folder: Path, path: Path) -> str:
    return str(path.relative_to(folder.resolve()))


def _name_for(request: Request, run: str) -> str:
    """runs/NAME/collect -> runs/NAME/label, whose labels `prefloop run` takes up; where that is taken, another name."""
    taken = [known.run for known in workspace(request).store.runs()]
    return sources.free_name(str(Path(run).parent / "label"), taken)


def _new_form(request: Request, typed: Typed, problems: Typed, *, preview: bool = False) -> Response:
    folder = workspace(request).folder
    return page(
        request,
        "campaign/new.html",
        status=400 if problems else 200,
        sections=settings.SECTIONS,
        rationales=settings.RATIONALES,
        typed=typed,
        problems=problems,
        preview=preview,
        files=sources.files(folder),
        runs=sources.collected(folder),
    )


def _edit_form(request: Request, typed: Typed, problems: Typed, *, preview: bool = False) -> Response:
    campaign = campaign_of(request)
    return shell(
        request,
        "campaign/edit.html",
        campaign,
        status=400 if problems else 200,
        sections=settings.SECTIONS,
        rationales=settings.RATIONALES,
        typed=typed,
        problems=problems,
        preview=preview,
    )


ROUTES = [
    Route("/new", new),
    Route("/new", create, methods=["POST"]),
    Route("/c/{campaign}/edit", edit),
    Route("/c/{campaign}/edit", change, methods=["POST"]),
]
