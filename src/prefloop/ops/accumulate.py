"""Sums in a wider dtype."""

from typing import Any

import numpy as np
import torch
from numba import carray
from torch import Tensor

from prefloop.ops.threads import pointer, shared_out, ticket

PIECE = 2**13  # numbers at a time: in fp32 they stay in a core's cache


def _add(numbers: Any) -> None:
    """Pieces until none is left; bf16 comes as uint16, the upper half of fp32."""
    p = carray(numbers, (4,))
    count = p[1]
    total, part = carray(pointer(p[2], np.float32), (count,)), carray(pointer(p[3], np.uint16), (count,))
    wide = np.empty(PIECE, np.float32)
    bits = wide.view(np.uint32)
    while True:
        start = ticket(numbers) * PIECE
        if start >= count:
            break
        sums, more = total[start : start + PIECE], part[start : start + PIECE]
        for i in range(len(sums)):
            bits[i] = np.uint32(more[i]) << np.uint32(16)
        for i in range(len(sums)):
            sums[i] += wide[i]


def accumulate(total: Tensor, part: Tensor) -> None:
    """total += part, of one shape. On a CPU torch would cast a bf16 part into memory first."""
    plain = total.is_cuda or part.dtype != torch.bfloat16 or total.dtype != torch.float32
    if plain or not total.is_contiguous():
        total += part
        return
    part = part.contiguous()
    numbers = np.array([0, total.numel(), total.data_ptr(), part.data_ptr()], np.int64)
    shared_out(_add, numbers, -(-total.numel() // PIECE), (total, part))
