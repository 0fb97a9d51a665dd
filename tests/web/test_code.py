from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.web.code import CLASSES, highlight_css, highlighted

from .hostile import EVERYTHING
from .page import Page

PYTHON = 'def f(x: int) -> str:\n    """Says x."""  # twice\n    return f"{x}{x}"\n'


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, contrast ratio: 1 to 21."""

    def luminance(colour: str) -> float:
        colour = "".join(2 * c for c in colour) if len(colour) == 3 else colour
        parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_words_have_classes() -> None:
    html = highlighted(PYTHON, "Python", 1)
    assert '<span class="hl-k">def</span> <span class="hl-nf">f</span>' in html
    assert Page(html).text() == PYTHON
    assert {e.attrib["class"] for e in Page(html).elements()} <= CLASSES


@pytest.mark.parametrize("language", ["", "nonsense", "../../etc/passwd", "python3x"])
def test_an_unknown_language_is_plain(language: str) -> None:
    assert highlighted("a < b", language, 1) == "a &lt; b"


def test_slow_or_long_code_is_plain() -> None:
    assert highlighted(PYTHON, "python", -1) == Page(PYTHON).root.text.replace("&", "&amp;").replace(
        ">", "&gt;"
    ).replace('"', "&#34;")
    assert "<span" not in highlighted("x = 1\n" * 4_000, "python", 60)


def test_odd_characters_show_in_code() -> None:
    assert Page(highlighted("if x:\u2066 # \u202e\n", "python", 1)).text() == "if x:[U+2066] # [U+202E]\n"


@given(
    language=st.sampled_from(["python", "js", "ts", "bash", "c++", "c#", "rust", "ruby", "go", "yaml", "html", "sql"]),
    text=st.text(max_size=80) | st.sampled_from([*EVERYTHING.values()]),
)
def test_code_is_never_changed(language: str, text: str) -> None:
    text = text.replace("\r", "\n")
    assert Page(highlighted(text, language, 1)).text() == Page(highlighted(text, "", 1)).text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_read(scheme: str) -> None:
    css = highlight_css().partition(f"@media (prefers-color-scheme: {scheme}) {{")[2].partition("\n}")[0]
    background = re.search(r"\.code \{ background: #(\w+)", css)
    colours = re.findall(r"\.code \.(hl-\w+) \{[^}]*?(?<![-\w])color: #(\w+)", css)
    assert background is not None and len(colours) > 40
    assert [
        f"{name}: {colour}" for name, colour in colours if contrast(colour, background[1]) < 4.5 and name != "hl-w"
    ] == []
    assert not re.search(r"url\(|@import|expression", css)
