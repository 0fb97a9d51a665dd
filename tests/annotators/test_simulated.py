"""Simulated annotators: the accuracy and the biases that they are given can be measured on their judgments."""

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from prefloop.annotators.simulated import Annotator, judge, preference_probability
from prefloop.configs.collect import LabelConfig
from prefloop.types import Comparison, Completion, Message, PrefloopError, Prompt, Sampling, Score

PROMPT = Prompt(id="p", messages=(Message(role="user", content="Hi"),))
DRAWS = 20_000


def completion(name: str, n_words: int) -> Completion:
    return Completion(
        id=name,
        prompt_id="p",
        segments=(),
        text="word " * n_words,
        finish_reason="stop",
        sampling=Sampling(),
        seed=0,
    )


def comparison(name: str, *n_words: int) -> Comparison:
    items = tuple(completion(f"{name}-{i}", n) for i, n in enumerate(n_words))
    return Comparison(id=name, prompt=PROMPT, items=items)


PANEL = tuple(Annotator(**person.model_dump()) for person in LabelConfig(out="x").panel)


def gold(*values: float) -> list[Score]:
    return [Score(value=v) for v in values]


def logistic_regression(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Maximum-likelihood weights, shape (features,), by Newton's method; x is (draws, features), y 0 or 1."""
    w = np.zeros(x.shape[1])
    for _ in range(20):
        p = 1 / (1 + np.exp(-x @ w))
        w += np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x, x.T @ (y - p))
    return w


@pytest.mark.parametrize("annotator", PANEL, ids=lambda a: a.name)
def test_measured_accuracy_is_the_given_one(annotator: Annotator) -> None:
    right = 0
    for i in range(DRAWS):
        values = (0.7, 0.2) if i % 2 else (0.2, 0.7)
        right += judge(annotator, comparison(f"c{i}", 5, 9), gold(*values)).ranking == ((0, 1) if i % 2 else (1, 0))
    assert right / DRAWS == pytest.approx(annotator.accuracy, abs=0.015)


def test_the_panel_is_labelled_as_simulated_and_its_members_err_apart() -> None:
    assert [(a.name, a.accuracy) for a in PANEL] == [
        ("simulated-85", 0.85),
        ("simulated-80", 0.8),
        ("simulated-75", 0.75),
    ]
    rankings = {a.name: [judge(a, comparison(f"c{i}", 5, 5), gold(1, 0)).ranking for i in range(200)] for a in PANEL}
    assert len({tuple(r) for r in rankings.values()}) == 3


def test_biases_are_recovered_by_logistic_regression() -> None:
    annotator = Annotator(name="simulated-biased", accuracy=0.8, side_bias=0.4, length_bias=0.9, seed=3)
    rng = np.random.default_rng(0)
    rows, chosen = [], []
    for i in range(DRAWS):
        words, values = rng.integers(0, 90, 2), rng.integers(0, 3, 2) / 2
        made = judge(annotator, comparison(f"c{i}", *words.tolist()), gold(*values.tolist()))
        rows.append(
            (
                np.sign(values[0] - values[1]),
                1.0 if made.shown_order[0] == 0 else -1.0,
                math.tanh((words[0] - words[1]) / 30),
            )
        )
        chosen.append(made.ranking == (0, 1))
    weights = logistic_regression(np.array(rows), np.array(chosen, dtype=np.float64))
    assert weights == pytest.approx([math.log(4), 0.4, 0.9], abs=0.08)


def test_probability_by_hand() -> None:
    a = Annotator(name="simulated-x", accuracy=0.8, side_bias=0.5, length_bias=1.0)
    assert preference_probability(a, 0.3, 0, True) == pytest.approx(1 / (1 + math.exp(-(math.log(4) + 0.5))))
    assert preference_probability(a, -0.3, 30, False) == pytest.approx(
        1 / (1 + math.exp(-(-math.log(4) - 0.5 + math.tanh(1))))
    )
    assert preference_probability(a, 5e-10, 0, True) == pytest.approx(1 / (1 + math.exp(-0.5)))
    assert preference_probability(Annotator(name="simulated-x", accuracy=0.8), 1e-3, 50, False) == pytest.approx(0.8)


