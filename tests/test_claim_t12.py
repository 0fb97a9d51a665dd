"""The small parts of claim T12: its answers are what they say, its labels stop at the first error, its vote counts."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks" / "claims"


@pytest.fixture(scope="module")
def t12() -> ModuleType:
    sys.path.insert(0, str(FOLDER))  # as for a script that runs there
    spec = importlib.util.spec_from_file_location("claim_t12", FOLDER / "T12.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["claim_t12"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def test_answers_say_what_is_true_of_them(t12: ModuleType) -> None:
    made = t12.Solver(np.random.default_rng(100)).solve(50, 8)
    assert ((made.a + made.b) % 10 == made.c).tolist() == made.sound.tolist()
    assert (made.a[..., 1:] == made.c[..., :-1]).all() and (made.b == made.b[:, :1]).all()
    truth = (made.a[..., 0] + made.b.sum(-1)) % 10
    assert (made.c[..., -1] == truth).tolist() == made.right.tolist()
    lucky = made.right & ~made.sound.all(-1)
    assert lucky.any() and not (made.sound.all(-1) & ~made.right).any()
    digits = made.digits()
    assert digits.shape == (50, 8, 5, 30) and digits.sum(-1).unique().tolist() == [3.0]


def test_labels_are_of_steps_up_to_the_first_error_or_of_the_end(t12: ModuleType) -> None:
    made = t12.Solver(np.random.default_rng(100)).solve(50, 8)
    process, outcome = t12.process_labels(made), t12.outcome_labels(made)
    for row, sound in zip(process, made.sound.reshape(-1, 5), strict=True):
        first = int(np.argmin(sound)) if not sound.all() else 4
        assert (
            row[: first + 1].tolist() == sound[: first + 1].astype(float).tolist() and np.isnan(row[first + 1 :]).all()
        )
    assert np.isnan(outcome[:, :-1]).all() and outcome[:, -1].tolist() == made.right.ravel().astype(float).tolist()


def test_who_is_chosen_by_hand(t12: ModuleType) -> None:
    assert t12.most(np.array([7, 2, 2, 7, 5])) == 1 and t12.most(np.array([9, 3, 3])) == 1
    final = np.tile([4, 1, 1, 1], (2, 8))
    assert t12.chosen(None, final, 4)[0].tolist() == [1 + 4 * k for k in range(8)]
    scores = np.arange(64.0).reshape(2, 32)
    assert (
        t12.chosen(scores, final, 16).tolist() == [[15, 31]] * 2
        and t12.chosen(-scores, final, 32).tolist() == [[0]] * 2
    )
    assert t12.scored(np.array([[0.5, 0.5], [0.9, 0.1]]), "product").tolist() == pytest.approx([0.25, 0.09])
