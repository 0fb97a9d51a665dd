"""Where a campaign's items can come from: files of the workspace, uploads, and run folders with collected answers."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from starlette.datastructures import UploadFile

from prefloop.types import PrefloopError

UPLOADS = "uploads"
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz", ".json.gz", ".csv.gz")
_OFFERED = 200
_LONGEST_NAME = 80


def find_file(folder: Path, typed: str) -> Path:
    """The file of the workspace that somebody named. Raises PrefloopError for what is none, or lies elsewhere."""
    advice = f"name a file in the workspace folder that ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
    try:
        path = (folder / typed.strip()).resolve(strict=True)
        inside = path.is_relative_to(folder.resolve()) and path.is_file()
    except (OSError, ValueError):
        inside = False
    if not inside or not path.name.endswith(SUFFIXES) or _hidden(path.relative_to(folder.resolve())):
        raise PrefloopError(f"There is no such file here; {advice}.")
    return path


def files(folder: Path) -> list[str]:
    """Files that could hold items, in the workspace folder and the folders in it, but for runs and exports."""
    found = [
        path.relative_to(folder)
        for pattern in ("*", "*/*")
        for path in folder.glob(pattern)
        if path.name.endswith(SUFFIXES) and path.is_file() and path.resolve().is_relative_to(folder.resolve())
    ]
    shown = [path for path in sorted(found) if path.parts[0] not in ("runs", "exports") and not _hidden(path)]
    return [str(path) for path in shown[:_OFFERED]]


def collected(folder: Path) -> list[str]:
    """Run folders with answers to pair, such as runs/quickstart/collect, the newest first."""
    found = [path.parent for pattern in ("runs/*/run.json", "runs/*/*/run.json") for path in folder.glob(pattern)]
    mine = [path for path in found if _stage(path) == "collect" and _has_answers(path)]
    newest = sorted(mine, key=lambda path: (-(path / "samples.jsonl").stat().st_mtime, path))
    return [str(path.relative_to(folder)) for path in newest]


def keep_upload(folder: Path, upload: UploadFile) -> str:
    """Copy an upload into the workspace, under a name of letters and digits; returns its path from there. Raises
    PrefloopError for a file of no known kind."""
    given = (upload.filename or "").replace("\\", "/").rpartition("/")[2]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", given)[-_LONGEST_NAME:]
    if not name.lower().endswith(SUFFIXES):
        raise PrefloopError(f"Choose a file whose name ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}.")
    target = folder / UPLOADS / f"{secrets.token_hex(4)}-{name}"
    target.parent.mkdir(exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with temporary.open("xb") as file:
            shutil.copyfileobj(upload.file, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return str(target.relative_to(folder))


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _stage(path: Path) -> str:
    try:
        about = json.loads((path / "run.json").read_bytes())
        return str(about["stage"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _has_answers(path: Path) -> bool:
    samples = path / "samples.jsonl"
    return samples.is_file() and samples.stat().st_size > 0


def free_name(wanted: str, taken: Sequence[str]) -> str:
    """`wanted`, or with the first number that makes it new."""
    names = [wanted, *(f"{wanted}-{number}" for number in range(2, len(taken) + 3))]
    return next(name for name in names if name not in taken)
