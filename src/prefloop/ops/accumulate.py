"""Sums in a wider dtype."""

import torch
from torch import Tensor

PIECE = 2**16  # numbers at a time: their cast stays in a core's cache


def accumulate(total: Tensor, part: Tensor) -> None:
    """total += part, both [N, ...], where part is narrower: on a CPU torch would cast all of it into memory first."""
    rows = len(total) if total.is_cuda else max(1, PIECE * len(total) // max(1, total.numel()))
    for sums, more in zip(torch.split(total, rows), torch.split(part, rows), strict=True):
        sums += more
