"""Rows of others into what is to be compared: which layout a row has, and what it says of answers and who chose.

A model's name goes into `Completion.checkpoint` and nowhere else: labelers never see that."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from prefloop.data.found import IMPORTED, Found, Row, chosen, in_order, mapping, name, number, ranks
from prefloop.data.jsonl import asked, make_completion, make_preference, read_messages, text_completion, text_field
from prefloop.data.limits import parse_json
from prefloop.data.platforms import arena, argilla, argilla_flat, label_studio
from prefloop.types import Comparison, Json, Judgment, PrefloopError, from_json

_EXTRAS = ("slice", "mix", "priority", "gold")


def read_row(row: Row, where: str) -> Found:
    """A row of any layout that is known, its answers in the order of their ids (see `in_order`).

    Also read: "annotator" and "strength" (1 to 4) of a choice, "slice", "mix", "priority", and "gold" ({"ranking",
    "note"}, a known answer). Raises PrefloopError naming `where` for an unknown layout, with the fields found and those
    known, and for a row that does not fit its own."""
    plain = {field: value for field, value in row.items() if field not in _EXTRAS}
    make = next((make for fields, make in _LAYOUTS.items() if plain.keys() >= set(fields.split())), None)
    if any(field.endswith(".responses") for field in row):
        make = argilla_flat
    if make is not None:
        return in_order(_with_extras(make(plain, where), row, where), where)
    if "prompt" in row:
        raise PrefloopError(f"{where}: a prompt without an answer; have answers sampled first (prefloop collect).")
    layouts = "; ".join(", ".join(fields.split()) for fields in ("comparison labels", *_LAYOUTS))
    found = ", ".join(row)[:300] or "none"
    raise PrefloopError(f"{where}: unknown layout; fields found: {found}; layouts known: {layouts}.")


def _with_extras(found: Found, row: Row, where: str) -> Found:
    extras: dict[str, Any] = {}
    if mix := name(row, "mix", where):
        extras["mix"] = mix
    if row.get("priority") not in (None, ""):
        extras["priority"] = number(row["priority"], "priority", where)
    if slice_ := name(row, "slice", where):
        extras["prompt"] = dataclasses.replace(found.prompt, slice=slice_)
    if row.get("gold") not in (None, ""):
        extras |= {"gold": read_gold(row["gold"], len(found.items), where), "whole": True}
    return dataclasses.replace(found, **extras)


def read_gold(value: Json, count: int, where: str) -> Row:
    """A known answer about so many, with a note, perhaps an empty one. Raises PrefloopError for what is none."""
    value = parse_json(value, f"{where}: gold") if isinstance(value, str) else value
    gold = mapping(value, "gold", where)
    if not gold.keys() <= {"ranking", "note"}:
        raise PrefloopError(f"{where}: field 'gold' must be an object with 'ranking' and, if you like, 'note'.")
    note = text_field(gold, "note", f"{where}: gold") if gold.get("note") is not None else ""
    return {"ranking": list(ranks(gold.get("ranking"), count, "gold", where)), "note": note}


def _answers(row: Row, where: str) -> Found:
    prompt = asked(read_messages(row["prompt"], "prompt", where), "prompt", where)
    texts, models = row["answers"], row.get("models") or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise PrefloopError(f"{where}: field 'answers' must be a list of strings, one for each answer.")
    if not isinstance(models, list) or len(models) not in (0, len(texts)):
        raise PrefloopError(f"{where}: field 'models' must name one model for each of {len(texts)} answers.")
    names = [str(model or "") for model in models] or [""] * len(texts)
    items = tuple(text_completion(prompt, text, model) for text, model in zip(texts, names, strict=True))
    if row.get("ranking") in (None, ""):
        return Found(prompt=prompt, items=items, whole=False)
    ranking = ranks(row["ranking"], len(texts), "ranking", where)
    return Found(prompt=prompt, items=items, judgments=(chosen(ranking, row, where),))


def _completion(row: Row, where: str) -> Found:
    prompt, completion = make_completion(dict(row), where)
    return Found(prompt=prompt, items=(completion,), whole=False)


def _choice(row: Row, where: str) -> Found:
    made = make_preference(dict(row), where)
    return Found(prompt=made.prompt, items=made.items, judgments=(chosen((0, 1), row, where),))


def _record(row: Row, where: str) -> Found:
    """Our own `Comparison`, which waits for a judgment, or `Preference`."""
    if "id" in row:
        made = from_json(Comparison, {field: row[field] for field in ("id", "prompt", "items")}, where)
        return Found(prompt=made.prompt, items=made.items)
    preference = make_preference(dict(row), where)
    ranking, target = preference.ranking, preference.target
    if ranking is None and target is None:
        ranking = (0, 1)
    said = Judgment(
        comparison_id="", annotator=IMPORTED, ranking=ranking, probability=target if ranking is None else None
    )
    return Found(prompt=preference.prompt, items=preference.items, judgments=(said,))


_LAYOUTS: Mapping[str, Callable[[Row, str], Found]] = {
    "prompt items": _record,
    "conversation_a conversation_b": arena,
    "prompt response_a response_b": arena,
    "data annotations": label_studio,
    "fields responses": argilla,
    "prompt answers": _answers,
    "chosen rejected": _choice,
    "prompt completion": _completion,
    "messages": _completion,
}
