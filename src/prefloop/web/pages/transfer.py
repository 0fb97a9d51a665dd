"""Items into a campaign, and its labels out of it, as files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZIP_STORED, ZipFile

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import Route

from prefloop.store import exchange, imports
from prefloop.store.campaigns import Campaign, MissingError
from prefloop.store.exporting import export_apart
from prefloop.types import Json, PrefloopError
from prefloop.web import sources
from prefloop.web.errors import sentence
from prefloop.web.forms import field
from prefloop.web.pages.campaign import campaign_of, shell
from prefloop.web.security import allowed
from prefloop.web.templating import workspace
from prefloop.web.workspace import Workspace

FORMATS = {
    "jsonl": "JSON lines: everything",
    "parquet": "Parquet: everything",
    "datasets": "a datasets folder, zipped: everything",
    "csv": "CSV: a row a label, for a spreadsheet",
    "preferences": "preferences, to train on",
    "demonstrations": "demonstrations: the better answers that people wrote",
}
EXPORTS = "exports"
HOW = {"pairs": "3", "ways": "2", "skip_bad": ""}
_HOW = {"pairs": (100, "The number of pairs"), "ways": (9, "The number of answers at a time")}
_SOON = 4.0  # seconds in which small files are done


@allowed("reviewer")
def transfer(request: Request) -> Response:
    return _page(request)


@allowed("reviewer")
def take(request: Request) -> Response:
    """Items from an upload, or from a file of the workspace."""
    campaign = workspace(request).campaigns.by_id(field(request, "campaign"))
    folder, upload = workspace(request).folder, request.state.form.get("upload")
    try:
        if isinstance(upload, UploadFile) and upload.filename:
            path = folder / sources.keep_upload(folder, upload)
        else:
            path = sources.find_file(folder, field(request, "path"))
        begin_import(request, campaign, path, read_how(request))
    except PrefloopError as error:
        return _page(request, campaign, error=sentence(error))
    return RedirectResponse(f"/c/{campaign.id}/transfer", 303)


@allowed("reviewer")
def give(request: Request) -> Response:
    """Write the labels to a file that can then be downloaded."""
    work, campaign, kind = workspace(request), campaign_of(request), field(request, "format")
    if kind not in FORMATS:
        return _page(request, error="Choose one of the formats.")
    try:
        title = f"Export as {FORMATS[kind]}"
        work.jobs.start(f"export {campaign.run}", title, lambda: _export(work, campaign, kind), wait=_SOON)
    except PrefloopError as error:
        return _page(request, error=sentence(error))
    return RedirectResponse(f"/c/{campaign.id}/transfer", 303)


@allowed("reviewer")
def download(request: Request) -> Response:
    """One of the files that the page lists; its name is never made into a path."""
    found = {path.name: path for path in _exports(workspace(request).folder, campaign_of(request))}
    path = found.get(request.path_params["name"])
    if path is None:
        raise MissingError("There is no such export.")
    return FileResponse(path, filename=path.name, media_type="application/octet-stream")


def read_how(request: Request) -> dict[str, Json]:
    """How a form wants items drawn from a file. Raises PrefloopError for a number that is out of range."""
    how: dict[str, Json] = {"skip_bad": field(request, "skip_bad") == "on"}
    for name, (most, what) in _HOW.items():
        text = field(request, name).strip()
        least = 2 if name == "ways" else 1
        if not (text.isascii() and text.isdigit() and least <= int(text[:6]) <= most):
            raise PrefloopError(f"{what} is a whole number from {least} to {most}.")
        how[name] = int(text)
    return how


def begin_import(request: Request, campaign: Campaign, path: Path, how: Mapping[str, Json]) -> None:
    """Start taking a file's items into a campaign; small ones are in when this returns. Raises PrefloopError where an
    import of the campaign is under way."""
    work, by = workspace(request), request.state.account.name
    title = f"Import of {path.name}"
    work.jobs.start(f"import {campaign.run}", title, lambda: _import(work, campaign, path, how, by), wait=_SOON)


def _page(request: Request, campaign: Campaign | None = None, *, error: str = "") -> Response:
    work, campaign = workspace(request), campaign or campaign_of(request)
    typed = {name: field(request, name) if error else value for name, value in {**HOW, "path": ""}.items()}
    jobs = [job for kind in ("import", "export") if (job := work.jobs.last(f"{kind} {campaign.run}"))]
    return shell(
        request,
        "campaign/transfer.html",
        campaign,
        status=400 if error else 200,
        error=error,
        typed=typed,
        files=sources.files(work.folder),
        formats=FORMATS,
        jobs=jobs,
        busy=any(job.running for job in jobs),
        exports=_listed(_exports(work.folder, campaign)),
    )


def _listed(paths: Sequence[Path]) -> list[tuple[str, os.stat_result, str]]:
    """Each export with its manifest, where that is a file of its own."""
    names = {path.name for path in paths}
    pairs = [(path, exchange.manifest_path(path).name) for path in paths]
    return [
        (path.name, path.stat(), beside if beside in names else "") for path, beside in pairs if not _is_manifest(path)
    ]


def _is_manifest(path: Path) -> bool:
    return path.name.endswith(exchange.manifest_path("").name)


def _import(work: Workspace, campaign: Campaign, path: Path, how: Mapping[str, Json], by: str) -> str:
    found = imports.import_items(work.store, work.campaigns, campaign.run, path, by=by, key=work.key, **how)
    counts = {
        "new items": found.items,
        "new labels": found.labels,
        "labels that were there already": found.known_labels,
        "items held back, since an answer names a model": found.held,
        "prompts with no second answer": found.alone,
        "rows left out": found.skipped,
    }
    said = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count) or "nothing new"
    return f"{said}{f'; the first row left out: {found.first_skipped}' if found.skipped else ''}."


def _export(work: Workspace, campaign: Campaign, kind: str) -> str:
    """Write the file under a name that nothing has, and a manifest beside it."""
    ending = {"parquet": "parquet", "csv": "csv", "datasets": "zip"}.get(kind, "jsonl")
    stamp = datetime.fromtimestamp(work.clock(), UTC).strftime("%Y%m%d-%H%M%S")
    path = work.folder / EXPORTS / f"{campaign.id}-{kind}-{stamp}.{ending}"
    if kind != "datasets":
        made = export_apart(work.store.engine, campaign.run, path, kind, key=work.key)
    else:
        with TemporaryDirectory(dir=work.folder, prefix=".export-") as whole:
            made = export_apart(work.store.engine, campaign.run, Path(whole) / "data", kind, key=work.key)
            _zip(Path(whole), path)
    return f"{path.name}: {made['comparisons']:,} items with {made['labels']:,} labels."


def _zip(folder: Path, path: Path) -> None:
    """Pack a folder, whole or not at all, without a time in it: equal files give equal bytes."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with ZipFile(temporary, "w", ZIP_STORED) as packed:
            for file in sorted(one for one in folder.rglob("*") if one.is_file()):
                with file.open("rb") as source, packed.open(str(file.relative_to(folder)), "w", force_zip64=True) as to:
                    shutil.copyfileobj(source, to)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _exports(folder: Path, campaign: Campaign) -> list[Path]:
    """The campaign's exports, the newest first."""
    found = [path for path in (folder / EXPORTS).glob(f"{campaign.id}-*") if path.is_file() and not path.is_symlink()]
    return sorted(found, key=lambda path: (-path.stat().st_mtime, path.name))


ROUTES = [
    Route("/c/{campaign}/transfer", transfer),
    Route("/import", take, methods=["POST"]),
    Route("/c/{campaign}/export", give, methods=["POST"]),
    Route("/c/{campaign}/exports/{name}", download),
]
