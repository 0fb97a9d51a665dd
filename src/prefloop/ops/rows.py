"""What is read of rows of logits, on a CPU: one kernel from bf16 to log-probabilities, where torch takes a pass over
fp32 numbers in memory for each step of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import carray, njit
from torch import Tensor

from prefloop.ops.kernels import exp_row, narrow, widen
from prefloop.ops.threads import FAST, omp, pointer, shared_out, ticket

PART = 4096  # numbers of a row at a time
LANES = 16


def suits(logits: Tensor) -> bool:
    """Where torch's threads are not ours to use, its own passes are faster."""
    kind = logits.device.type == "cpu" and logits.dtype in (torch.bfloat16, torch.float32)
    return kind and omp("GOMP_parallel") is not None


@njit(fastmath=FAST, inline="always")
def _top(x: Any, lanes: Any) -> Any:
    lanes[:] = np.float32(-np.inf)
    whole = len(x) // LANES * LANES
    for start in range(0, whole, LANES):
        part = x[start : start + LANES]
        for i in range(LANES):
            lanes[i] = part[i] if part[i] > lanes[i] else lanes[i]
    top = np.float32(-np.inf)
    for i in range(LANES):
        top = max(top, lanes[i])
    for i in range(whole, len(x)):
        top = max(top, x[i])
    return top


@njit(fastmath=FAST)
def _sum(x: Any) -> Any:
    """Always in the same order, wherever it is called: models that say the same have a KL of 0."""
    total = np.float32(0)
    for i in range(len(x)):
        total += x[i]
    return np.float64(total)


@njit(fastmath=FAST, inline="always")
def _read(numbers: Any, kind: Any) -> None:
    """See `read_rows`: rows until none is left."""
    p = carray(numbers, (9,))
    rows, size, apart, scale = p[1], p[2], p[3], np.float32(p[4:5].view(np.float64)[0])
    row = ticket(numbers)
    if row >= rows:
        return
    logits, targets = carray(pointer(p[5], kind), (rows, size)), carray(pointer(p[6], np.int64), (rows,))
    logprobs, entropies = carray(pointer(p[7], np.float32), (rows,)), carray(pointer(p[8], np.float32), (rows,))
    x, before, scratch = np.empty(size, np.float32), np.empty(PART, np.float32), np.empty(PART, np.float32)
    bits, powers, lanes = x.view(np.uint32), scratch.view(np.int32), np.empty(LANES, np.float32)
    while row < rows:
        widen(logits[row], x, bits)
        top, chosen = _top(x, lanes), x[targets[row]]
        total, mean = 0.0, 0.0
        for start in range(0, size, PART):
            y = x[start : start + PART]
            for i in range(len(y)):
                y[i] = (y[i] - top) * scale
                before[i] = y[i]
            exp_row(y, len(y), scratch, powers)
            total += _sum(y)
            dot = np.float32(0)
            for i in range(len(y)):
                dot += y[i] * before[i]
            mean += np.float64(dot)
        logprobs[row] = np.float64((chosen - top) * scale) - np.log(total)
        entropies[row] = np.log(total) - mean / total
        if apart:
            share = np.float32(1 / total)
            for i in range(size):
                x[i] *= share
            x[targets[row]] -= np.float32(1)
            narrow(x, logits[row], bits)
        row = ticket(numbers)


def _read_bf16(numbers: Any) -> None:
    _read(numbers, np.uint16)


def _read_fp32(numbers: Any) -> None:
    _read(numbers, np.float32)


def read_rows(logits: Tensor, targets: Tensor, temperature: float, *, apart: bool = False) -> tuple[Tensor, Tensor]:
    """log p(target) and the entropy of p = softmax(z / temperature), [R] each, of logits z [R, V]. With `apart`,
    p - 1_t stands in their place after it."""
    assert logits.is_contiguous()
    targets = _within(targets, logits.shape[1])
    out = torch.empty(2, len(logits))
    addresses = [x.data_ptr() for x in (logits, targets, *out)]
    numbers = np.array([0, *logits.shape, apart, 0, *addresses], np.int64)
    numbers[4:5].view(np.float64)[0] = 1 / temperature
    shared_out({torch.bfloat16: _read_bf16, torch.float32: _read_fp32}[logits.dtype], numbers, len(logits))
    return out[0], out[1]


