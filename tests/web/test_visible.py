"""Checklist of hostile content, line 5: odd characters show, and what writing needs stays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.web.visible import oddities, plain, spelled, visible

from .hostile import ODD
from .page import Page, hidden

FLAG_OF_WALES = "\U0001f3f4\U000e0067\U000e0062\U000e0077\U000e006c\U000e0073\U000e007f"
NEEDED = {
    "accents": "Crème brûlée, naïve, Ångström, Việt Nam",
    "accents, decomposed": "Cre\u0300me bru\u0302le\u0301e, Vie\u0323\u0302t",
    "emoji": "😀 👍🏽 ❤️ 1️⃣ #️⃣ ☺︎ 🫨",
    "emoji, joined": "👩‍👩‍👧‍👦 🏳️‍🌈 🏴‍☠️ 👨🏽‍🚀 🙋🏿‍♀️",
    "flags": f"🇨🇭 {FLAG_OF_WALES}",
    "persian": "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645\u060c PDF\u200c\u0647\u0627",
    "hindi": "नमस्ते क्\u200dष क्\u200cष",
    "sinhala": "ශ්\u200dරී ලංකා",
    "malayalam, old chillu": "അവന്\u200d ",
    "khmer": "ខ្ញុំ\u200bស្រឡាញ់",
    "thai": "ภาษา\u200bไทย",
    "arabic": "مَرْحَبًا",
    "hebrew, all accents": "בְּרֵאשִׁ֖ית",
    "kanji variant": "葛\U000e0100飾",
    "tibetan": "རྒྱལ",
    "old hangul-free korean": "한국어 한국어",
    "maths and signs": "∀x ∈ N: x² ≥ 0 … “quoted” — 5 €",
    "spaces": "a\u00a0b\u2009c\td\ne",
}


@pytest.mark.parametrize("text", NEEDED.values(), ids=NEEDED.keys())
def test_what_writing_needs_stays(text: str) -> None:
    assert spelled(text) == text
    assert Page(plain(text)).text("bdi") == text
    assert oddities(text) == 0


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("user\u202egnp.exe", "user[U+202E]gnp.exe"),
        ("a\u2067b\u2069", "a[U+2067]b[U+2069]"),
        ("pass\u200bword", "pass[U+200B]word"),
        ("pass\u200cword", "pass[U+200C]word"),
        ("pass\u200dword", "pass[U+200D]word"),
        ("x" + "\u200b" * 40, "x[U+200B x40]"),
        ("a\x00b\x1b[31m", "a[U+0000]b[U+001B][31m"),
        ("\ud800", "[U+D800]"),
        ("\ue000\U0010ffff", "[U+E000][U+10FFFF]"),
        ("\ufeffstart", "[U+FEFF]start"),
        ("soft\u00adhyphen", "soft[U+00AD]hyphen"),
        ("a\u2028b", "a[U+2028]b"),
        ("\u0301a", "[U+0301]a"),
        ("a\n\u0301\u0302", "a\n[2 combining marks]"),
        ("e\u0301" + "\u0300" * 9, "e\u0301" + "\u0300" * 5 + "[U+0300 x4]"),
        ("e" + "\u0300\u0301" * 5, "e" + "\u0300\u0301" * 3 + "[4 combining marks]"),
        ("a\ufe0f", "a[U+FE0F]"),
        ("😀\ufe0f\ufe0e", "😀\ufe0f[U+FE0E]"),
        ("😀\U000e0101\U000e0102", "😀\U000e0101[U+E0102]"),
        ("a\U000e0041", "a[U+E0041]"),
        ("\U0001f3f4\U000e0067x", "\U0001f3f4[U+E0067]x"),
        ("می\u200c خ", "می[U+200C] خ"),
        ("क\u200d\u0902", "क[U+200D]\u0902"),
        ("\u3164\u115f", "[U+3164][U+115F]"),
        ("a\r\nb\rc", "a\nb\nc"),
    ],
)
def test_odd_characters_show(text: str, shown: str) -> None:
    assert spelled(text) == shown
    assert Page(visible(text)).text() == shown


@pytest.mark.parametrize("text", ODD.values(), ids=ODD.keys())
def test_odd_texts(text: str) -> None:
    assert hidden(spelled(text)) == []
    assert hidden(plain(text)) == []


def test_a_marker_says_what_it_stands_for() -> None:
    assert visible("\u202e\x00\ud800\ue000\ufdd0") == (
        '<span class="odd" title="U+202E RIGHT-TO-LEFT OVERRIDE">[U+202E]</span>'
        '<span class="odd" title="U+0000 CONTROL CHARACTER">[U+0000]</span>'
        '<span class="odd" title="U+D800 LONE SURROGATE">[U+D800]</span>'
        '<span class="odd" title="U+E000 PRIVATE USE">[U+E000]</span>'
        '<span class="odd" title="U+FDD0 NOT A CHARACTER">[U+FDD0]</span>'
    )


def test_markers_have_an_end() -> None:
    text = "a\u200b" * 5_000
    assert oddities(text) == 5_000
    assert visible(text).count("<span") == 1_000
    assert spelled(text).count("\ufffd") == 4_000


@given(
    st.text(
        st.characters(
            categories=(
                "Lu",
                "Ll",
                "Lt",
                "Nd",
                "Nl",
                "No",
                "Pc",
                "Pd",
                "Ps",
                "Pe",
                "Pi",
                "Pf",
                "Po",
                "Sm",
                "Sc",
                "So",
                "Zs",
            ),
            include_characters="\n\t",
        )
    )
)
def test_ordinary_text_comes_back(text: str) -> None:
    assert Page(plain(text)).text("bdi") == text


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_is_seen(text: str) -> None:
    page = Page(plain(text))
    assert page.faults() == []
    assert hidden(plain(text)) == []
    assert page.text("bdi") == spelled(text)