@given(
    accuracy=st.floats(0.5, 1.0, exclude_min=True),
    side=st.floats(-5, 5),
    length=st.floats(-5, 5),
    difference=st.floats(-1, 1),
    words=st.integers(-500, 500),
    first=st.booleans(),
)
def test_swapping_the_items_gives_the_complement(
    accuracy: float, side: float, length: float, difference: float, words: int, first: bool
) -> None:
    a = Annotator(name="simulated-x", accuracy=accuracy, side_bias=side, length_bias=length)
    p, q = (
        preference_probability(a, difference, words, first),
        preference_probability(a, -difference, -words, not first),
    )
    assert p + q == pytest.approx(1.0)
    assert 0.0 <= p <= 1.0


def test_a_gold_tie_is_a_fair_coin_and_both_orders_are_shown_equally() -> None:
    made = [judge(PANEL[0], comparison(f"c{i}", 5, 50), gold(0.5, 0.5)) for i in range(DRAWS)]
    assert np.mean([m.ranking == (0, 1) for m in made]) == pytest.approx(0.5, abs=0.015)
    assert np.mean([m.shown_order == (0, 1) for m in made]) == pytest.approx(0.5, abs=0.015)


def test_judgments_do_not_depend_on_what_was_judged_before() -> None:
    work = [(a, comparison(f"c{i}", 3, 8, 20)) for i in range(50) for a in PANEL]
    forward = {(a.name, c.id): judge(a, c, gold(0.1, 0.5, 0.9)) for a, c in work}
    backward = {(a.name, c.id): judge(a, c, gold(0.1, 0.5, 0.9)) for a, c in reversed(work)}
    assert forward == backward
    reseeded = Annotator(name=PANEL[0].name, accuracy=0.85, seed=1)
    assert [judge(reseeded, c, gold(0.1, 0.5, 0.9)) for _, c in work[::3]] != [
        forward[PANEL[0].name, c.id] for _, c in work[::3]
    ]


def test_a_perfect_annotator_ranks_any_number_of_items_by_gold() -> None:
    perfect = Annotator(name="simulated-100", accuracy=1.0)
    for n, order in enumerate(permutations(range(4))):
        made = judge(perfect, comparison(f"c{n}", 4, 4, 4, 4), gold(*[-float(rank) for rank in order]))
        assert made.ranking == order
        assert sorted(made.shown_order) == [0, 1, 2, 3]
        assert (made.comparison_id, made.annotator) == (f"c{n}", "simulated-100")


def test_noisy_rankings_of_many_follow_gold_more_often_than_not() -> None:
    firsts = [judge(PANEL[2], comparison(f"c{i}", 4, 4, 4), gold(0.1, 0.9, 0.5)).ranking for i in range(4000)]
    mean_ranks = np.mean(np.array(firsts), axis=0)
    assert mean_ranks[1] < mean_ranks[2] < mean_ranks[0]
    assert mean_ranks == pytest.approx([1.5, 0.5, 1.0], abs=0.05), (
        "expected losses: 2a; 2(1 - a); a + 1 - a, with a = 0.75"
    )


@pytest.mark.parametrize("fields", [{"accuracy": 0.5}, {"accuracy": 1.01}, {"accuracy": 0.8, "side_bias": math.inf}])
def test_impossible_annotators_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(PrefloopError, match="Annotator simulated-x"):
        Annotator(name="simulated-x", **fields)  # type: ignore[arg-type]


def test_one_score_for_each_item() -> None:
    with pytest.raises(PrefloopError, match="1 scores for 2 items"):
        judge(PANEL[0], comparison("c", 1, 2), gold(1.0))
