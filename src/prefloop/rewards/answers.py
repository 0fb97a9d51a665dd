r"""The answer within a completion: what \boxed{} holds, what follows "Answer:", else the last line; and its value as a
number. No eval; every pattern runs in linear time."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

LONGEST = 100_000
"""Characters of a completion that are looked at; a longer one has no answer."""

_MARKS = " \t\r\n*_`\"'\u201c\u201d\u2018\u2019"
_DELIMITER = r"(?:\\[()\[\]]|(?<![\\$])\$++)"
_ENDS = re.compile(rf"\A{_DELIMITER}|{_DELIMITER}\Z")
_DELIMITERS = re.compile(_DELIMITER)
_WORDS = r"\\(?:text|math)(?:bf|it|rm)?\{"
_ONE_TEXT = re.compile(rf"{_WORDS}([^{{}}]*)\}}")

_BOX = re.compile(r"\\boxed\s*+\{")
_BRACE = re.compile(r"\\.|([{}])", re.DOTALL)  # one after a backslash is a sign like others
_ITEM = re.compile(r"^[ \t]*+[-\u2022][ \t]", re.MULTILINE)
_MARKER = re.compile(
    r"""(?:(?:^[^\w\n]{0,9}|\b(?:the|my|final)[ ](?:\w{1,12}[ ])?)
    answer(?:[ ]is\b(?:[*_ ]{0,3}[:=])?|[*_]{0,2}[ ]?[:=]|[ ][-\u2013\u2014](?=[ ]))
    |^\#{4}(?=[^\w\n]*+\d[^\sa-z]*+[ \t\r]*+$|[^\n]*+\s*+\Z))
    ((?:(?![.!?]\s).)*+)""",
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)
_FENCE = re.compile(r"^([ \t]*+)(`{3,}+)[^\n`]*\n(.*?)(?:^(?:\1)? {0,3}\2`*+[ \t\r]*+$|\Z)", re.MULTILINE | re.DOTALL)

_SIGNS = str.maketrans(
    dict.fromkeys("\u2010\u2011\u2012\u2013\u207b\u2212\ufe63\uff0d", "-")
    | dict.fromkeys("\u00ad\u200b\u200c\u200d\u2060\ufeff")
    | {"\u00d7": "*", "\u00b7": "*", "\u2044": "/"}
)
_EQUALS = re.compile(r"(?<![<>!])=|\u2248|\\approx\b")
_ONE_MORE = re.compile(r",(?!\d{3})|;|\b(?:and|or)\b")
_POWERS = {"dozen": "12"} | {
    name: f"10^{{{power}}}"
    for name, power in (("hundred", 2), ("thousand", 3), ("million", 6), ("billion", 9), ("trillion", 12))
}
_POWER = re.compile(rf"[ ]?({_WORDS}[^{{}}]*?)?\b({'|'.join(_POWERS)})s?\b", re.IGNORECASE)
_OTHERWISE = [  # what is taken off a number's neighbours, and what is written in another way
    (re.compile(pattern), plain)
    for pattern, plain in (
        (r"(?<!\w)[\u2014\u2015](?=[\d.])|(?:\A\s*minus|\bnegative) (?=[\d.$\\])", "-"),
        (r"\{,\}", ","),
        (r"\\[,!]|(?<=\d)\$(?!\d)|(?<!\S)\*\*(?=\S)|(?<=\S)\*\*(?=[\s,;:)]|\Z)", ""),
        (r"\\[ ;:()\[\]]|~|\\(?:q?quad|left|right|displaystyle)(?![a-zA-Z])", " "),
        (r"(\\[dt]?frac) ?(\d) ?(\d)", r"\1{\2}{\3}"),
        (r"(?:\^\{?)?\\(?:circ|degree)\b\}?", " "),
        (rf"(?:\^\{{?)?{_WORDS}([^{{}}]*)\}}(?:\^\{{?-?\d\}}?)?", r" \1 "),
        (r"(\b[a-zA-Z]{2,}|\b[ms])\^\{?-?\d\}?", r"\1"),
        (r" \((?!pi\b)[a-zA-Z]{2,}(?:[ ,.-]+[a-zA-Z]{2,})*\)", ""),
        (r"\A\s*([+-]?)\s*\(([^()]*)\)\s*\Z", r"\1\2"),
        (r"\A\s*([+-])\s+", r"\1"),
    )
]
_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+(?!,?\d)|\d{1,3}(?:[_' \u00a0\u2009\u202f\u2019]\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"""(?<![\w.])(?P<sign>[+-]?)(?:\\?[$\u20ac\u00a3\u00a5][ ]?)?
    (?:(?P<whole>\d{{1,15}})[ ]?(?=\\[dt]?frac|(?<=[ ])\d+/))?
    (?:\\[dt]?frac\{{[ ]?(?P<inner>-?)(?P<above>{_DECIMAL})[ ]?\}}\{{[ ]?(?P<under>-?)(?P<below>{_DECIMAL})[ ]?\}}
    |(?P<value>{_DECIMAL})(?:[ ]?/[ ]?(?P<over>{_DECIMAL}))?
    (?:(?:[eE]|[ ]?(?:\*|x|\\times|\\cdot)[ ]?10[ ]?(?:\^|\*\*)[ ]?)\{{?(?P<power>[+-]?\d{{1,3}})\}}?)?)
    (?P<percent>[ ]?(?:\\?%|percent\b|per[ ]cent\b|pct\b))?(?!\w|\.\d|\\[dt]?frac)""",
    re.VERBOSE | re.IGNORECASE,
)
_NAMES = "sqrt|ln|log|exp|sin|cos|tan|pi"
_PART = re.compile(  # of a larger expression, where # stands for the number
    rf"""[-+*/^<>=\u2264\u2265\u2260\u00b1\u221a-\u221c\u03c0\u00f7({{\\][ ]?\#|\|\#|\b(?:{_NAMES})[ (]*\#
    |\#(?:[ ]?[-+*^<>\u2264\u2265\u2260\u00b1\u221a-\u221c\u221e\u03c0\u00f7({{]|[|!])
    |\#[ ]?/(?![ ]?(?:[a-zA-Z]{{2}}|[hms]\b))|\#[ ]?/?[ ]?(?:{_NAMES}|[eix])\b|\#[ ]and[ ]a[ ]half|\\[a-zA-Z]""",
    re.VERBOSE,
)


def stated(text: str) -> str:
    r"""The final answer as it stands: the inside of the last \boxed{} that closes and is not empty, else the rest of
    the line after a marker ("Answer:", "the answer is", "####" before a number or in the last line), else the last line
    that is not empty. The first marker counts of the last sentence that has one; a list's dash is no part of a line."""
    if len(text) > LONGEST:
        return ""
    return _boxed(text) or _marked(_ITEM.sub("", text))


def final_answer(text: str) -> str:
    """The final answer without what may stand around it, see `bare`."""
    return bare(stated(text))


def bare(text: str) -> str:
    r"""A text without quotes, emphasis and full stops around it, nor LaTeX's delimiters where there are none within,
    nor \text{}."""
    text = _inside(text)
    if not _DELIMITERS.search(inner := _ENDS.sub("", text)):
        text = _inside(inner)
    words = _ONE_TEXT.fullmatch(text)
    return _inside(words[1]) if words else text


def fenced(text: str) -> str:
    """The inside of the first block between lines of three backticks or more, without the indent of its first line; the
    whole text where there is none."""
    if not (found := _FENCE.search(text)):
        return text
    indent, _, block = found.groups()
    return re.sub(rf"^[ \t]{{0,{len(indent)}}}", "", block, flags=re.MULTILINE)


def normal(text: str) -> str:
    """For comparing texts: one form of each letter, no case, single spaces, no marks around it. A power or a fraction
    in one sign stays what it is."""
    meant = ("<super>", "<fraction>", "<square>")
    plain = (c if unicodedata.decomposition(c).startswith(meant) else unicodedata.normalize("NFKC", c) for c in text)
    return bare(" ".join(unicodedata.normalize("NFC", "".join(plain).casefold()).split()))


def scaled(text: str) -> str:
    r"""With the words for powers of ten, and a dozen, as factors: 3 million is 3 \times 10^{6}."""
    return _POWER.sub(lambda m: rf" \times {_POWERS[m[2].lower()]}{m[1] or ' '}", text)


def number(text: str) -> Fraction | None:
    r"""The one number of a short text, exactly; None where there is none, or several, so that a list is no answer.

    Read: signs, thousands in groups of three (set off by comma, space, apostrophe or underscore), a decimal point,
    fractions and mixed numbers (3/4, 1 3/4, \frac{3}{4}), powers of ten (1.5e-3, 1.5 \times 10^{-3}, 3 million),
    percent (50% is 0.5), a currency sign in front, brackets around it, a unit or other words that stand apart. Only
    what follows the last = counts, and a part of a larger expression is no number.
    """
    *others, last = _EQUALS.split(text.translate(_SIGNS))
    if len(last) > 400 or any(_ONE_MORE.search(other) for other in others[1:]):
        return None
    last = scaled(last)
    for pattern, plain in _OTHERWISE:
        last = pattern.sub(plain, last)
    found = list(_NUMBER.finditer(last))
    if len(found) != 1 or _PART.search(last[: found[0].start()] + "#" + last[found[0].end() :]):
        return None
    return _value(found[0])


def _inside(text: str) -> str:
    return text.lstrip(_MARKS).rstrip(_MARKS + ".")


def _boxed(text: str) -> str:
    starts, opened, boxes = {box.end() for box in _BOX.finditer(text)}, [], []
    for brace in _BRACE.finditer(text):
        if brace[1] == "{":
            opened.append(brace.end())
        elif brace[1] and opened and (start := opened.pop()) in starts:
            boxes.append((start, brace.start()))
    inner = (text[start:end].strip() for start, end in sorted(boxes, reverse=True))
    return next((answer for answer in inner if bare(answer)), "")


def _marked(text: str) -> str:
    markers = [marker.start(1) for marker in _MARKER.finditer(text)]
    rest = text[markers[-1] :] if markers else ""
    lines = [line.strip() for line in (rest or text).splitlines() if bare(line)]
    return (lines[0] if rest else lines[-1]) if lines else ""


def _value(match: re.Match[str]) -> Fraction | None:
    top = _decimal(match["above"] or match["value"])
    bottom = _decimal(match["below"] or match["over"] or "1")
    if bottom == 0:
        return None
    value = int(match["whole"] or 0) + (-top if bool(match["inner"]) != bool(match["under"]) else top) / bottom
    value *= Fraction(10) ** int(match["power"] or 0)
    return (-value if match["sign"] == "-" else value) / (100 if match["percent"] else 1)


def _decimal(digits: str) -> Fraction:
    return Fraction(re.sub(r"[^\d.]", "", digits))
