"""The form in which labelers answer: its fields, and the Answer that they make. Drafts are such Answers too, with gaps.

Fields carry the names of axes and boxes, not their numbers: what was typed before a campaign changed still says what it
is about."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from starlette.datastructures import FormData

from prefloop.configs.campaign import STRENGTHS, CampaignConfig
from prefloop.store.answers import Answer
from prefloop.types import CANT_JUDGE, Json

UNRANKED = -1
UNRATED = 0
_RESERVED = "degjkrtu"  # keys of the page itself


def read(form: FormData, config: CampaignConfig, count: int) -> Answer:
    """What a form about `count` answers says so far. What is missing, or no number where one belongs, is left out."""
    places = range(count)
    axes = {name: value for name in config.axes if (value := _whole(form, f"axis:{name}")) is not None}
    ranks = [_whole(form, f"rank:{place}") for place in places]
    ratings = [_whole(form, f"rating:{place}") for place in places]
    return Answer(
        axes=axes,
        ranks=_filled(ranks, UNRANKED),
        flags=[flag for flag in form.getlist("flag") if isinstance(flag, str)],
        ratings=_filled(ratings, UNRATED),
        checks={name: [f"check:{name}:{place}" in form for place in places] for name in config.rubric},
        edit=_text(form, "edit") if config.edits else "",
        rationale=_text(form, "rationale") if config.rationale != "off" else "",
        seconds=_seconds(form),
    )


def written(draft: Mapping[str, Json] | None) -> Answer:
    """A kept draft, or an answer as given, as an Answer."""
    return Answer(**(draft or {}))


def strengths(ties: bool) -> list[dict[str, Json]]:
    """The choices of an axis from left to right: value, key, words."""
    values = [value for value in range(-len(STRENGTHS), len(STRENGTHS) + 1) if value or ties]
    return [
        {
            "value": value,
            "key": value + len(STRENGTHS) + 1,
            "side": "left" if value < 0 else "right" if value else "tie",
            "word": STRENGTHS[abs(value) - 1] if value else "tie",
        }
        for value in values
    ]


def flag_keys(flags: Sequence[str]) -> dict[str, str]:
    """A letter for each flag: the first of its own that is free."""
    taken = dict.fromkeys(_RESERVED, "")
    for flag in flags:
        letters = re.sub("[^a-z]", "", flag.lower()) + "abcdefghijklmnopqrstuvwxyz"
        taken[next(letter for letter in letters if letter not in taken)] = flag
    return {flag: letter for letter, flag in taken.items() if flag} | {CANT_JUDGE: "0"}


def order(answer: Answer, count: int) -> list[int]:
    """The places from the best answer to the worst, as far as they are ranked; the rest as shown."""
    ranks = list(answer.ranks) or [UNRANKED] * count
    return sorted(range(count), key=lambda place: (ranks[place] == UNRANKED, ranks[place]))


def unchanged(answer: Answer) -> bool:
    """Whether answers are ranked just as they were shown."""
    return len(answer.ranks) > 2 and list(answer.ranks) == list(range(len(answer.ranks)))


def _text(form: FormData, name: str) -> str:
    value = form.get(name)
    return value.replace("\r\n", "\n") if isinstance(value, str) and value.strip() else ""


def _whole(form: FormData, name: str) -> int | None:
    value = form.get(name)
    return int(value) if isinstance(value, str) and re.fullmatch(r"-?[0-9]", value) else None


def _seconds(form: FormData) -> float | None:
    try:
        value = float(str(form.get("seconds", "")))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _filled(values: Sequence[int | None], gap: int) -> list[int]:
    """[None, 2] -> [gap, 2]; nothing at all -> []"""
    return [] if all(value is None for value in values) else [gap if value is None else value for value in values]
