"""Labels as a file: what the store holds of a run, and back; and other people's preferences into the store."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from prefloop.data.jsonl import encode_line, read_jsonl, read_preferences, write_atomic
from prefloop.data.pairing import comparison_id
from prefloop.store.labels import Store
from prefloop.types import Comparison, Json, Judgment, PrefloopError, from_json

IMPORTED = "imported"


def manifest_path(path: str | Path) -> Path:
    """labels.jsonl -> labels.jsonl.manifest.json"""
    return Path(f"{path}.manifest.json")


def export_labels(store: Store, run: str, path: str | Path) -> dict[str, Json]:
    """Write a run's comparisons with their judgments as JSONL, and beside it a manifest, which is returned:
    {"comparisons", "judgments", "sha256" of the file's bytes}.

    Lines {"comparison", "judgments" (by annotator), "simulated" (names)} stand in the order of adding, so that equal
    labels give equal bytes, also after an import elsewhere. Raises PrefloopError when the run has no comparisons."""
    judged: dict[str, list[Judgment]] = {}
    comparisons = store.comparisons(run)
    judgments, annotators = store.judgments(run), store.annotators(run)
    for judgment in judgments:
        judged.setdefault(judgment.comparison_id, []).append(judgment)
    if not comparisons:
        raise PrefloopError(f"Run {run!r} has no comparisons in this label store; check its name.")
    lines, count = [], 0
    for comparison in comparisons:
        mine = sorted(judged.get(comparison.id, ()), key=lambda judgment: judgment.annotator)
        simulated = [judgment.annotator for judgment in mine if annotators[judgment.annotator]]
        lines.append(encode_line({"comparison": comparison, "judgments": mine, "simulated": simulated}))
        count += len(mine)
    content = b"".join(lines)
    manifest = {"comparisons": len(lines), "judgments": count, "sha256": hashlib.sha256(content).hexdigest()}
    write_atomic(path, content)
    write_atomic(manifest_path(path), json.dumps(manifest, indent=2) + "\n")
    return manifest


def import_labels(store: Store, run: str, path: str | Path) -> int:
    """Add the labels of a file to a run; returns how many judgments were new. Doing it twice adds nothing.

    Reads what `export_labels` wrote, checked against its manifest where one stands beside it, and every shape of
    `read_preferences`, whose rows become judgments by the annotator "imported". Raises PrefloopError with file:line
    when a row does not fit, and when the file is not the one that its manifest describes."""
    _check_manifest(Path(path))
    _, first = next(read_jsonl(path))
    comparisons, judgments = _exported(path) if "comparison" in first else _foreign(path)
    store.add_comparisons(run, comparisons)
    real = [judgment for judgment, simulated in judgments if not simulated]
    simulated = [judgment for judgment, simulated in judgments if simulated]
    return store.add_judgments(run, real, simulated=False) + store.add_judgments(run, simulated, simulated=True)


def _check_manifest(path: Path) -> None:
    beside = manifest_path(path)
    if not (beside.is_file() and path.is_file()):
        return
    try:
        expected = json.loads(beside.read_bytes())["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise PrefloopError(f"{beside}: no manifest of labels ({error!r}); export again.") from error
    if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
        raise PrefloopError(f"{path}: its content is not what {beside.name} describes; export it again.")


def _exported(path: str | Path) -> tuple[list[Comparison], list[tuple[Judgment, bool]]]:
    comparisons, judgments = [], []
    for number, row in read_jsonl(path):
        where = f"{path}:{number}"
        for name in ("comparison", "judgments", "simulated"):
            if name not in row:
                raise PrefloopError(f"{where}: field {name!r} is missing.")
        comparisons.append(from_json(Comparison, row["comparison"], where))
        for judgment in (from_json(Judgment, value, where) for value in row["judgments"]):
            judgments.append((judgment, judgment.annotator in row["simulated"]))
    return comparisons, judgments


def _foreign(path: str | Path) -> tuple[list[Comparison], list[tuple[Judgment, bool]]]:
    comparisons, judgments = [], []
    for preference in read_preferences(path):
        id_ = comparison_id(preference.items)
        comparisons.append(Comparison(id=id_, prompt=preference.prompt, items=preference.items))
        judgment = Judgment(
            comparison_id=id_, annotator=IMPORTED, ranking=preference.ranking, probability=preference.target
        )
        judgments.append((judgment, False))
    return comparisons, judgments
