from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.data.pairing import comparison_id, pair_completions
from prefloop.types import Completion, Message, PrefloopError, Prompt, Sampling

PROMPTS = [Prompt(id=f"p{i}", messages=(Message(role="user", content=str(i)),)) for i in range(3)]


def answers(*texts: str, prompt: str = "p0") -> list[Completion]:
    return [
        Completion(
            id=f"{prompt}-{i}",
            prompt_id=prompt,
            segments=(),
            text=said,
            finish_reason="stop",
            sampling=Sampling(),
            seed=i,
        )
        for i, said in enumerate(texts)
    ]


@given(texts=st.lists(st.sampled_from(["", " ", "a", "a ", "b", "c"]), max_size=7), pairs=st.integers(1, 30))
def test_pairs_are_distinct_and_never_of_equal_texts(texts: Sequence[str], pairs: int) -> None:
    stripped = [text.strip() for text in texts]
    possible = sum(a != b for i, a in enumerate(stripped) for b in stripped[:i])
    always = {"p1": answers("x", "y", prompt="p1")}
    made = pair_completions(always | {"p0": answers(*texts)}, PROMPTS, pairs=pairs, seed=0)
    mine = [comparison for comparison in made if comparison.prompt.id == "p0"]
    assert len(made) == len(mine) + 1
    assert len(mine) == min(pairs, possible)
    assert len({frozenset(item.id for item in comparison.items) for comparison in mine}) == len(mine)
    for comparison in mine:
        a, b = comparison.items
        assert a.text.strip() != b.text.strip()
        assert comparison.id == comparison_id(comparison.items)


def test_an_answer_that_stands_twice_is_one() -> None:
    a, b = answers("a", "b")
    assert len(pair_completions({"p0": [a, a, a, b]}, PROMPTS, pairs=9, seed=0)) == 1


def test_the_choice_depends_on_the_seed_and_the_prompt_alone() -> None:
    zero, one = answers(*"abcdefgh"), answers(*"abcdefgh", prompt="p1")
    made = pair_completions({"p0": zero, "p1": one}, PROMPTS, pairs=5, seed=3)
    assert made == pair_completions({"p1": one, "p0": zero}, PROMPTS, pairs=5, seed=3)
    assert made[5:] == pair_completions({"p1": one}, PROMPTS, pairs=5, seed=3)
    assert made != pair_completions({"p0": zero, "p1": one}, PROMPTS, pairs=5, seed=4)
    assert [comparison.prompt.id for comparison in made] == ["p0"] * 5 + ["p1"] * 5


def test_neither_place_is_favoured() -> None:
    made = pair_completions({"p0": answers(*map(str, range(40)))}, PROMPTS, pairs=780, seed=0)
    earlier_first = sum(comparison.items[0].seed < comparison.items[1].seed for comparison in made)
    assert len(made) == 780
    assert 334 < earlier_first < 446  # four standard deviations of a fair coin


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ((), r"No prompt has two completions \(0 for 3 prompts\)"),
        (("a",), r"No prompt has two completions \(1 for 3 prompts\)"),
        (("", " ", "\n"), "All 3 completions are empty"),
        (("a", "a", " a"), "The 3 completions are identical within each prompt"),
    ],
)
def test_nothing_to_pair_is_said_precisely(texts: Sequence[str], message: str) -> None:
    with pytest.raises(PrefloopError, match=message):
        pair_completions({"p0": answers(*texts)}, PROMPTS, pairs=6, seed=0)