def _within(targets: Tensor, size: int) -> Tensor:
    """As kernels read them, which would read beside a row what is no token."""
    assert targets.dtype == torch.int64
    if len(targets) and not 0 <= targets.min() <= targets.max() < size:
        raise ValueError(f"targets run from {targets.min()} to {targets.max()}, but tokens from 0 to {size - 1}")
    return targets.contiguous()


@njit(fastmath=FAST, inline="always")
def _compare(numbers: Any, kind: Any) -> None:
    """See `compare_rows`: rows until none is left."""
    p = carray(numbers, (8,))
    rows, size, scale = p[1], p[2], np.float32(p[3:4].view(np.float64)[0])
    row = ticket(numbers)
    if row >= rows:
        return
    logits_p, logits_q = carray(pointer(p[4], kind), (rows, size)), carray(pointer(p[5], kind), (rows, size))
    targets, out = carray(pointer(p[6], np.int64), (rows,)), carray(pointer(p[7], np.float32), (4, rows))
    x, y = np.empty(size, np.float32), np.empty(size, np.float32)
    bits_x, bits_y, lanes = x.view(np.uint32), y.view(np.uint32), np.empty(LANES, np.float32)
    weight, scratch = np.empty(PART, np.float32), np.empty(PART, np.float32)
    powers = scratch.view(np.int32)
    while row < rows:
        widen(logits_p[row], x, bits_x)
        widen(logits_q[row], y, bits_y)
        top_x, top_y = _top(x, lanes), _top(y, lanes)
        chosen_x, chosen_y = x[targets[row]], y[targets[row]]
        total_x, total_y, mean, gap = 0.0, 0.0, 0.0, 0.0
        for start in range(0, size, PART):
            u, v = x[start : start + PART], y[start : start + PART]
            for i in range(len(u)):
                u[i] = (u[i] - top_x) * scale
                v[i] = (v[i] - top_y) * scale
                weight[i] = u[i]
            exp_row(weight, len(u), scratch, powers)
            total_x += _sum(weight[: len(u)])
            dot, apart = np.float32(0), np.float32(0)
            for i in range(len(u)):
                dot += weight[i] * u[i]
                apart += weight[i] * (u[i] - v[i])
            mean += np.float64(dot)
            gap += np.float64(apart)
            exp_row(v, len(v), scratch, powers)
            total_y += _sum(v)
        log_x, log_y = np.log(total_x), np.log(total_y)
        out[0, row] = np.float64((chosen_x - top_x) * scale) - log_x
        out[1, row] = np.float64((chosen_y - top_y) * scale) - log_y
        out[2, row] = log_x - mean / total_x
        out[3, row] = gap / total_x - log_x + log_y
        row = ticket(numbers)


def _compare_bf16(numbers: Any) -> None:
    _compare(numbers, np.uint16)


def _compare_fp32(numbers: Any) -> None:
    _compare(numbers, np.float32)


def compare_rows(logits_p: Tensor, logits_q: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """[4, R]: log p and log q of the targets, the entropy of p and KL(p || q), of two models' logits [R, V]."""
    assert logits_p.is_contiguous() and logits_q.is_contiguous() and logits_p.shape == logits_q.shape
    assert logits_p.dtype == logits_q.dtype
    targets, out = _within(targets, logits_p.shape[1]), torch.empty(4, len(logits_p))
    addresses = [x.data_ptr() for x in (logits_p, logits_q, targets, out)]
    numbers = np.array([0, *logits_p.shape, 0, *addresses], np.int64)
    numbers[3:4].view(np.float64)[0] = 1 / temperature
    shared_out({torch.bfloat16: _compare_bf16, torch.float32: _compare_fp32}[logits_p.dtype], numbers, len(logits_p))
    return out
