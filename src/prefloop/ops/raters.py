"""What several raters' choices say together."""

from __future__ import annotations

from typing import Any

import numpy as np


def posterior(item: Any, rater: Any, first_wins: Any) -> Any:
    """Probability, by item, that its first answer is better: the mean of its raters' choices, drawn towards 1/2 by one
    vote each way."""
    count = int(np.max(item)) + 1 if len(item) else 0
    votes, wins = np.bincount(item, minlength=count), np.bincount(item, weights=first_wins, minlength=count)
    return (wins + 1) / (votes + 2)
