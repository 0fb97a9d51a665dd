"""Hashed n-grams beside scikit-learn's, and the pair classifier beside its logistic regression."""

import math

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from prefloop.evals.ngrams import TfIdf, distances, fit_pairs, hashed

TEXTS = [
    "Rinse the pot.",
    "the pot, the lid",
    "Don\u2019t rinse it!",
    "A lid is no pot; rinse it, then rinse it again.",
]
PATTERN = r"\w+(?:['\u2019]\w+)*|[^\w\s]"


def test_counts_by_hand() -> None:
    counts = hashed(["The the pot", "", "pot!"])
    assert counts.shape[0] == 3
    assert sorted(counts[[0]].data.tolist()) == [1, 1, 1, 2]  # the the, the pot, pot; the
    assert counts[[1]].nnz == 0
    assert counts[[2]].nnz == 3  # pot, !, pot !


def test_weights_are_those_of_scikit_learn() -> None:
    theirs = TfidfVectorizer(token_pattern=PATTERN, ngram_range=(1, 2), sublinear_tf=True).fit(TEXTS)
    ours = TfIdf(TEXTS)
    asked = [*TEXTS, "an unknown pot"]
    a, b = ours(asked[:4]), theirs.transform(asked[:4])
    assert (a @ a.T).toarray() == pytest.approx((b @ b.T).toarray())
    assert math.sqrt((ours(asked[4:]).multiply(ours(asked[4:]))).sum()) == pytest.approx(1)
    assert ours([""]).nnz == 0


def test_pairs_are_fitted_as_by_logistic_regression() -> None:
    rng = np.random.default_rng(0)
    a, b = (TfIdf(TEXTS)([TEXTS[i] for i in rng.integers(4, size=60)]) for _ in range(2))
    x = (a - b)[:, np.flatnonzero(abs(a - b).sum(axis=0))]
    targets = (rng.random(60) < 0.6).astype(float)
    ours = fit_pairs(x, targets, strength=2.0)
    theirs = LogisticRegression(C=2.0, fit_intercept=False, tol=1e-8, max_iter=2000).fit(x, targets).coef_[0]
    assert ours == pytest.approx(theirs, abs=1e-3)
    assert fit_pairs(-x, 1 - targets, strength=2.0) == pytest.approx(ours, abs=1e-3)


def test_distance_is_to_the_nearest() -> None:
    vectors = TfIdf(TEXTS)
    known = vectors(TEXTS)
    found = distances(vectors(["Rinse the pot.", "zebra", ""]), known)
    assert found == pytest.approx([0, 1, 1])
    cosines = (known[:1] @ known[1:].T).toarray()
    assert distances(known[:1], known[1:])[0] == pytest.approx(1 - cosines.max())
