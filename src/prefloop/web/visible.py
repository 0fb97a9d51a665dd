"""Text of people and models for the page: escaped, and characters that hide, reorder or pile up spelled out.

For display only: the store keeps the text as it came. Odd are controls, lone surrogates, private use, noncharacters,
Unicode's default ignorables (direction and zero-width characters among them), and combining marks that have no base or
follow six others. Left alone where writing needs them: joiners beside letters of scripts that join and inside emoji,
zero-width spaces of scripts without word spaces, one variation selector after a symbol, flags.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache

from markupsafe import Markup, escape

MOST_SHOWN = 150_000
"""Characters of one text that are shown; how many are left out is said at its end."""
_MOST_MARKERS = 1000  # in one text; odd characters beyond show as U+FFFD
_MOST_MARKS = 6  # on one letter; Hebrew with all its accents needs 4

_JOINING = r"\u0600-\u08ff\u0900-\u0dff\u1000-\u109f\u1780-\u18af\ua840-\ua87f\ua8e0-\ua8ff\ufb50-\ufdcf\ufdf0-\ufdff"
_JOINING += r"\ufe70-\ufefc\U00010a00-\U00011fff\U0001e900-\U0001e95f"
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\uaa60-\uaadf"
_EMOJI = r"\u2190-\u21ff\u2300-\u23ff\u2600-\u27bf\u2b00-\u2bff\ufe0f\U0001f000-\U0001faff"
_SELECTORS = r"\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef"
_CASED = r"A-Za-z\xaa\xb5\xba\xc0-\u052f"
_IGNORABLE = (  # Default_Ignorable_Code_Point of Unicode 17, but for selectors, joiners and U+200B
    r"\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200e\u200f\u202a-\u202e\u2060-\u206f\u3164\ufeff\uffa0"
    r"\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e00ff\U000e01f0-\U000e0fff"
)
_CONTROLS = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ue000-\uf8ff\ufdd0-\ufdef\ufffe\uffff"
_CONTROLS += r"\U000f0000-\U0010ffff" + "".join(rf"\U{plane:04x}fffe\U{plane:04x}ffff" for plane in range(1, 15))


def visible(text: str) -> Markup:
    """Escaped text with odd characters as `<span class="odd" title="U+202E RIGHT-TO-LEFT OVERRIDE">[U+202E]</span>`."""
    return Markup("".join(_span(piece) if odd else escape(piece) for piece, odd in _pieces(text)))


def spelled(text: str) -> str:
    """The same without markup, not escaped: `[U+202E]`. For attributes, the page's title and very long texts."""
    return "".join(_marker(piece) if odd else piece for piece, odd in _pieces(text))


def plain(text: str) -> Markup:
    """A name, title or rationale for the page, isolated: its direction does not reach beyond it."""
    return Markup("<bdi>{}</bdi>").format(visible(text))


def oddities(text: str) -> int:
    """How many runs of odd characters a text has."""
    return sum(not match["flag"] for match in _odd().finditer(text))


def _pieces(text: str) -> Iterator[tuple[str, bool]]:
    """The text in order, cut into ordinary stretches (False) and runs of odd characters (True)."""
    left_out = len(text) - MOST_SHOWN
    text = text[:MOST_SHOWN].replace("\r\n", "\n").replace("\r", "\n")
    done = markers = 0
    for match in _odd().finditer(text):
        if match["flag"]:
            continue
        if markers == _MOST_MARKERS:
            yield _odd().sub("\ufffd", text[done:]), False
            break
        markers += 1
        start = match.start() + (_MOST_MARKS if match["pile"] else 0)
        yield text[done:start], False
        yield text[start : match.end()], True
        done = match.end()
    else:
        yield text[done:], False
    if left_out > 0:
        yield f"\n[{left_out:,} more characters are not shown]", False


def _span(run: str) -> str:
    kinds = {"Cc": "CONTROL CHARACTER", "Cs": "LONE SURROGATE", "Co": "PRIVATE USE"}
    name = unicodedata.name(run[0], kinds.get(unicodedata.category(run[0]), "NOT A CHARACTER"))
    return f'<span class="odd" title="U+{ord(run[0]):04X} {name}">{_marker(run)}</span>'


def _marker(run: str) -> str:
    if len(run) == 1:
        return f"[U+{ord(run):04X}]"
    return f"[U+{ord(run[0]):04X} x{len(run)}]" if len(set(run)) == 1 else f"[{len(run)} combining marks]"


@cache
def _odd() -> re.Pattern[str]:
    """Runs of odd characters; group `flag`: a flag's tags, which are none; `pile`: marks, of which the first 6 stay."""
    marks = [chr(c) for c in range(0x300, 0x20000) if unicodedata.category(chr(c)) in ("Mn", "Me")]
    marks = [mark for mark in marks if not re.match(f"[{_SELECTORS}{_IGNORABLE}]", mark)]
    low, high = (_ranges(m for m in marks if (m <= "\uffff") is wanted) for wanted in (True, False))
    viramas = _ranges(mark for mark in marks if unicodedata.combining(mark) == 9)
    mark = f"(?:[{low}]|(?=[\U00010000-\U0001ffff])[{high}])"
    suspects = rf"[{_IGNORABLE}{_CONTROLS}{_SELECTORS}\u200b-\u200d\U0001f3f4{low}\U00010a00-\U0001efff]"
    letters, joining = rf"[\w{_JOINING}]", f"[{_JOINING}]"
    fine_joiner = rf"(?<=[{viramas}].)|(?<={letters}.)(?={joining})|(?<={joining}.)(?={letters})"
    return re.compile(
        rf"""
        (?P<first>{suspects})(?:
        (?<=\U0001f3f4)(?P<flag>[\U000e0030-\U000e0039\U000e0061-\U000e007a]{{3,6}}\U000e007f)
        |(?<=[{_IGNORABLE}{_CONTROLS}])(?P=first)*
        |(?<=^{mark}){mark}*
        |(?<={mark})(?P<pile>{mark}{{{_MOST_MARKS},}})
        |(?<=[\u200b-\u200d])(?P=first)+
        |(?<=[\u200c\u200d])(?={mark})
        |(?<=\u200c)(?!{fine_joiner})
        |(?<=\u200d)(?!{fine_joiner}|(?<=[{_EMOJI}].)(?=[{_EMOJI}]))
        |(?<=\u200b)(?!(?<=[{_UNSPACED}].)(?=[{_UNSPACED}]))
        |(?<=[{_SELECTORS}])(?<![^\s{_CASED}{low}{high}{_SELECTORS}].)
        )""",
        re.VERBOSE | re.MULTILINE,
    )


def _ranges(characters: Iterable[str]) -> str:
    """Sorted characters as the inside of a character class."""
    spans: list[list[int]] = []
    for code in map(ord, characters):
        if spans and code == spans[-1][1] + 1:
            spans[-1][1] = code
        else:
            spans.append([code, code])
    return "".join(rf"\U{first:08x}-\U{last:08x}" for first, last in spans)
