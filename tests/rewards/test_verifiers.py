"""Verifiers: right answers score 1 however they are spelled, wrong ones 0; hostile ones cost their limit, score 0."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefloop.rewards import verifiers
from prefloop.rewards.answers import final_answer, number
from prefloop.rewards.rubric import rubric
from prefloop.rewards.verifiers import constraints, exact, json_schema, math, numeric, regex
from prefloop.types import Completion, Json, Message, PrefloopError, Prompt, Sampling, Score

RewardFn = Callable[[Sequence[Prompt], Sequence[Completion]], list[Score]]


def asked(target: str | None = None, **checks: Json) -> Prompt:
    return Prompt(id="q", messages=(Message(role="user", content="?"),), checks=checks, target=target)


def said(text: str) -> Completion:
    return Completion(id="c", prompt_id="q", segments=(), text=text, finish_reason="stop", sampling=Sampling(), seed=0)


def scores(reward: RewardFn, prompt: Prompt, *texts: str) -> list[Score]:
    return reward([prompt] * len(texts), [said(text) for text in texts])


def values(reward: RewardFn, prompt: Prompt, *texts: str) -> list[float]:
    return [score.value for score in scores(reward, prompt, *texts)]


def test_exact() -> None:
    prompt = asked("New York")
    assert values(exact, prompt, "Answer: new  york.", "\\boxed{New York}", "So:\n**New York**") == [1.0] * 3
    assert values(exact, prompt, "Answer: York", "New York or Boston", "", "New York\nAnswer: Boston") == [0.0] * 4
    assert values(exact, asked("Paris"), "\\boxed{\\text{Paris}}", "The answer is \\(Paris\\).") == [1.0] * 2
    assert values(exact, asked("23"), "2\u00b3", "23") == [0.0, 1.0]
    assert scores(exact, prompt, "York")[0] == Score(value=0.0, by="exact", explanation="The answer is 'York'.")


def spellings(value: Fraction, draw: random.Random) -> list[str]:
    """Ways to write an exact decimal number: all mean the same."""
    scaled = value * 10**4
    assert scaled.denominator == 1
    sign, digits = ("-" if value < 0 else ""), f"{abs(int(scaled)):05d}"
    whole, places = digits[:-4].lstrip("0") or "0", digits[-4:]
    tail = f".{places.rstrip('0')}" if places.rstrip("0") else ""
    grouped, power = f"{int(whole):,}", draw.randint(-6, 6)
    mantissa = f"{sign}{abs(int(scaled))}"
    return [
        f"{sign}{whole}{tail}",
        f"{sign}{whole}.{places}",
        f"{sign}{grouped}{tail}",
        f"{sign}{grouped.replace(',', ' ')}{tail}",
        f"{sign}{grouped.replace(',', chr(0x202F))}{tail}",
        f"{sign}{grouped.replace(',', '_')}{tail}",
        f"{sign}{grouped.replace(',', '{,}')}{tail}",
        f"{chr(0x2212) if sign else '+'}{whole}{tail}",
        f"{sign}${grouped}{tail}",
        f"{mantissa}e-4",
        f"{mantissa}.0E-04",
        f"{mantissa}00 \\times 10^{{-6}}",
        f"{mantissa} {chr(0xD7)} 10^-4",
        f"{mantissa}/10000",
        f"{mantissa}{'0' * (power % 3)}/{10 ** (4 + power % 3)}",
        f"{sign}\\frac{{{abs(int(scaled))}}}{{10000}}",
        f"{sign}\\dfrac{{{abs(int(scaled)):,}}}{{10,000}}",
        f"{sign}{whole} {int(places)}/10000",
        f"{mantissa}e-2%",
        f"{mantissa}e-2 \\%",
        f"{sign}{whole}{tail} apples",
        f"x = {sign}{whole}{tail}",
    ]


@settings(max_examples=20)
@given(st.integers(-(10**12), 10**12), st.randoms(use_true_random=False))
def test_numeric_in_any_spelling(scaled: int, draw: random.Random) -> None:
    value = Fraction(scaled, 10**4)
    for text in spellings(value, draw):
        assert number(text) == value, text
        assert values(numeric, asked(str(scaled) + "e-4"), f"Let me see.\nAnswer: {text}") == [1.0], text


@settings(max_examples=20)
@given(st.integers(-(10**9), 10**9), st.integers(1, 10**6), st.randoms(use_true_random=False))
def test_another_number_is_wrong_in_any_spelling(scaled: int, off: int, draw: random.Random) -> None:
    for text in spellings(Fraction(scaled + off, 10**4), draw):
        assert values(numeric, asked(f"{scaled}/10000"), f"Answer: {text}") == [0.0], text


def test_numeric_takes_one_number_in_latex_and_none_of_several() -> None:
    right = ["The answer is \\(5\\).", "So\n\\[\nx = 5\n\\]", "\\boxed{\\left(5\\right)}", "It is **5** apples."]
    wrong = ["x = 4, y = 5", "$1$ or $5$", "\u20115", "\\pm 5", "5!", "5 thousand", "Answer: 42\nI hope 5 is fine."]
    assert values(numeric, asked("5"), *right, *wrong) == [1.0] * 4 + [0.0] * 7
    assert values(numeric, asked("\\frac12"), "0.5", "2") == [1.0, 0.0]


def test_tolerances() -> None:
    assert values(numeric, asked("3.14", tolerance=0.01), "3.15", "3.13", "3.1501", "3.12") == [1.0, 1.0, 0.0, 0.0]
    assert values(numeric, asked("-200", relative_tolerance=0.01), "-202", "-198", "-202.1", "200") == [1, 1, 0, 0]
    assert values(numeric, asked("0.5"), "50%", "1/2", "50") == [1.0, 1.0, 0.0]


def test_constraints() -> None:
    prompt = asked(bullets=2, max_words=6, mentions=[["red"], ["blue", "navy"]])
    score = scores(constraints, prompt, "- red one\n- navy two")[0]
    assert score.value == 1.0 and set(score.parts) == {"bullets", "max_words", "mentions[0]", "mentions[1]"}
    score = scores(constraints, prompt, "- red one\n- red two\n- three")[0]
    assert score.value == 0.5 and score.explanation == "Not met: mentions[1], bullets."
    assert score.parts["bullets"] == 0.25  # a near miss: 0.5 * (1 - 1 / 2)
    assert values(constraints, asked(no_commas=True), "", "...", "one two", "a, b") == [0.0, 0.0, 1.0, 0.0]


def test_regex() -> None:
    prompt = asked(pattern=r"(?m)^\d{4}-\d\d-\d\d$")
    assert values(regex, prompt, "On\n2024-05-06\n!", "On 2024-05-06.") == [1.0, 0.0]


def test_json_schema() -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 1}},
        "required": ["n"],
        "additionalProperties": False,
    }
    right = ['{"n": 3}', 'Here:\n```json\n{"n": 1}\n```\n']
    wrong = ['{"n": 0}', '{"n": "3"}', "{}", '{"n": 1, "m": 2}', "n", '{"n": 1, "n": 2}', '{"n": NaN}', '{"n": 1']
    assert values(json_schema, asked(schema=schema), *right, *wrong) == [1.0] * 2 + [0.0] * 8
    assert "$.n: 0 is less than the minimum of 1" in scores(json_schema, asked(schema=schema), wrong[0])[0].explanation


@pytest.mark.parametrize("text", ["[" * 100_000, "[" * 60 + "]" * 60, "9" * 90_000, '{"a":' * 20_000, "[1," * 30_000])
def test_hostile_json(text: str) -> None:
    assert values(json_schema, asked(schema={"type": "array"}), text, "[" * 50 + "]" * 50) == [0.0, 1.0]


def test_formats_of_a_schema_count() -> None:
    prompt = asked(schema={"type": "string", "format": "date"})
    assert values(json_schema, prompt, '"2024-02-29"', '"2024-02-30"', '"foo"') == [1.0, 0.0, 0.0]


def test_a_schema_fetches_nothing() -> None:
    with pytest.raises(PrefloopError, match="the schema is not one"):
        values(json_schema, asked(schema={"$ref": "http://127.0.0.1:9/schema"}), "[]")


def test_math() -> None:
    right = ["\\boxed{\\frac{1}{2}}", "Answer: 0.5", "The answer is $\\frac{2}{4}$.", "x = 1/2"]
    wrong = ["\\boxed{2}", "", "Answer: half", "__import__('os').system('touch /tmp/hostile')"]
    square = asked("x^2+2x+1")
    prompts = [asked("1/2")] * 8 + [square] * 2
    found = math(prompts, [said(text) for text in (*right, *wrong, "\\boxed{(x+1)^2}", "\\boxed{(x-1)^2}")])
    assert [score.value for score in found] == [1.0] * 4 + [0.0] * 4 + [1.0, 0.0]


def test_math_takes_money_and_delimiters_and_no_list() -> None:
    cases = [
        ("5", "\\boxed{\\$5}", 1.0),
        ("\\$5", "Answer: 5", 1.0),
        ("18.90", "The answer is \\$18.90.", 1.0),
        ("18.9", "$\\$18.90$", 1.0),
        ("1/2", "The answer is \\[\\frac{1}{2}\\]", 1.0),
        ("5", "So we get\n\\[\nx = 5\n\\]", 1.0),
        ("3000000", "\\boxed{3\\text{ million}}", 1.0),
        ("3", "\\boxed{3\\text{ million}}", 0.0),
        ("5", "$1$ or $5$", 0.0),
    ]
    found = math([asked(target) for target, _, _ in cases], [said(text) for _, text, _ in cases])
    assert [score.value for score in found] == [value for _, _, value in cases]


def test_hostile_text_costs_its_limit_and_the_next_answer_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifiers, "SECONDS", 2.0)
    catastrophe = asked(pattern="^(a+)+$")
    found = scores(regex, catastrophe, "aa", "a" * 60 + "b", "aaa")
    assert [s.value for s in found] == [1.0, 0.0, 1.0] and found[1].explanation == "Time is up."
    tower = ["Answer: 9**9**9**9", "\\boxed{9^{9^{9^{9}}}}"]
    found = scores(math, asked("7"), "Answer: 7", *tower, "\\boxed{" + "(" * 5000 + "7", "Answer: 7")
    assert [s.value for s in found] == [1.0, 0.0, 0.0, 0.0, 1.0]
    pathological = asked(schema={"type": "string", "pattern": "^(a+)+$"})
    assert values(json_schema, pathological, '"a"', '"' + "a" * 60 + 'b"', '"aa"') == [1.0, 0.0, 1.0]


@settings(max_examples=20)
@given(st.text(alphabet="\\{}$#*`\n answerboxed:9^", max_size=200))
def test_cheap_verifiers_take_any_text(text: str) -> None:
    assert final_answer(text) == final_answer(text).strip()
    assert all(0.0 <= v <= 1.0 for r in (exact, numeric) for v in values(r, asked("9"), text * 50))


@pytest.mark.parametrize(
    ("reward", "prompt", "message"),
    [
        (exact, asked(), "no target"),
        (numeric, asked("many"), "is not one number"),
        (numeric, asked("1", tolerance=-1), "tolerance is -1"),
        (numeric, asked("1", tolerance="x"), "tolerance is 'x'"),
        (math, asked(), "no target"),
        (regex, asked(), "checks need 'pattern'"),
        (regex, asked(pattern="("), "the pattern is not one"),
        (json_schema, asked(schema={"type": "nothing"}), "the schema is not one"),
        (constraints, asked(bulets=2), "did you mean 'bullets'"),
        (constraints, asked(), "no checks"),
        (constraints, asked(mentions=["tea"]), r"mentions is \['tea'\]; give a list of lists of phrases"),
        (constraints, asked(forbids="tea"), "forbids is 'tea'; give a list of texts"),
        (constraints, asked(json_keys="name"), "json_keys is 'name'; give a list of texts"),
        (constraints, asked(max_words="many"), "max_words is 'many'; give a whole number from 0"),
        (constraints, asked(starts_with=3), "starts_with is 3; give a text"),
        (constraints, asked(question="no"), "question is 'no'; give true or false"),
        (rubric, asked(ideal_words="few"), "ideal_words is 'few'; give a number above 0"),
        (rubric, asked(correction="sun"), "correction is 'sun'; give a list of lists"),
        (verifiers.unit_tests, asked(tests=[]), "checks need 'tests'"),
        (verifiers.unit_tests, asked(tests=[{"input": "1"}]), r"tests\[0\] is neither"),
        (verifiers.unit_tests, asked(tests=["pass"], seconds=0), "seconds is 0"),
    ],
)
def test_a_prompt_that_cannot_be_verified_is_named(reward: RewardFn, prompt: Prompt, message: str) -> None:
    with pytest.raises(PrefloopError, match=f"Prompt q: .*{message}"):
        scores(reward, prompt, "1")


def test_a_prompt_is_wanted_for_each_completion() -> None:
    for reward in (exact, numeric, math, regex, json_schema, constraints, verifiers.unit_tests):
        with pytest.raises(PrefloopError, match=f"{reward.__name__}: 1 prompts for 0 completions"):
            reward([asked("1", pattern="a")], [])
