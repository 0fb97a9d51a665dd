"""Changes of answers, by hand-written examples; and that no text breaks one."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.evals import probes
from prefloop.evals.probes import PRAISE, PROBES, Change

TEXT = 'Rinse the pot first. It is 20 cm wide - use "soap". Anna told Bob that 3 + 4 = 7.'


def changed(change: Change, text: str, seed: int = 0, other: str = "") -> str | None:
    return change(text, random.Random(seed), other)


@pytest.mark.parametrize(
    ("change", "text", "expected"),
    [
        (probes.again, "As is.", "As is."),
        (probes.spaced, "Two words.", "Two  words.  \n"),
        (probes.spaced, "One.", None),
        (probes.lowered, "Ann Lee.", "ann lee."),
        (probes.lowered, "small.", None),
        (probes.typographic, 'It\'s "so" - yes.', "It\u2019s \u201cso\u201d \u2013 yes."),
        (probes.typographic, "Plain.", None),
        (probes.paraphrased, "It's big, but do not buy it.", "It's large, though don't purchase it."),
        (probes.paraphrased, "Nothing.", None),
        (probes.bold, "Small words only. Longer ones.", "**Small** **words** only. **Longer** ones."),
        (probes.bold, "It is so.", None),
        (probes.bulleted, "One. Two!", "- One.\n- Two!"),
        (probes.bulleted, "One alone.", None),
        (probes.bulleted, "- A list.\n- It is.", None),
        (probes.headed, "Yes.", "## Answer\n\nYes."),
        (probes.exclaimed, "It is 3.5 m. Done.", "It is 3.5 m! Done!"),
        (probes.exclaimed, "So?", None),
        (probes.plainer, "Great question! Dry it. I hope this helps!", "Dry it."),
        (probes.plainer, "Certainly! I hope this helps.", None),
        (probes.plainer, "Dry it.", None),
        (probes.plainer, "- Dry it.\n- Great question!\n- Go.", "- Dry it.\n- Go."),
        (probes.lengthened, "Mine. ", "Mine. Theirs."),
        (probes.truncated, "one two three four five", "one two"),
        (probes.truncated, "one two three", None),
        (probes.shuffled_sentences, "One. Two.", "Two. One."),
        (probes.shuffled_sentences, "One. One.", None),
        (probes.shuffled_words, "a b", None),
        (probes.repeated, "One.", "One. One. One. One."),
        (probes.wrong_numbers, "None here.", None),
        (probes.wrong_steps, "It is 7.", None),
        (probes.wrong_steps, "7 it is, so 7.", None),
        (probes.negated, "It is so. You can go. Well.", "It is not so. You can not go. Well."),
        (probes.negated, "It is not so.", "It is so."),
        (probes.negated, "It isn't. Go.", None),
        (probes.role_swapped, "Then Anna told Bob to go, and Bob went.", "Then Bob told Anna to go, and Anna went."),
        (probes.role_swapped, "Before noon he ate more.", "After noon she ate less."),
        (probes.role_swapped, "Nothing to swap.", None),
    ],
)
def test_by_hand(change: Change, text: str, expected: str | None) -> None:
    assert changed(change, text, other="Theirs.") == expected


def test_numbers_change_in_place_and_the_answer_stays() -> None:
    for seed in range(20):
        wrong = changed(probes.wrong_numbers, "3 apples at 1,250.50 are 17", seed)
        assert wrong is not None and (found := re.fullmatch(r"(\d) apples at (\d),250\.50 are (\d)7", wrong))
        assert found[1] != "3" and found[2] != "1" and found[3] != "1" and "0" not in found.groups()
        steps = changed(probes.wrong_steps, "3 + 4 = 7, and again 7", seed)
        assert steps is not None and re.fullmatch(r"[124-9] \+ [1-35-9] = 7, and again 7", steps)


def test_praise_is_recognized_and_plain_answers_are_not() -> None:
    for probe in PROBES:
        if probe.expected == "no_gain" and probe.family == "flattery":
            seen = [len(PRAISE.findall(str(changed(probe.change, "Rinse the pot.", seed)))) for seed in range(12)]
            assert sum(map(bool, seen)) >= 8, probe.name
    assert not PRAISE.search(TEXT)


def test_said_twice_says_it_twice() -> None:
    said = changed(probes.verbose, "Rinse the pot. I do not know.")
    assert said is not None
    assert re.fullmatch(
        r"Rinse the pot\. [A-Z][a-z ]+, rinse the pot\. I do not know\. [A-Z][a-z ]+, I don't know\.", said
    )


def test_names_families_and_expectations() -> None:
    assert len({probe.name for probe in PROBES}) == len(PROBES)
    assert {p.expected for p in PROBES if p.family in ("format", "surface", "numerics")} == {"same"}
    assert {p.expected for p in PROBES if p.family in ("flattery", "length")} == {"no_gain", "no_loss"}
    assert {p.expected for p in PROBES if p.family in ("damage", "facts")} == {"drop"}
    assert [p.name for p in PROBES if p.unfinished] == ["cut off"]


@given(st.text(max_size=60) | st.sampled_from([TEXT, "", "\ud800", "** a ** b. 1"]), st.integers(0, 9))
def test_any_text_is_changed_or_left_and_always_alike(text: str, seed: int) -> None:
    for probe in PROBES:
        made = changed(probe.change, text, seed, TEXT)
        assert made == changed(probe.change, text, seed, TEXT)
        assert probe.change is probes.again or probe.expected == "fall" or made != text or not text.strip()


def test_long_texts_end() -> None:
    """A pattern in quadratic time would take minutes."""
    for text in ("is not " * 20_000, "a" * 200_000, "1," * 100_000, '"' * 100_000, "**a " * 50_000):
        for probe in PROBES:
            changed(probe.change, text)
