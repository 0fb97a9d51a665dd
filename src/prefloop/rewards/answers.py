r"""The answer within a completion: what \boxed{} holds, what follows "Answer:", else the last line; and its value as a
number. No eval; every pattern runs in linear time."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

LONGEST = 100_000
"""Characters of a completion that are looked at; a longer one has no answer."""

_BOX = "\\boxed{"
_MARK = re.compile(r"(?:####|\b(?:final )?answer(?: is)?[*_]{0,2}:|\b(?:final )?answer is\b)[*_]{0,2}", re.IGNORECASE)
_WRAP = " \t\r\n*_`\"'$\u201c\u201d\u2018\u2019"
_SIGNS = str.maketrans("\u2212\u2013\uff0d\u00d7\u00b7\u2044", "---**/")
_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+(?!,?\d)|\d{1,3}(?:[_' \u00a0\u2009\u202f\u2019]\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"""(?<![\w.])(?P<sign>[+-]?)[ ]?(?:\\?[$\u20ac\u00a3\u00a5][ ]?)?
    (?:(?P<whole>\d{{1,15}})[ ]?(?=\\[dt]?frac|(?<=[ ])\d+/))?
    (?:\\[dt]?frac\{{[ ]?(?P<inner>-?)(?P<above>{_DECIMAL})[ ]?\}}\{{[ ]?(?P<below>{_DECIMAL})[ ]?\}}
    |(?P<value>{_DECIMAL})(?:[ ]?/[ ]?(?P<over>{_DECIMAL}))?
    (?:(?:[eE]|[ ]?(?:\*|x|\\times|\\cdot)[ ]?10[ ]?(?:\^|\*\*)[ ]?)\{{?(?P<power>[+-]?\d{{1,3}})\}}?)?)
    (?P<percent>[ ]?(?:\\?%|percent\b|per[ ]cent\b|pct\b))?(?!\w|\.\d|\\[dt]?frac)""",
    re.VERBOSE | re.IGNORECASE,
)
_UNIT = re.compile(r"(?:\^\{?)?\\(?:circ\b\}?|(?:text|mathrm)\{([^{}]*)\})")
_PART = re.compile(r"[\^*/+({\\-] ?#|# ?[\^*/+({-]")  # of a larger expression
_FENCE = re.compile(r"^ {0,3}```[^\n`]*\n(.*?)(?:^ {0,3}```[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)


def final_answer(text: str) -> str:
    r"""What an answer comes to: the last \boxed{}, else the rest of the line after the last marker ("Answer:", "the
    answer is", "####"), else the last line that is not empty; without quotes, emphasis and dollar signs around it."""
    if len(text) > LONGEST:
        return ""
    if (start := text.rfind(_BOX)) >= 0:
        depth, begin = 1, start + len(_BOX)
        for end in range(begin, len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                return text[begin:end].strip(_WRAP)
    marks = list(_MARK.finditer(text))
    rest = text[marks[-1].end() :] if marks else ""
    lines = [line for line in (rest or text).splitlines() if line.strip(_WRAP)]
    found = (lines[0] if rest else lines[-1]) if lines else ""
    return found.strip(_WRAP).removesuffix(".").strip(_WRAP)


def fenced(text: str) -> str:
    """The inside of the first block between lines of three backticks; the whole text where there is none."""
    found = _FENCE.search(text)
    return found[1] if found else text


def normal(text: str) -> str:
    """For comparing texts: one form of each letter, no case, single spaces, no marks around it."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return plain.strip(_WRAP).removesuffix(".").strip(_WRAP)


def number(text: str) -> Fraction | None:
    r"""The one number of a short text, exactly; None where there is none, or several, so that a list is no answer.

    Read: signs, thousands in groups of three (set off by comma, space, apostrophe or underscore), a decimal point,
    fractions and mixed numbers (3/4, 1 3/4, \frac{3}{4}), powers of ten (1.5e-3, 1.5 \times 10^{-3}), percent
    (50% is 0.5), a currency sign in front, a unit that stands apart. Only what follows the last = counts, and a part of
    a larger expression is no number.
    """
    short = re.split(r"[=\u2248]", text.translate(_SIGNS))[-1].replace("{,}", ",").replace("\\,", "")
    if len(short) > 400:
        return None
    short = _UNIT.sub(r" \1 ", short)
    found = list(_NUMBER.finditer(short))
    if len(found) != 1 or _PART.search(short[: found[0].start()] + "#" + short[found[0].end() :]):
        return None
    return _value(found[0])


def _value(match: re.Match[str]) -> Fraction | None:
    top = _decimal(match["above"] or match["value"])
    bottom = _decimal(match["below"] or match["over"] or "1")
    if bottom == 0:
        return None
    value = int(match["whole"] or 0) + (-top if match["inner"] else top) / bottom
    value *= Fraction(10) ** int(match["power"] or 0)
    return (-value if match["sign"] == "-" else value) / (100 if match["percent"] else 1)


def _decimal(digits: str) -> Fraction:
    return Fraction(re.sub(r"[^\d.]", "", digits))
