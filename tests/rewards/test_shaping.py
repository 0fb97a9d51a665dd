"""What becomes of a score before it is learned from: by hand, and with state that a resumed run has again."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.configs.rollout import ShapingConfig
from prefloop.rewards.shaping import Moments, Shaping, bounded, capped
from prefloop.types import Completion, FinishReason, Message, PrefloopError, Prompt, Sampling, Score, Segment

NUMBERS = st.lists(st.floats(-100, 100), min_size=1, max_size=8)


def answer(text: str, reason: FinishReason = "stop", tokens: int = 3) -> Completion:
    return Completion(
        id=text,
        prompt_id="p",
        segments=(Segment(author="policy", tokens=(5,) * tokens),),
        text=text,
        finish_reason=reason,
        sampling=Sampling(temperature=1.0, max_tokens=9),
        seed=0,
        checkpoint="",
        version=0,
    )


def prompt(name: str = "p") -> Prompt:
    return Prompt(id=name, messages=(Message(role="user", content="Hi"),))


def shaped(shape: Shaping, *values: float, prompts: tuple[str, ...] = (), tokens: tuple[int, ...] = ()) -> list[float]:
    answers = [answer("yes", tokens=n) for n in (tokens or (3,) * len(values))]
    asked = [prompt(name) for name in (prompts or ("p",) * len(values))]
    return shape([Score(value=value) for value in values], asked, answers)


def make(limit: float | None = None, **settings: object) -> Shaping:
    return Shaping(ShapingConfig.model_validate(settings), limit, {}, {})


def test_empty_and_unended_answers_score_no_more_than_a_limit() -> None:
    answers = [answer("yes"), answer("yes and", "length"), answer(""), answer(" \n"), answer("no", "length")]
    scores = np.array([3.0, 3.0, 3.0, 3.0, -2.0])
    assert capped(scores, answers, -1.0).tolist() == [3, -1, -1, -1, -2]
    asked, judged = [prompt()] * 5, [Score(value=float(value)) for value in scores]
    assert make(-1.0)(judged, asked, answers) == [3, -1, -1, -1, -2]
    assert make(None)(judged, asked, answers) == [3, 3, 3, 3, -2]


def test_without_settings_nothing_changes() -> None:
    assert shaped(make(), 1.5, -20.0) == [1.5, -20.0]


def test_length_clip_and_their_order() -> None:
    assert shaped(make(length_penalty=0.5), 1.0, 1.0, tokens=(2, 6)) == [0.0, -2.0]
    assert shaped(make(clip=2.0, length_penalty=0.5), 9.0, -9.0, tokens=(2, 6)) == [1.0, -5.0]
    found = shaped(make(normalise="batch", clip=0.5), 0.0, 0.0, 0.0, 4.0)
    assert found == pytest.approx([-0.5, -0.5, -0.5, 0.5])


def test_a_bounded_score_is_half_where_an_answer_equals_the_reference_and_never_above_one() -> None:
    assert bounded(np.array([2.0, 2.0 + math.log(3)]), 2.0).tolist() == pytest.approx([0.5, 0.75])
    shape = make(bound="mean")
    assert shaped(shape, 1.0, 3.0) == pytest.approx([1 / (1 + math.e), 1 - 1 / (1 + math.e)])
    assert shaped(shape, 2.0, 50.0) == pytest.approx([0.5, 1.0])
    own = Shaping(ShapingConfig(bound="prompt"), None, {"a": 1.0, "b": -1.0}, {})
    assert shaped(own, 1.0, -1.0, prompts=("a", "b")) == [0.5, 0.5]
    with pytest.raises(PrefloopError, match="prompt 'c' has no answer in the baseline"):
        shaped(own, 1.0, prompts=("c",))


def test_normalised_over_the_batch_or_over_all_so_far() -> None:
    batch, running = make(normalise="batch"), make(normalise="running")
    for shape in (batch, running):
        assert shaped(shape, 1.0, 3.0) == pytest.approx([-1, 1])
    assert shaped(batch, 7.0, 9.0) == pytest.approx([-1, 1])
    spread = math.sqrt((16 + 4 + 4 + 16) / 4)
    assert shaped(running, 7.0, 9.0) == pytest.approx([2 / spread, 4 / spread])
    assert shaped(make(normalise="batch"), 5.0, 5.0) == [0, 0]


@given(NUMBERS, NUMBERS)
def test_running_moments_are_those_of_all_numbers_at_once(first: list[float], second: list[float]) -> None:
    known = Moments().update(np.array(first)).update(np.array(second))
    assert known.mean == pytest.approx(np.mean(first + second), abs=1e-9)
    assert known.std == pytest.approx(np.std(first + second), abs=1e-6)


def test_state_is_all_that_a_resumed_run_needs() -> None:
    config = ShapingConfig(bound="mean", normalise="running")
    whole = Shaping(config, None, {}, {})
    shaped(whole, 1.0, 2.0, 6.0)
    again = Shaping(config, None, {}, whole.state)
    fresh = Shaping(config, None, {}, {})
    wanted = shaped(whole, 4.0, 8.0)
    assert shaped(again, 4.0, 8.0) == wanted != shaped(fresh, 4.0, 8.0)
    assert again.state == whole.state
