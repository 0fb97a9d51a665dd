"""What code can count in an answer: words, lines, marks and phrases that were asked for or forbidden, with partial
credit for near misses. Every pattern runs in linear time."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from prefloop.rewards.refusals import NUMBERED, PLAIN, WORD
from prefloop.types import Json, PrefloopError, Prompt

CONSTRAINTS = (
    "mentions forbids min_words max_words sentences bullets numbered lines starts_with ends_with question lowercase "
    "uppercase no_commas json_keys"
)

SENTENCE_END = re.compile(r"""(?<![.!?…])[.!?…]++["')\]]*+(?=\s|$)""")
_ABBREVIATION = re.compile(r"\b(mr|mrs|ms|dr|st|vs|e\.g|i\.e)\.", re.IGNORECASE)
LIST_MARK = re.compile(r"^(?:\d{1,3}[.)]|[-*•])[ \t]", re.MULTILINE)


def require_shapes(prompt: Prompt) -> None:
    """Raises PrefloopError for a check whose value is not of its type."""
    for names, (wanted, fits) in _SHAPES.items():
        for name in names.split():
            if name in prompt.checks and not fits(prompt.checks[name]):
                raise PrefloopError(f"Prompt {prompt.id}: {name} is {prompt.checks[name]!r:.80}; give {wanted}.")


def _is_list(value: Json, fits: Callable[[Json], bool]) -> bool:
    return isinstance(value, list | tuple) and all(map(fits, value))


def _is_text(value: Json) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_group(value: Json) -> bool:
    return bool(value) and _is_list(value, _is_text)


def _is_number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


_SHAPES: dict[str, tuple[str, Callable[[Json], bool]]] = {
    "mentions correction": ('a list of lists of phrases, as [["tea", "coffee"]]', lambda v: _is_list(v, _is_group)),
    "forbids json_keys": ("a list of texts", lambda v: _is_list(v, _is_text)),
    "min_words max_words sentences bullets numbered lines": (
        "a whole number from 0",
        lambda v: type(v) is int and v >= 0,
    ),
    "ideal_words": ("a number above 0", _is_number),
    "starts_with ends_with": ("a text", _is_text),
    "question lowercase uppercase no_commas fiction": ("true or false", lambda v: isinstance(v, bool)),
}


@lru_cache(maxsize=4096)
def _phrase(alternatives: tuple[str, ...]) -> re.Pattern[str]:
    plain = (" ".join(a.translate(PLAIN).lower().split()) for a in alternatives)
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, plain))})(?!\w)")


def share_met(groups: Sequence[Sequence[str]], flat: str) -> float:
    return sum(bool(_phrase(tuple(group)).search(flat)) for group in groups) / len(groups)


def share_of_checks(checks: Mapping[str, Json], text: str, flat: str, n_words: int) -> float | None:
    """What was asked for, scaled by the bans that an empty phrase would also respect; None without any check."""
    asked = required(checks, text, flat, n_words).values()
    bans = limits(checks, text, flat, n_words).values()
    if not asked:
        return sum(bans) / len(bans) if bans else None
    share = sum(asked) / len(asked)
    return share * (1.0 + sum(bans) / len(bans)) / 2.0 if bans else share


def required(checks: Mapping[str, Json], text: str, flat: str, n_words: int) -> dict[str, float]:
    """How far each thing asked for is there, 0..1, by name; each group of `mentions` is one thing."""
    lines = [line for line in text.split("\n") if line.strip()]
    met = {f"mentions[{i}]": share_met([group], flat) for i, group in enumerate(checks.get("mentions", ()))}
    counts = {
        "sentences": _count_sentences(text),
        "bullets": sum(line.startswith(("- ", "* ")) for line in lines),
        "numbered": sum(bool(NUMBERED.match(line)) for line in lines),
        "lines": len(lines),
    }
    met |= {name: _near(count, checks[name]) for name, count in counts.items() if name in checks}
    if "min_words" in checks:
        met["min_words"] = 1.0 if n_words >= checks["min_words"] else 0.8 * n_words / checks["min_words"]
    for name, holds in (("starts_with", str.startswith), ("ends_with", str.endswith)):
        if name in checks:
            wanted = checks[name].translate(PLAIN).strip()
            met[name] = 1.0 if holds(text, wanted) else 0.5 if holds(flat, wanted.lower()) else 0.0
    if checks.get("question"):
        met["question"] = 1.0 if text.endswith("?") else 0.3 if "?" in text else 0.0
    if "json_keys" in checks:
        met["json_keys"] = _json_share(text, checks["json_keys"])
    return met


def limits(checks: Mapping[str, Json], text: str, flat: str, n_words: int) -> dict[str, float]:
    """How far each ban is kept, 0..1, by name."""
    met = {}
    if forbidden := checks.get("forbids"):
        hits = sum(bool(_phrase((phrase,)).search(flat)) for phrase in forbidden)
        met["forbids"] = 0.5 * (1.0 - hits / len(forbidden)) if hits else 1.0
    if "max_words" in checks:
        excess = n_words / max(1, checks["max_words"]) - 1.0
        met["max_words"] = 1.0 if excess <= 0.0 else max(0.0, 0.8 * (1.0 - excess))
    for name, fits in (("lowercase", str.islower), ("uppercase", str.isupper)):
        if checks.get(name):
            cased = [c for c in text if c.islower() or c.isupper()]
            share = sum(map(fits, cased)) / max(1, len(cased))
            met[name] = 1.0 if share == 1.0 else 0.5 * share
    if checks.get("no_commas"):
        met["no_commas"] = 0.5 ** text.count(",")
    return met


def _near(count: int, wanted: int) -> float:
    return 1.0 if count == wanted else 0.5 * max(0.0, 1.0 - abs(count - wanted) / max(1, wanted))


def _count_sentences(text: str) -> int:
    prose = _ABBREVIATION.sub(r"\1", LIST_MARK.sub("", text))
    return sum(bool(WORD.search(piece)) for piece in SENTENCE_END.split(prose))


def _json_share(text: str, keys: Sequence[str]) -> float:
    found = json_object(text)
    if found is not None:
        return 0.4 + 0.6 * _share_of(keys, found)
    inside = json_object(text[max(0, text.find("{")) : text.rfind("}") + 1])
    if inside is not None:
        return 0.5 * _share_of(keys, inside)
    return 0.2 * sum(f'"{key}"' in text for key in keys) / max(1, len(keys))


def _share_of(keys: Sequence[str], found: Mapping[str, Json]) -> float:
    return sum(key in found for key in keys) / len(keys) if keys else 1.0


def json_object(text: str) -> dict[str, Json] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
