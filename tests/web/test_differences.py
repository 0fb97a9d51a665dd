from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.web.differences import differences, similar
from prefloop.web.visible import spelled
from tests.patience import cpu_under

from .hostile import BOMBS, EVERYTHING
from .page import Page, hidden

WORDS = st.lists(st.sampled_from(["a ", "b ", "the ", "cat", "sat. ", "\n", "<b>", "& ", "é "]), max_size=40).map(
    "".join
)
ALICE = "Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do. " * 20


def outside(page: Page, tag: str) -> str:
    for element in page.elements(tag):
        element.text = ""
        for child in list(element):
            element.remove(child)
    return "".join(page.text().split())


def test_words_are_marked() -> None:
    a, b = differences("The cat sat on the mat.", "The dog sat\non a mat!")
    assert a == "The <del>cat </del>sat on <del>the </del>mat<del>.</del>"
    assert b == "The <ins>dog </ins>sat\non <ins>a </ins>mat<ins>!</ins>"


def test_what_only_one_has() -> None:
    assert differences("a b", "a b c") == ("a b", "a b <ins>c</ins>")
    assert differences("a b", "b") == ("<del>a </del>b", "b")
    assert differences("same", "same") == ("same", "same")
    assert differences("", "new") == ("", "<ins>new</ins>")
    assert differences("a", "b") == ("<del>a</del>", "<ins>b</ins>")


def test_hostile_words_stay_words() -> None:
    for text in EVERYTHING.values():
        for html in differences(text, "x " + text + " y"):
            assert Page(html).faults() == []
            assert hidden(html) == []


@given(WORDS, WORDS)
def test_nothing_is_lost_and_what_is_unmarked_is_equal(a: str, b: str) -> None:
    left, right = (Page(html) for html in differences(a, b))
    assert (left.text(), right.text()) == (spelled(a), spelled(b))
    assert left.faults() == right.faults() == []
    assert outside(left, "del") == outside(right, "ins")


def test_similar() -> None:
    assert similar(ALICE, ALICE.replace("sister", "brother"))
    assert similar("The cat sat on the mat.", "The dog sat on a mat.")
    assert not similar(ALICE, ALICE)
    assert not similar("The cat sat on the mat.", "Nothing of the kind was ever said by anybody here.")
    assert not similar("", "")
    assert not similar("word " * 5_000, "word " * 5_001)


HARD = {
    "two words": ("a b " * 500, "b a " * 500),
    "four words": ("a b c d " * 250, "d c b a " * 250),
    "one word": ("a " * 4_000, "a " * 3_999),
    "reversed": (" ".join(map(str, range(4_000))), " ".join(map(str, reversed(range(4_000))))),
    "every other": (" ".join(f"{i} z" for i in range(2_000)), " ".join(map(str, range(2_000)))),
    **{
        name: (BOMBS[name], BOMBS[name][1:])
        for name in ("line of 1 MB, words", "emoji", "zero width, alternating", "links")
    },
}


@pytest.mark.parametrize(("a", "b"), HARD.values(), ids=HARD.keys())
def test_any_two_texts_take_less_than_200_ms_each(a: str, b: str) -> None:
    for work in (differences, similar):
        with cpu_under(2 * 0.2):
            work(a, b)
