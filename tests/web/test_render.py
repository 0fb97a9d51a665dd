"""Checklist of hostile content, lines 1 to 5 at the level of the HTML; a browser gets the same texts elsewhere."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.web.allowed import cleaned
from prefloop.web.render import folded, markdown
from prefloop.web.visible import plain
from tests.patience import cpu_under

from .hostile import BOMBS, EVERYTHING, GADGETS, HOST, HTML, LINKS
from .page import Page, hidden

SECONDS = 0.2  # of processor time for any text
PIECES = [
    *(piece for text in EVERYTHING.values() for piece in re.split(r"(\W)", text)[:40] if piece),
    *(
        "\n\n",
        "\n",
        "    ",
        "> ",
        "- ",
        "1. ",
        "```",
        "$$",
        "$",
        "\\(",
        "\\)",
        "\\[",
        "\\]",
        "|",
        "|-|",
        "![",
        "](",
        "[",
        "*",
    ),
]
any_text = st.text(st.characters(exclude_categories=()), max_size=60)
tangles = st.lists(st.sampled_from(PIECES) | any_text, max_size=40).map("".join)


@pytest.mark.parametrize("text", EVERYTHING.values(), ids=EVERYTHING.keys())
def test_nothing_acts(text: str) -> None:
    for html in (markdown(text), plain(text), *folded(text)):
        page = Page(html)
        assert page.faults() == []
        assert hidden(html) == []
        assert not [e for e in page.elements() if {"src", "srcset", "style", "id", "name", "onerror"} & set(e.attrib)]


@pytest.mark.parametrize("text", HTML.values(), ids=HTML.keys())
def test_the_check_sees_what_would_act(text: str) -> None:
    raw = Page(text)
    assert raw.faults() or not raw.elements()
    kept = Page(cleaned(text))
    assert kept.faults() == []
    assert "pwned" not in "".join(value for e in kept.elements() for value in e.attrib.values())


@pytest.mark.parametrize("text", [*HTML.values(), *GADGETS.values()], ids=[*HTML.keys(), *GADGETS.keys()])
def test_html_shows_as_it_was_written(text: str) -> None:
    shown = Page(markdown(text)).text()
    words = re.findall(r"\w+", text)
    if "entities" not in text and "&lt;" not in text and "&gt;" not in text:
        assert [w for w in words if w not in shown] == []


@given(any_text | tangles)
def test_any_text_gives_allowed_html(text: str) -> None:
    for html in (markdown(text), plain(text), *folded(text)):
        assert Page(html).faults() == []
        assert hidden(html) == []


@given(st.lists(st.from_regex(r"[A-Za-z][A-Za-z0-9]{0,7}", fullmatch=True), min_size=1, max_size=30), st.data())
def test_every_word_stays_visible(words: list[str], data: st.DataObject) -> None:
    joints = st.sampled_from(
        [
            " ",
            "\n",
            "\n\n",
            "\n- ",
            "\n> ",
            " | ",
            "\n|---|\n",
            " *",
            "* ",
            "`",
            "\n```\n",
            "\n# ",
            "](",
            ") ",
            " [",
            " <",
            ">",
        ]
    )
    text = words[0] + "".join(data.draw(joints) + word for word in words[1:])
    shown = Page(markdown(text)).text()
    at = 0
    for word in words:
        at = shown.find(word, at)
        assert at >= 0, (word, text, shown)


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS.keys())
def test_any_text_takes_less_than_200_ms(text: str) -> None:
    markdown("warm $x$\n\n```python\nx\n```\n\n```js\n1\n```\n\n```html\na\n```\n\n```java\na\n```")
    for show in (markdown, plain, folded):
        with cpu_under(SECONDS):
            shown = show(text)
        html = "".join(shown)
        assert len(html) < 2_000_000
        assert hidden(html) == []
        assert not set(re.findall(r"<([a-z]\w*)", html)) & {"img", "script", "iframe", "form", "style", "link"}


@pytest.mark.parametrize(
    "name", ["quotes on one line", "lists, indented", "line of 1 MB, signs", "definitions", "table, wide"]
)
def test_too_much_for_markdown_shows_as_plain_text(name: str) -> None:
    page = Page(str(markdown(BOMBS[name]))[:100_000])
    assert page.elements("p")[0].attrib["class"] == "note"
    chunks = [p for p in page.elements("p") if p.attrib["class"] == "chunk"]
    assert all(len("".join(chunk.itertext())) <= 10_000 for chunk in chunks)
    start = BOMBS[name][:9_000]
    assert "".join("".join(chunk.itertext()) for chunk in chunks).startswith(start)


def test_what_is_left_out_of_a_huge_text_is_said() -> None:
    assert "[850,000 more characters are not shown]" in markdown("x" * 1_000_000)
    assert "[850,000 more characters are not shown]" in plain("x" * 1_000_000)


def test_markdown() -> None:
    page = Page(
        markdown(
            "# One\n\n## Two\n\nIt is *so* and **so**, ~~not~~ `a<b`.\nNext line\n\n- a\n- b\n  1. c\n\n> said\n\n"
            "| x | y |\n|:-:|--:|\n| 1 | 2 |\n\n```python\ndef f(): pass\n```\n\n    indented\n\n---\n"
        )
    )
    assert page.faults() == []
    for name, text in (
        *(("h4", "One"), ("h5", "Two"), ("em", "so"), ("strong", "so"), ("s", "not"), ("code", "a<b")),
        *(("blockquote", "\nsaid\n"), ("th", "x"), ("td", "1"), ("figcaption", "python"), ("pre", "def f(): pass\n")),
    ):
        assert page.text(name) == text
    assert [len(page.elements(name)) for name in ("ul", "ol", "li", "hr", "br", "pre")] == [1, 1, 3, 1, 1, 2]


def test_headings_stay_below_those_of_the_page() -> None:
    page = Page(markdown("".join(f"{'#' * n} x\n\n" for n in range(1, 7)) + "a\n===\n\nb\n---\n"))
    assert [e.tag for e in page.elements() if e.tag != "p"] == ["h4", "h5", "h6", "h6", "h6", "h6", "h4", "h5"]


def test_numbers_of_a_list_are_those_of_the_text() -> None:
    items = Page(markdown("3. a\n7. b\n7. c")).elements("li")
    assert [item.attrib["value"] for item in items] == ["3", "7", "7"]


def test_links_show_where_they_lead() -> None:
    page = Page(
        markdown(
            '[docs](https://a.test/x "The title") <https://b.test> [https://bank.test](https://c.test) <me@d.test>'
        )
    )
    assert page.text() == (
        'docs (https://a.test/x "The title") https://b.test https://bank.test (https://c.test) me@d.test\n'
    )
    assert [a.attrib["href"] for a in page.elements("a")] == [
        *("https://a.test/x", "https://b.test", "https://c.test", "mailto:me@d.test")
    ]


@pytest.mark.parametrize("text", LINKS.values(), ids=LINKS.keys())
def test_links_lead_to_the_web_only_and_have_names(text: str) -> None:
    for link in Page(markdown(text)).elements("a"):
        assert re.match("https://", link.attrib["href"])
        assert "".join(link.itertext()).strip()


def test_images_are_told_of_and_not_loaded() -> None:
    page = Page(markdown(f'![a *cat*](https://{HOST}/p.png?who=me "title")'))
    assert page.text() == f'[image: a *cat*, https://{HOST}/p.png?who=me "title"]\n'
    assert not page.elements("img")


def test_definitions_show() -> None:
    page = Page(markdown(LINKS["comment by definition"]))
    assert "hidden from whoever reads" in page.text() and "hidden too" in page.text()


def test_a_row_longer_than_its_table_loses_nothing() -> None:
    assert "three" in Page(markdown("| a | b |\n|---|---|\n| one | two | three |\n")).text()
    assert "three" in Page(markdown("> | a | b |\n> |---|---|\n> | one | two | three |\n")).text()
    assert Page(markdown("| a | b |\n|---|---|\n| one \\| two | `x` |\n")).text("td") == "one | two"


def test_what_is_nested_too_deep_loses_nothing() -> None:
    assert "words" in Page(markdown("> " * 30 + "words")).text()
    assert "words" in Page(markdown("".join("  " * i + "- x\n" for i in range(30)) + "  " * 30 + "- words")).text()


def test_direction_is_by_the_text() -> None:
    page = Page(markdown("\u05e2\u05d1\u05e8\u05d9\u05ea\n\n- مرحبا\n\n# English"))
    assert [e.attrib["dir"] for e in page.elements() if e.tag in ("p", "ul", "h4")] == ["auto"] * 3
    assert Page(markdown("```\n\u05e2\u05d1\u05e8\u05d9\u05ea\n```")).elements("pre")[0].attrib["dir"] == "ltr"


def test_prices_are_no_formulas() -> None:
    assert not Page(markdown("It costs $5 and then $6, or $7.")).elements("math")


def test_folded_cuts_between_blocks() -> None:
    paragraphs = [f"Paragraph {i}. " + "words " * 60 for i in range(30)]
    text = "\n\n".join(paragraphs)
    head, rest = folded(text)
    assert head + rest == markdown(text)
    shown = Page(head).elements("p")
    assert 2_500 < len(Page(head).text()) <= 3_100
    assert [p.text.split(".")[0] for p in shown] == [f"Paragraph {i}" for i in range(len(shown))]
    assert Page(rest).text("p").startswith(f"Paragraph {len(shown)}.")


def test_folded_leaves_short_texts_and_single_blocks_whole() -> None:
    for text in ("", "short", "word " * 2_000, "a\n\n" * 40, "\n\n".join(["word " * 400, "word " * 250])):
        head, rest = folded(text)
        assert (head, rest) == (markdown(text), "")


@given(tangles)
def test_folded_shows_what_markdown_shows(text: str) -> None:
    text = f"{text}\n\n" * 5
    head, rest = folded(text)
    assert head + rest == markdown(text)
