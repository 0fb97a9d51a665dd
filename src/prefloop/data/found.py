"""What a row of others holds, and how its fields are read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefloop.data.pairing import comparison_id
from prefloop.types import Completion, Json, Judgment, PrefloopError, Prompt

IMPORTED = "imported"
"""The annotator of judgments that name none."""
_LONGEST_NAME = 200
Row = Mapping[str, Json]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A comparison of a prompt's answers, with the judgments that others made of it. Without `whole` the answers are on
    their own, to be compared with other answers to the prompt. gold: {"ranking", "note"}, a known answer."""

    prompt: Prompt
    items: tuple[Completion, ...]
    judgments: tuple[Judgment, ...] = ()
    whole: bool = True
    mix: str = ""
    priority: float = 0.0
    gold: Row | None = None


def in_order(found: Found, where: str) -> Found:
    """The same with its answers by id, so that a pair is one comparison whichever way round it comes.

    Raises PrefloopError where answers are too few or the same but for space around them."""
    if found.whole and len(found.items) < 2:
        raise PrefloopError(f"{where}: {len(found.items)} answer; a comparison needs two or more.")
    texts = [item.text.strip() for item in found.items]
    if found.whole and len(set(texts)) < len(texts):
        raise PrefloopError(f"{where}: two of the answers are the same; nothing can be preferred, remove this row.")
    order = sorted(range(len(texts)), key=lambda i: found.items[i].id)
    items = tuple(found.items[i] for i in order)
    judgments = tuple(_turned(judgment, order, comparison_id(items)) for judgment in found.judgments)
    gold = found.gold and {**found.gold, "ranking": [found.gold["ranking"][i] for i in order]}
    return dataclasses.replace(found, items=items, judgments=judgments, gold=gold)


def _turned(judgment: Judgment, order: Sequence[int], id_: str) -> Judgment:
    ranking, probability = judgment.ranking, judgment.probability
    if ranking is not None:
        ranking = tuple(ranking[i] for i in order)
    if probability is not None and order[0] != 0:
        probability = 1 - probability
    return dataclasses.replace(judgment, comparison_id=id_, ranking=ranking, probability=probability)


def chosen(ranking: Sequence[int], row: Row, where: str, **facts: Any) -> Judgment:
    """A judgment by whoever the row names, or by IMPORTED; of two answers with the strength that it gives."""
    who = name(row, "annotator", where) or name(row, "judge", where) or IMPORTED
    strength = None
    if row.get("strength") not in (None, "") and len(set(ranking)) == len(ranking) == 2:
        given = number(row["strength"], "strength", where)
        if given not in (1, 2, 3, 4):
            raise PrefloopError(
                f"{where}: field 'strength' goes from 1 (barely) to 4 (much), not {row['strength']!r:.40}."
            )
        strength = int(given)
    return Judgment(comparison_id="", annotator=who, ranking=tuple(ranking), strength=strength, **facts)


def ranks(value: Json, count: int, field: str, where: str) -> tuple[int, ...]:
    """One rank from 0 for each answer."""
    if not isinstance(value, list) or len(value) != count or not all(type(v) is int and 0 <= v < count for v in value):
        raise PrefloopError(
            f"{where}: {field!r} needs a rank for each of {count} answers, 0 for the best, equal for ties."
        )
    return tuple(value)


def number(value: Json, field: str, where: str) -> float:
    """A finite number, also one written as text."""
    try:
        made = float(value)
    except (TypeError, ValueError, OverflowError):
        made = math.nan
    if not math.isfinite(made):
        raise PrefloopError(f"{where}: field {field!r} must be a number, not {value!r:.40}.")
    return made


def name(row: Row, field: str, where: str) -> str:
    """A short name on one line; empty where there is none."""
    value = row.get(field)
    made = "" if value is None else str(value)
    if len(made) > _LONGEST_NAME or not made.isprintable():
        raise PrefloopError(f"{where}: field {field!r} must be a name of at most {_LONGEST_NAME} printable characters.")
    return made


def mapping(value: Json, field: str, where: str) -> Row:
    """An object; none is an empty one."""
    if value is not None and not isinstance(value, Mapping):
        raise PrefloopError(f"{where}: {field!r} must be an object, not {value!r:.40}.")
    return value or {}


def listed(value: Json, field: str, where: str) -> list[Json]:
    """A list; none is an empty one."""
    if value is not None and not isinstance(value, list):
        raise PrefloopError(f"{where}: {field!r} must be a list, not {value!r:.40}.")
    return value or []
