"""Labels that are probably wrong."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.ops.label_errors import Detection, confident_errors, detection, folds, given_chance

chance = st.floats(0, 1)
labeled = st.lists(st.tuples(chance, st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=20)


def test_six_labels_by_hand() -> None:
    p, label = [0.9, 0.8, 0.2, 0.1, 0.35, 0.02], [1, 1, 1, 0, 1, 0.5]
    assert given_chance(p, label) == pytest.approx([0.9, 0.8, 0.2, 0.9, 0.35, 0.5])
    # the mean over the five that are no tie is 0.63: 1 - 0.2 reaches it, 1 - 0.35 = 0.65 too
    assert confident_errors(p, label).tolist() == [False, False, True, False, True, False]
    # with 0.45 for 0.35 the mean is 0.65, which 0.55 does not reach
    assert confident_errors([0.9, 0.8, 0.2, 0.1, 0.45, 0.02], label).tolist()[4] is False
    assert not confident_errors([0.1, 0.9], [0.5, 0.5]).any()


@given(labeled)
def test_which_answer_comes_first_says_nothing(rows: list[tuple[float, float]]) -> None:
    p, label = np.array(rows).T
    assert (confident_errors(p, label) == confident_errors(1 - p, 1 - label)).all()
    assert given_chance(p, label) == pytest.approx(given_chance(1 - p, 1 - label))
    assert (given_chance(p, label)[confident_errors(p, label)] < 0.5).all()


def test_planted_errors_are_found_by_a_model_that_knows_and_not_by_one_that_guesses() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(4000) < 0.5
    wrong = rng.random(4000) < 0.1
    label = (truth ^ wrong).astype(float)
    knows = np.where(truth, 0.9, 0.1)
    assert detection(confident_errors(knows, label), wrong) == Detection(
        flagged=int(wrong.sum()), precision=1, recall=1
    )
    guessed = detection(confident_errors(rng.random(4000), label), wrong)
    assert guessed.flagged > 1000 and abs(guessed.precision - 0.1) < 0.02
    fitted = detection(confident_errors(np.where(label == 1, 0.9, 0.1), label), wrong)
    assert fitted.flagged == 0 and math.isnan(fitted.precision) and fitted.recall == 0


@given(st.lists(st.integers(0, 9), min_size=2, max_size=60), st.integers(2, 5), st.integers(0, 9))
def test_a_prompt_is_in_one_fold(groups: list[int], count: int, seed: int) -> None:
    sizes = len(set(groups))
    if sizes < count:
        with pytest.raises(ValueError, match="as many as there are groups"):
            folds(groups, count, seed)
        return
    found = folds(groups, count, seed)
    of = {group: {int(fold) for g, fold in zip(groups, found, strict=True) if g == group} for group in groups}
    assert all(len(own) == 1 for own in of.values())
    prompts = np.bincount([own.pop() for own in of.values()], minlength=count)
    assert prompts.max() - prompts.min() <= 1 and prompts.size == count
    assert (found == folds(groups, count, seed)).all()


def test_detection_by_hand_and_what_does_not_fit() -> None:
    assert detection([1, 1, 0, 0], [1, 0, 1, 1]) == Detection(flagged=2, precision=0.5, recall=pytest.approx(1 / 3))
    with pytest.raises(ValueError, match="one each"):
        detection([1], [1, 0])
    for p, label in (([0.5], [1, 0]), ([1.5], [1]), ([math.nan], [1]), ([0.5], [2])):
        with pytest.raises(ValueError, match=r"all in 0\.\.1"):
            confident_errors(p, label)
