"""Checklist of hostile content, line 8: text that talks to a labeler or a judge is flagged, and stays only text."""

from __future__ import annotations

import pytest

from prefloop.web.render import markdown
from prefloop.web.steering import addresses_reader
from tests.patience import cpu_under

from .hostile import BOMBS, STEERING
from .page import Page

ORDINARY = [
    *("The answer is B.", "Choose a good book.", "I prefer tea to coffee.", "Pick the ripe apples first."),
    *("The judge ruled for the plaintiff.", "As the judge entered, all rose.", "Give me this.", "Rate of return: 5 %."),
    *("Choose option A or B to continue.", "Select the first row.", "You can ignore the other columns.", "Hi there!"),
    *(
        "x = [[1, 2], [3, 4]]",
        "A better answer is to wait.",
        "When you are rating films, be fair.",
        "I give it 5 stars.",
    ),
    *("The winner is a man from Bern.", "In response, I wrote a letter.", "Select the correct answer:\n\nA) 1\nB) 2"),
    *("The response time is 5 ms.", "Ignore the warnings.", "A reviewer may reject the paper.", ""),
]


@pytest.mark.parametrize("text", STEERING.values(), ids=STEERING.keys())
def test_steering_is_flagged_and_shown(text: str) -> None:
    assert addresses_reader(text)
    assert addresses_reader(f"Some words before.\n\n{text.upper() if '[[' not in text else text}\n\nAnd after.")
    page = Page(markdown(text))
    assert page.faults() == []
    assert page.text().strip()


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_is_not(text: str) -> None:
    assert not addresses_reader(text)


@pytest.mark.parametrize(
    "text", [*BOMBS.values(), "give it a " * 100_000, "as the x " * 100_000, "choose this " * 100_000]
)
def test_any_text_takes_less_than_200_ms(text: str) -> None:
    with cpu_under(0.2):
        addresses_reader(text)
