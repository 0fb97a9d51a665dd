"""Kernels that run one after another in one region of threads. Between a step's kernels, each of some microseconds,
calls would take as long again."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from prefloop.ops.kernels import attend_bf16, attend_rows, norm_bf16, norm_rows
from prefloop.ops.products import multiplied, multiply
from prefloop.ops.threads import Call, Function, omp, pointer, shared_out

CODES: Mapping[Function, int] = {norm_bf16: 0, multiplied: 1, attend_bf16: 2}
WIDTH = 25  # of a row: a kernel's numbers, its code at the end
(TICKET, COUNT, TABLE, BARRIER) = range(4)


@intrinsic
def _call(_: Any, address: Any) -> Any:
    """A C function of nothing."""

    def generate(context: Any, builder: Any, __: Any, arguments: Any) -> Any:
        builder.call(builder.inttoptr(arguments[0], ir.FunctionType(ir.VoidType(), []).as_pointer()), [])
        return context.get_dummy_value()

    return types.void(types.int64), generate


def _all(numbers: Any) -> None:
    p = carray(numbers, (4,))
    table = carray(pointer(p[TABLE], np.int64), (p[COUNT], WIDTH))
    for i in range(p[COUNT]):
        own, code = pointer(p[TABLE] + 8 * WIDTH * i, np.int64), table[i, WIDTH - 1]
        if code == 0:
            norm_rows(own, np.uint16)
        elif code == 1:
            multiply(own)
        else:
            attend_rows(own, np.uint16)
        if p[BARRIER]:
            _call(p[BARRIER])


class Together:
    """Norms, products by panels and attention, all in bf16, listed while they were put off: they run in this order, as
    often as they are called, over the memory that they were given."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls, self.table = calls, np.zeros((len(calls), WIDTH), np.int64)
        for row, (kernel, numbers, _) in zip(self.table, calls, strict=True):
            row[: len(numbers)], row[-1] = numbers, CODES[kernel]
        barrier = ctypes.cast(omp("GOMP_barrier"), ctypes.c_void_p).value or 0  # of None too
        self.numbers = np.array((0, len(calls), self.table.ctypes.data, barrier), np.int64)

    def __call__(self) -> None:
        self.table[:, TICKET] = 0
        shared_out(_all, self.numbers, len(self.table))
