"""The answer within a text and its value as a number: right ones in every dress, near misses not."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.rewards.answers import bare, fenced, final_answer, normal, number, stated


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("It is \\boxed{\\frac{1}{2}}, so we are done.", "\\frac{1}{2}"),
        ("\\boxed{1} no, \\boxed{2}", "2"),
        ("First 3.\nAnswer: **7**\nHope this helps!", "7"),
        ("The answer is Paris.", "Paris"),
        ("#### 72", "72"),
        ("Answer:\n42", "42"),
        ("Answer: 1\nAnswer: 2", "2"),
        ("We think.\nParis.\n\n", "Paris"),
        ("\\boxed{open", "\\boxed{open"),
        ("", ""),
        ("x" * 200_000, ""),
    ],
)
def test_the_final_answer(text: str, answer: str) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is \\(5\\).", "5"),
        ("The answer is \\[\\frac{1}{2}\\]", "\\frac{1}{2}"),
        ("The answer is:\n\\[\n5\n\\]", "5"),
        ("So we get\n\\[\nx = 5\n\\]", "x = 5"),
        ("So we get\n\\[ x = 5\n\\]", "x = 5"),
        ("So we get\n$$\n5\n$$", "5"),
        ("**Answer:** $5$.", "5"),
        ("$1$ or $5$", "$1$ or $5$"),
        ("\\(1\\) or \\(5\\)", "\\(1\\) or \\(5\\)"),
        ("It costs \\boxed{\\$5}", "\\$5"),
        ("$5", "5"),
    ],
)
def test_delimiters_of_latex_are_taken_off_in_pairs(text: str, answer: str) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Answer: 42\nI hope this answer is helpful.", "42"),
        ("Answer: 42\nCheck your answer: it fits.", "42"),
        ("The answer is 5 because the answer is positive.", "5 because the answer is positive"),
        ("The answer is at least 3. So the answer is 5.", "5"),
        ("Answer: let us think. 5 + 5 = 10.\nSo the answer is 10.", "10"),
        ("Answer: 5\n\n#### Explanation\nFive it is.", "5"),
        ("#### Step 3\nWe add.\n7", "7"),
        ("#### 1,234\n\nHope this helps", "1,234"),
        ("We think.\n#### Paris", "Paris"),
        ("**Final Answer**: **5**", "5"),
        ("The correct answer is Paris.", "Paris"),
        ("My answer is Paris", "Paris"),
        ("Answer = 5", "5"),
        ("Answer - 5", "5"),
        ("Answer: - 5", "- 5"),
        ("Answer:\n- 5", "5"),
        ("There are\n- 5", "5"),
    ],
)
def test_markers_are_told_from_prose_and_headings(text: str, answer: str) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed{5}, that is \\boxed{6", "5"),
        ("\\boxed{5} \\boxed{}", "5"),
        ("It is \\boxed {5}.", "5"),
        ("\\boxed{- 5}", "- 5"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{\\left\\{ x \\right.} and on", "\\left\\{ x \\right"),
        ("\\boxed{\\text{Paris}}", "Paris"),
        ("\\boxed{2 \\boxed{3}}", "3"),
    ],
)
def test_the_last_box_that_closes_and_is_not_empty(text: str, answer: str) -> None:
    assert final_answer(text) == answer


def test_what_stands_around_an_answer_stays_in_what_was_stated() -> None:
    assert stated('So:\n"One fine day."\n') == '"One fine day."'
    assert final_answer('So:\n"One fine day."\n') == bare('"One fine day."') == "One fine day"


def test_fenced() -> None:
    assert fenced("Look:\n```python\na\nb\n```\n```\nc\n```") == "a\nb\n"
    assert fenced("a\nb") == "a\nb"
    assert fenced("```py\ncut off") == "cut off"
    assert fenced("```py\r\na\r\n```\r\nb") == "a\r\n"
    assert fenced("````md\n```\na\n```\n````\nb") == "```\na\n```\n"
    assert fenced("1. It:\n    ```py\n    def f():\n        pass\n    ```\nb") == "def f():\n    pass\n"
    assert fenced('```\ndef f():\n    """\n    ```\n    """\n```\nb') == 'def f():\n    """\n    ```\n    """\n'


