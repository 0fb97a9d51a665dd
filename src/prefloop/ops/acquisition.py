"""Which comparisons a label would teach most: where members of an ensemble disagree, and near-misses.

On numpy arrays. M members, N pairs of answers; a lead is the score of a pair's first answer less that of its second, in
logits of preference.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

Floats = NDArray[np.float64]


def preference_variance(leads: ArrayLike) -> Floats:
    """[N] variance over members of the preference sigmoid(lead), of leads [M, N]: 0 where all agree, 1/4 where half of
    them are sure of either answer. Christiano et al. 2017 (arXiv 1706.03741), section 2.2.4.

    ValueError unless there are two members.
    """
    chances = expit(_members(leads, "preference_variance", 2))
    return np.asarray(chances.var(axis=0))


def near_miss(leads: ArrayLike) -> Floats:
    """[N] 4 p (1 - p), with p the mean over members of sigmoid(lead), of leads [M, N]: 1 where p is a half, 0 where it
    is certain (uncertainty sampling, Lewis and Gale 1994). It holds the members' disagreement too: 4 p (1 - p) is the
    mean of 4 p_m (1 - p_m) plus 4 times `preference_variance`. ValueError without a member.
    """
    chance = expit(_members(leads, "near_miss", 1)).mean(axis=0)
    return np.asarray(4 * chance * (1 - chance))


def _members(leads: ArrayLike, of: str, least: int) -> Floats:
    members = np.asarray(leads, dtype=float)
    if members.ndim != 2 or members.shape[0] < least or np.isnan(members).any():
        raise ValueError(f"{of}: leads {members.shape}; give [members, pairs], none NaN, of {least} members at least")
    return members
