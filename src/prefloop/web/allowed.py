"""The only elements and attributes that text of people and models can put on a page."""

from __future__ import annotations

import nh3
from markupsafe import Markup

from prefloop.web import code, maths

ELEMENTS = maths.ELEMENTS | {
    *("a", "br", "code", "em", "s", "span", "strong"),
    *("blockquote", "figcaption", "figure", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "ul"),
    *("table", "tbody", "td", "th", "thead", "tr"),
}
ATTRIBUTES = {  # rel and target of links are ours, not the text's
    **{name: frozenset(maths.ATTRIBUTES) for name in maths.ELEMENTS},
    "a": frozenset({"href"}),
    "li": frozenset({"value"}),
    "span": frozenset({"title"}),
}
DIRECTIONS = {  # auto: by the first letter that has one
    **{name: frozenset({"auto"}) for name in ("blockquote", "h4", "h5", "h6", "ol", "p", "table", "ul")},
    "pre": frozenset({"ltr"}),
}
CLASSES = {
    "p": frozenset({"note", "chunk"}),
    "pre": frozenset({"code"}),
    "span": code.CLASSES | {"odd", "address", "image"},
    "code": frozenset({"latex"}),
}
SCHEMES = frozenset({"http", "https", "mailto"})
REL = "noopener noreferrer nofollow"

_CLEANER = nh3.Cleaner(
    tags=ELEMENTS,
    attributes=ATTRIBUTES,
    tag_attribute_values={name: {"dir": values} for name, values in DIRECTIONS.items()},
    set_tag_attribute_values={"a": {"target": "_blank"}},
    allowed_classes=CLASSES,
    url_schemes=SCHEMES,
    url_relative="deny",
    link_rel=REL,
    generic_attribute_prefixes=frozenset(),
    strip_comments=True,
)


def cleaned(html: str) -> Markup:
    """The HTML with nothing left in it that is not listed here."""
    return Markup(_CLEANER.clean(html))