def test_one_form_of_a_text() -> None:
    same = ["\uff30\uff41\uff52\uff49\uff53", " PARIS.", "\\text{Paris}", "$Paris$", "**paris**"]
    assert {normal(text) for text in same} == {"paris"}
    assert normal("H\u2082O") == "h2o" and normal("e\u0301") == normal("\u00c9")
    assert normal("2\u00b3") != "23" and normal("1\u00bd") != normal("11/2")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[(f"{sign}5", -5) for sign in "-\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe63\uff0d\u207b"],
        ("5\u00ad0", 50),
        ("x = - 5", -5),
        ("- 5", -5),
        ("negative 5 degrees", -5),
        ("it is\u20145", 5),
    ],
)
def test_every_sign_counts(text: str, value: int) -> None:
    assert number(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5 m^2", 5),
        ("25\\text{ cm}^2", 25),
        ("25 \\text{ cm}^{3}", 25),
        ("9.8 m/s^2", "9.8"),
        ("$5/hour", 5),
        ("5^\\circ\\text{C}", 5),
        ("5 (five)", 5),
        ("(5)", 5),
        ("-(1/2)", "-1/2"),
        ("\\left(5\\right)", 5),
        ("\\frac12", "1/2"),
        ("\\tfrac34", "3/4"),
        ("1\\frac12", "3/2"),
        ("\\frac{1}{-2}", "-1/2"),
        ("1,\\!000", 1000),
        ("\\(5\\) cm", 5),
        ("$5$ cm", 5),
        ("She has 5** apples", 5),
        ("5 apples!", 5),
        ("x \\approx 5", 5),
        ("a = 1,000 / 2 = 500", 500),
        ("3 million", 3_000_000),
        ("$1.5$ million", 1_500_000),
        ("\\$2\\text{ million dollars}", 2_000_000),
    ],
)
def test_a_number_in_its_dress(text: str, value: int | str) -> None:
    assert number(text) == Fraction(value)


@pytest.mark.parametrize(
    "text",
    ["", "none", "3,14", "3 or 4", "2020-01-02", "1,2345", "1,234,56", "1/0", "9**9**9**9", "pi/2", "x^2", "\\sqrt{2}"],
)
def test_no_number(text: str) -> None:
    assert number(text) is None


@pytest.mark.parametrize("text", ["0x1F", "3x", "1.2.3", "1/2/3", "9" * 401, "1e9999", "2+", "x = 5, y = 6"])
def test_neither_is_this(text: str) -> None:
    assert number(text) is None


@pytest.mark.parametrize(
    "text",
    [
        *("2\\pi", "2 \u03c0", "\u221a2", "\\sqrt 2", "\\ln 2", "ln 2", "2 i", "2 pi", "\\frac{1}{2}\\pi", "\u221b8"),
        *("5!", "\u00b15", "\\pm 5", "x > 5", "x >= 5", "\\le 5", "x \u2260 5", "-|5|", "5 \\cdot x", "5/x", "5 x^2"),
        *("x - 5", "f(5)", "5(x + 1)", "5 (x + 1)", "2**.5", "e^2", "2 and a half", "2 dozen", "3 hundred thousand"),
        *("y = 5 and x = 6", "$1$ or $5$", "5 * x", "5 (pi)"),
    ],
)
def test_a_part_of_a_larger_expression_is_no_number(text: str) -> None:
    assert number(text) is None


@given(st.text(max_size=60))
def test_any_text_is_a_number_or_not(text: str) -> None:
    found = number(text)
    if found is not None:
        assert any(c.isdigit() for c in text) and number(f"{found.numerator}/{found.denominator}") == found


@pytest.mark.parametrize(
    "unit",
    [
        *("$", "####\n", "#### ", "\\boxed{", "\\boxed{*", "Answer: ", "the answer is. ", "```", "```\n", ".", "\\("),
        *("= ,", "\\text{", "- \n", " ", "\n", "\\", "{", "}", "million ", "\u00b2", "1", "* "),
    ],
)
def test_hostile_text_costs_little(unit: str) -> None:
    text, since = unit * (100_000 // len(unit)), time.process_time()
    for read in (final_answer, number, normal, fenced, bare):
        read(text)
    assert time.process_time() - since < 5.0  # 0.3 on one core; what takes the square of the length takes minutes
