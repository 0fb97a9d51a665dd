"""HTML as a browser reads it (html5lib), and what of it is allowed: by a list of its own, on purpose."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from xml.etree.ElementTree import Element

import html5lib

MATHML = "{http://www.w3.org/1998/Math/MathML}"
_NONE: dict[str, str] = {}
_AUTO = {"dir": "auto"}
_PLAIN = ("br", "code", "em", "figcaption", "figure", "hr", "s", "strong", "tbody", "td", "th", "thead", "tr", "bdi")
_HTML = {
    **dict.fromkeys((*_PLAIN, "del", "ins"), _NONE),
    **dict.fromkeys(("blockquote", "h4", "h5", "h6", "ol", "table", "ul"), _AUTO),
    "a": {"href": r"(?:https?://|mailto:)[!-~]+", "target": "_blank", "rel": "noopener noreferrer nofollow"},
    "p": {**_AUTO, "class": "note|chunk"},
    "pre": {"dir": "ltr", "class": "code"},
    "code": {"class": "latex"},
    "li": {"value": r"\d{1,9}"},
    "span": {"class": r"odd|address|image|hl-[a-z]+\d?", "title": r"U\+[0-9A-F]{4,6} [A-Z0-9 -]+"},
}
_MATHML = (
    *("math", "mrow", "mi", "mn", "mo", "mtext", "mspace", "mfrac", "msqrt", "mroot", "mstyle", "menclose"),
    *("msub", "msup", "msubsup", "munder", "mover", "munderover", "mtable", "mtr", "mtd"),
)
_ATTRIBUTES = (
    *("display", "displaystyle", "scriptlevel", "mathvariant", "stretchy", "fence", "form", "separator", "accent"),
    *("movablelimits", "largeop", "lspace", "rspace", "minsize", "maxsize", "width", "linethickness", "notation"),
    *("columnalign", "columnlines", "columnspacing", "rowlines", "rowspacing"),
)
_VISIBLE_FORMATS = "[\u0600-\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd\U00013430-\U0001343f]"


class Page:
    """A fragment of HTML, parsed."""

    def __init__(self, html: str) -> None:
        parser = html5lib.HTMLParser(namespaceHTMLElements=False)
        self.root: Element = parser.parseFragment(str(html))
        self.errors: list[object] = parser.errors

    def elements(self, name: str = "") -> list[Element]:
        return [e for e in self.root.iter() if e is not self.root and (not name or e.tag in (name, MATHML + name))]

    def text(self, name: str = "") -> str:
        """All text, or that of the first element of this name."""
        return "".join((self.elements(name)[0] if name else self.root).itertext())

    def faults(self) -> list[str]:
        """Whatever is not allowed on the page."""
        return [f"parse error {error}" for error in self.errors] + [f for e in self.elements() for f in _faults(e)]


def hidden(html: str) -> list[str]:
    """Characters that a reader could not see, or that reorder others; joiners are looked at elsewhere."""
    return [
        f"U+{ord(c):04X}"
        for c in sorted(set(html))
        if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
        and c not in "\n\t\u200c\u200d"
        and not re.match(_VISIBLE_FORMATS, c)
    ]


def _faults(element: Element) -> Iterator[str]:
    name = element.tag
    if not isinstance(name, str):
        yield "comment"
    elif name.startswith("{"):
        if name.removeprefix(MATHML) not in _MATHML:
            yield name
        for attribute, value in element.attrib.items():
            if attribute not in _ATTRIBUTES or not re.fullmatch(r"[a-z0-9 .+-]{0,80}", value):
                yield f"{name} {attribute}={value}"
    elif name not in _HTML:
        yield name
    else:
        for attribute, value in element.attrib.items():
            if not re.fullmatch(_HTML[name].get(attribute, r"(?!)"), value):
                yield f"{name} {attribute}={value}"
