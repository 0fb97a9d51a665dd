"""Texts as hashed n-grams: the pair classifier that a reward model should beat, and how far texts are from others."""

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import minimize
from scipy.special import expit

Floats = NDArray[np.float64]
BUCKETS = 2**18
_TOKEN = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")
_ROWS = 128  # compared at a time


class TfIdf:
    """Unit vectors of words, marks and pairs of neighbours: (1 + ln count) (ln((1 + N) / (1 + df)) + 1), with df in the
    N texts that it was made from (Salton and Buckley 1988, smoothed); hashed into 2^18 columns."""

    def __init__(self, texts: Sequence[str]) -> None:
        present = (hashed(texts) > 0).sum(axis=0)
        self._weights = np.log((1 + len(texts)) / (1 + np.asarray(present).ravel())) + 1

    def __call__(self, texts: Sequence[str]) -> Any:
        """Sparse [len(texts), BUCKETS]; a text without a token is 0."""
        counts = hashed(texts)
        counts.data = 1 + np.log(counts.data)
        weighted = (counts @ sparse.diags_array(self._weights)).tocsr()
        norms = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
        return (sparse.diags_array(1 / np.where(norms > 0, norms, 1)) @ weighted).tocsr()


def hashed(texts: Iterable[str]) -> Any:
    """Sparse counts [texts, BUCKETS] of words (lower case), marks and pairs of neighbours, by CRC-32."""
    columns: list[int] = []
    counts: list[int] = []
    ends = [0]
    for text in texts:
        tokens = _TOKEN.findall(text.lower())
        grams = [*tokens, *(f"{a} {b}" for a, b in pairwise(tokens))]
        found = Counter(map(_bucket, grams))
        columns += found.keys()
        counts += found.values()
        ends.append(len(columns))
    shape = (len(ends) - 1, BUCKETS)
    return sparse.csr_array((np.array(counts, dtype=float), np.array(columns, dtype=np.int64), ends), shape=shape)


@lru_cache(maxsize=2**18)
def _bucket(gram: str) -> int:
    return zlib.crc32(gram.encode("utf-8", "surrogatepass")) % BUCKETS


def fit_pairs(differences: Any, targets: Floats, strength: float = 1.0) -> Floats:
    """[F] weights w that minimise the sum over pairs of the cross-entropy of sigmoid(x w) against targets (0..1), plus
    |w|^2 / (2 strength): Bradley-Terry with linear scores. differences [N, F]: features of a less those of b."""
    used = np.flatnonzero(np.asarray(abs(differences).sum(axis=0)).ravel())
    x = differences.tocsc()[:, used].tocsr()

    def loss(w: Floats) -> tuple[float, Floats]:
        logits = x @ w
        value = float(np.sum(np.logaddexp(0, logits) - targets * logits)) + float(w @ w) / (2 * strength)
        return value, np.asarray(x.T @ (expit(logits) - targets) + w / strength)

    weights = np.zeros(differences.shape[1])
    weights[used] = minimize(loss, np.zeros(used.size), jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    return weights


def distances(texts: Any, known: Any) -> Floats:
    """[N] 1 - the largest cosine of each row of `texts` [N, F] with a row of `known` [M, F]; both hold unit vectors."""
    parts = [(texts[i : i + _ROWS] @ known.T).max(axis=1) for i in range(0, texts.shape[0], _ROWS)]
    return np.asarray(1 - np.concatenate([part.toarray().ravel() for part in parts]))
