"""Whether what a run took from this disk is still what it was."""

from __future__ import annotations

import hashlib
import re
from importlib.util import find_spec
from pathlib import Path

_OFFERED = ("prefloop.json", "checkpoint/prefloop.json", "preferences.jsonl", "samples.jsonl")
_NAMED = re.compile(r".*[:=](.*)")  # "mean:A,B", "steps=product:A", "tagged=A"
_CODE = re.compile(r"([A-Za-z_][\w.]*):[A-Za-z_]\w*")
_EDGE = 1 << 20


def fingerprint(parent: str) -> str | None:
    """SHA-256 of what a stage takes from a parent on this disk: a checkpoint's manifest (which holds the hashes of its
    files), a run's preferences or samples, the file itself, the module of "module:function", or of another folder (a
    model or data of others) names, sizes and both ends of its files; of a reward's name that holds folders, theirs
    together; None for a name."""
    path = Path(parent)
    for file in (*(path / name for name in _OFFERED), path, *_module(parent)):
        if file.is_file():
            with file.open("rb") as content:
                return hashlib.file_digest(content, "sha256").hexdigest()
    if not path.exists() and (named := _NAMED.fullmatch(parent)):
        folders = [fingerprint(folder.strip()) for folder in named[1].split(",")]
        return hashlib.sha256(repr(folders).encode()).hexdigest() if any(folders) else None
    if not path.is_dir() or (path / "run.json").exists():
        return None
    digest = hashlib.sha256()
    for file in sorted(found for found in path.rglob("*") if found.is_file()):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path)} {size}\n".encode())
        with file.open("rb") as content:
            digest.update(content.read(_EDGE))
            content.seek(max(0, size - _EDGE))
            digest.update(content.read(_EDGE))
    return digest.hexdigest()


def _module(name: str) -> list[Path]:
    """The file of "module:function"."""
    if not (found := _CODE.fullmatch(name)):
        return []
    try:
        spec = find_spec(found[1])
    except (ImportError, AttributeError, ValueError):
        return []
    return [Path(spec.origin)] if spec and spec.origin else []
