"""Labels out of the store, as files that can be trained on or imported elsewhere (see `imports`)."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import hmac
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, RowMapping, Text, cast, func, select

import prefloop
from prefloop.data import tables as files
from prefloop.data.jsonl import content_id, encode_json, write_atomic, write_lines
from prefloop.store import audit, db, tables
from prefloop.store.labels import BLANK, STANDING, Label, Store
from prefloop.store.pairs import PairView, Posteriors, pair_views
from prefloop.types import (
    Comparison,
    Completion,
    Demonstration,
    Json,
    Judgment,
    Preference,
    PrefloopError,
    Prompt,
    from_json,
    to_json,
)

_CHUNK, _PSEUDONYM = 200, 10
_ENDINGS = {".jsonl": "jsonl", ".parquet": "parquet", ".csv": "csv", "": "datasets"}
_FACTS = ("status", "late", "uniform", "campaign_version", "at", "server_seconds")
_LABEL = ("judgment", "simulated", "group", *_FACTS)
_SAID, _PROMPT, _ITEM = (tuple(f.name for f in dataclasses.fields(kind)) for kind in (Judgment, Prompt, Completion))
_CSV_SAID = _SAID[2:]
_decode = json.JSONDecoder().raw_decode
_CSV_PAIR = ("labels", "share", "majority", "agreement", "posterior", "margin", "weight")
CSV_COLUMNS = (
    *("comparison", "group", "slice", "mix", "prompt", "answer_a", "answer_b", "more_answers", "checkpoints"),
    *(*_CSV_PAIR, "pairs", "annotator", "annotator_group", "simulated", *_FACTS, *_CSV_SAID),
)
Rows = Iterator[dict[str, Json]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Labeled:
    """A row of an export: a comparison of two or more answers with all that was said of it.

    `group` ties comparisons of one prompt together: split and batch by it. `gold`: a known answer. `held`: why a
    campaign does not hand it out. `labels`: every judgment that stands; of these, `pairs` sums up the ones with status
    counted or extra. `simulated`: no real person had a say."""

    comparison: Comparison
    group: str = ""
    mix: str = ""
    gold: Mapping[str, Json] | None = field(default=None)
    priority: float = 0.0
    held: str = ""
    simulated: bool = False
    labels: tuple[Label, ...] = ()
    pairs: tuple[PairView, ...] = ()


def manifest_path(path: str | Path) -> Path:
    """labels.jsonl -> labels.jsonl.manifest.json"""
    return Path(f"{path}.manifest.json")


def export(store: Store, run: str, path: str | Path, format: str = "", *, key: bytes | None = None) -> dict[str, Json]:
    """Write a run's labels as they are at this moment, and beside them a manifest, which is returned.

    format: jsonl, parquet and datasets (a folder) hold a `Labeled` a row, all of it; csv holds a label a row, for a
    spreadsheet; preferences and demonstrations are what the stages read. Empty: by the path's ending (.jsonl, also
    .gz, .parquet, .csv, none: datasets). With `key` names become pseudonyms, the first 10 hexadecimal digits of their
    HMAC-SHA256. Rows stand in the order of adding and labels by annotator, so that equal labels give equal bytes, also
    after an import elsewhere. Raises PrefloopError when there is nothing to write, or it cannot be written."""
    path = Path(path)
    format = format or _ENDINGS.get(path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix, "")
    if format not in _WRITERS:
        raise PrefloopError(f"{path}: name one of the formats {', '.join(_WRITERS)}.")
    write, kind = _WRITERS[format]
    with _no_collector(), db.transaction(store.engine, write=False) as connection:
        counts = dict.fromkeys(("comparisons", "labels"), 0)
        rows = _counted(_rows(connection, run, _shown_names(connection, key)), counts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            written = write(path, rows)
            manifest = {
                "run": run,
                "format": format,
                "rows": written,
                **counts,
                "pseudonyms": key is not None,
                "files": _digests(path),
                "log_head": audit.head(connection),
                "campaign": _versions(connection, run),
                "schema": files.describe(kind) if kind else list(CSV_COLUMNS),
                "program": prefloop.__version__,
            }
            write_atomic(manifest_path(path), json.dumps(manifest, indent=2) + "\n")
        except (OSError, ValueError) as error:
            raise PrefloopError(f"{path}: cannot be written ({error}); check the path, and the room there.") from error
    return manifest


@contextmanager
def _no_collector() -> Iterator[None]:
    """Rows hold no cycles; looking for some took a quarter of an export's time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def check_manifest(path: Path) -> Mapping[str, Json]:
    """The manifest beside a file or folder; an empty one where there is none. Raises PrefloopError where it describes
    other bytes."""
    beside = manifest_path(path)
    if not (beside.is_file() and path.exists()):
        return {}
    try:
        manifest: Mapping[str, Json] = json.loads(beside.read_bytes())
        expected = sorted(manifest["files"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PrefloopError(f"{beside}: no manifest of labels ({error!r}); export again.") from error
    if sorted(_digests(path).values()) != expected:
        raise PrefloopError(f"{path}: its content is not what {beside.name} describes; export it again.")
    return manifest


def people(store: Store, key: bytes | None, manifest: Mapping[str, Json]) -> Callable[[str], str]:
    """Who is meant by a name in an export: the annotator of this store whose pseudonym it is with this key.

    Without, it is a name of its own; but of an export of this very store, with pseudonyms by its manifest, it raises
    PrefloopError: each label would come in a second time, under its pseudonym."""
    with db.transaction(store.engine, write=False) as connection:
        names = {} if key is None else {shown: name for name, shown in _pseudonyms(connection, key).items()}
        known = select(tables.events.c.number).where(tables.events.c.hash == str(manifest.get("log_head")))
        ours = manifest.get("pseudonyms") is True and connection.execute(known).first() is not None

    def named(shown: str) -> str:
        if ours and shown not in names:
            raise PrefloopError(
                f"{shown!r:.80} is a pseudonym of somebody whose labels are here already, by a key that is not this"
                " workspace's; export without pseudonyms and import that."
            )
        return names.get(shown, shown)

    return named


def _digests(path: Path) -> dict[str, str]:
    """SHA-256 of a file, or of all files in a folder, by name."""
    found = sorted(path.iterdir()) if path.is_dir() else [path]
    return {file.name: files.sha256(file) for file in found if file.is_file()}


def _versions(connection: Connection, run: str) -> dict[str, Json]:
    table = tables.campaign_versions
    query = select(table.c.version, table.c.config).where(table.c.run == run).order_by(table.c.version)
    return {str(row.version): row.config for row in connection.execute(query)}


def _shown_names(connection: Connection, key: bytes | None) -> Callable[[str], str]:
    return str if key is None else _pseudonyms(connection, key).__getitem__


def _pseudonyms(connection: Connection, key: bytes) -> dict[str, str]:
    """By name."""
    names = connection.execute(select(tables.annotators.c.name)).scalars()
    made = {name: hmac.new(key, name.encode(), hashlib.sha256).hexdigest()[:_PSEUDONYM] for name in names}
    if len(set(made.values())) < len(made):
        raise PrefloopError("Two annotators get the same pseudonym with this key; take another one.")
    return made


def _counted(rows: Rows, counts: dict[str, int]) -> Rows:
    for row in rows:
        counts["comparisons"] += 1
        counts["labels"] += len(row["labels"])
        yield row


def _rows(connection: Connection, run: str, shown: Callable[[str], str]) -> Rows:
    """Every comparison of a run as a `Labeled`, as JSON."""
    table, found = tables.comparisons, False
    posteriors = Posteriors(connection, run, STANDING, shown)
    query = select(table).where(table.c.run == run).order_by(table.c.number)
    for part in connection.execute(query.execution_options(yield_per=_CHUNK)).mappings().partitions():
        labels = _labels(connection, run, [row["id"] for row in part], shown)
        for row in part:
            found = True
            yield _row(row, labels.get(row["id"], []), posteriors)
    if not found:
        raise PrefloopError(f"Run {run!r} has no comparisons in this label store; check its name.")


def _labels(
    connection: Connection, run: str, ids: Sequence[str], shown: Callable[[str], str]
) -> dict[str, list[dict[str, Json]]]:
    """The judgments that stand, by comparison, as `Label`s, as JSON."""
    table, people, accounts = tables.judgments, tables.annotators, tables.accounts
    group = func.coalesce(func.nullif(accounts.c.group, ""), people.c.group)
    known = (people.c.simulated, group, *(table.c[name] for name in _FACTS))
    query = select(table.c.comparison_id, cast(table.c.content, Text), *known)
    query = query.join(people, people.c.name == table.c.annotator)
    query = query.outerjoin(accounts, accounts.c.name == table.c.annotator)
    query = query.where(table.c.run == run, table.c.comparison_id.in_(ids), table.c.latest, ~table.c.withdrawn)
    made: dict[str, list[dict[str, Json]]] = {}
    for id_, content, *facts in connection.execute(query).all():
        said = _said(_decode(content)[0])
        said["annotator"] = shown(said["annotator"])
        made.setdefault(id_, []).append(dict(zip(_LABEL, (said, *facts), strict=True)))
    for labels in made.values():
        labels.sort(key=lambda label: (label["judgment"]["annotator"], label["status"] == "repeat"))
    return made


def _said(content: dict[str, Json]) -> dict[str, Json]:
    """A judgment as it is written today: whole, in this order, with decimal points. Most are so already."""
    if tuple(content) != _SAID:
        content = {**BLANK, **content}
    for name in ("probability", "seconds"):
        if type(content[name]) is int:
            content[name] = float(content[name])
    return content


def _row(row: RowMapping, labels: Sequence[Mapping[str, Json]], posteriors: Posteriors) -> dict[str, Json]:
    comparison = {name: row[name] for name in ("id", "prompt", "items")}
    if not _as_written(row["prompt"], row["items"]):
        comparison = to_json(from_json(Comparison, comparison, f"comparison {row['id']} in the store"))
    standing = [label for label in labels if label["status"] in STANDING]
    judged = [label["judgment"] for label in standing]
    return {
        "comparison": comparison,
        "group": comparison["prompt"]["id"],
        "mix": row["mix"],
        "gold": row["gold"],
        "priority": row["priority"],
        "held": "" if row["held"] == tables.NOT_OFFERED else row["held"],
        "simulated": bool(standing) and all(label["simulated"] for label in standing),
        "labels": labels,
        "pairs": to_json(pair_views(row["size"], judged, posteriors.of(row["id"]))),
    }


def _as_written(prompt: Mapping[str, Json], items: Sequence[Mapping[str, Json]]) -> bool:
    """Whether a comparison's content is as records are written today: whole, in order, with decimal points."""
    return tuple(prompt) == _PROMPT and all(
        tuple(item) == _ITEM
        and type(item["sampling"]["temperature"]) is float
        and all(int not in set(map(type, segment["logprobs"])) for segment in item["segments"])
        for item in items
    )


def _write_jsonl(path: Path, rows: Rows) -> int:
    return write_lines(path, map(encode_json, rows))


def _write_parquet(path: Path, rows: Rows) -> int:
    return files.write_parquet(path, Labeled, rows)


def _write_datasets(path: Path, rows: Rows) -> int:
    return files.write_saved(path, Labeled, rows)


def _write_csv(path: Path, rows: Rows) -> int:
    return files.write_csv(path, CSV_COLUMNS, map(_cells, rows))


def _write_preferences(path: Path, rows: Rows) -> int:
    made = (_preference(row) for row in rows if row["pairs"])
    return _write_jsonl(path, _some(made, "nothing has been compared yet"))


def _write_demonstrations(path: Path, rows: Rows) -> int:
    made = (demonstration for row in rows for demonstration in _demonstrations(row))
    return _write_jsonl(path, _some(made, "nobody wrote a better answer yet"))


_WRITERS: Mapping[str, tuple[Callable[[Path, Rows], int], Any]] = {
    "jsonl": (_write_jsonl, Labeled),
    "parquet": (_write_parquet, Labeled),
    "datasets": (_write_datasets, Labeled),
    "csv": (_write_csv, None),
    "preferences": (_write_preferences, Preference),
    "demonstrations": (_write_demonstrations, Demonstration),
}
FORMATS = tuple(_WRITERS)


def _some(rows: Iterable[dict[str, Json]], otherwise: str) -> Rows:
    found = False
    for row in rows:
        found = True
        yield row
    if not found:
        raise PrefloopError(f"There is nothing to write: {otherwise}.")


def _preference(row: Mapping[str, Json]) -> dict[str, Json]:
    """A `Preference`, as JSON: of two answers with the posterior as target, of more as one ranking, by how many others
    each is expected to beat."""
    comparison, pairs, judges = row["comparison"], row["pairs"], _judges(row)
    several = len(comparison["items"]) > 2
    return {
        "prompt": comparison["prompt"],
        "items": comparison["items"],
        "ranking": _ranking(len(comparison["items"]), pairs) if several else None,
        "target": None if several else pairs[0]["share" if judges else "posterior"],
        "weight": pairs[0]["weight"],
        "margin": 0.0 if several else pairs[0]["margin"],
        "group": row["group"],
        "simulated": row["simulated"],
        "judges": judges,
    }


def _judges(row: Mapping[str, Json]) -> list[str]:
    """The models that labeled where no person did: they give probabilities, simulated people rankings."""
    said = [label["judgment"] for label in row["labels"] if row["simulated"] and label["status"] in STANDING]
    return sorted({judgment["annotator"] for judgment in said if judgment["probability"] is not None})


def _ranking(size: int, pairs: Sequence[Mapping[str, Json]]) -> list[int]:
    beats = [0.0] * size
    for pair in pairs:
        beats[pair["a"]] += pair["posterior"]
        beats[pair["b"]] += 1 - pair["posterior"]
    rounded = [round(value, 9) for value in beats]
    order = sorted(set(rounded), reverse=True)
    return [order.index(value) for value in rounded]


def _demonstrations(row: Mapping[str, Json]) -> Rows:
    prompt = row["comparison"]["prompt"]
    for text in dict.fromkeys(label["judgment"]["edit"] for label in row["labels"]):
        if text.strip():
            yield {"id": content_id(prompt["id"], text), "prompt": prompt, "completion": text}


def _cells(row: Mapping[str, Json]) -> files.Group:
    """What the labels of a comparison have in common, and each label."""
    comparison, pairs = row["comparison"], row["pairs"]
    texts = [item["text"] for item in comparison["items"]]
    turns = comparison["prompt"]["messages"]
    asked = turns[0]["content"] if len(turns) == 1 else "\n\n".join(f"{t['role']}: {t['content']}" for t in turns)
    about = [comparison["id"], row["group"], comparison["prompt"]["slice"], row["mix"], asked, texts[0], texts[1]]
    about += [texts[2:] or None, [item["checkpoint"] for item in comparison["items"]]]
    only = pairs[0] if len(pairs) == 1 else {}
    sums = [only.get(name) for name in _CSV_PAIR] + [pairs if len(pairs) > 1 else None]
    return [*about, *sums], map(_label_cells, row["labels"])


def _label_cells(label: Mapping[str, Json]) -> list[Json]:
    said = label["judgment"]
    who = (said["annotator"], label["group"], label["simulated"], *(label[name] for name in _FACTS))
    return [*who, *(_given(said[name]) for name in _CSV_SAID)]


def _given(value: Json) -> Json:
    """None for what was left empty."""
    return value if value or value == 0 else None
