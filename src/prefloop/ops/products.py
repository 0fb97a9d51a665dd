"""Products of bf16 rows with weights that stay, for CPUs that multiply pairs of bf16 (AVX512-BF16). Where rows are few,
as in a step of decoding, they are faster than oneDNN's."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils, config
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic
from torch import Tensor

from prefloop.ops.threads import omp, shared_out, ticket

Then = Literal["none", "swish", "mul", "add"]
CODES: dict[Then, int] = {"none": 0, "swish": 1, "mul": 2, "add": 3}
LANES = 16  # fp32 numbers of a vector
COLUMNS = 2 * LANES  # outputs of a panel
BLOCK = 96  # rows that stay in a core's cache while all panels pass
MERGED = ("contract",)  # a product and a sum may be one instruction


def suits(weight: Tensor) -> bool:
    """Whether `Panels` can hold a weight [out, in] on this CPU, and nothing faster is there: with AMX oneDNN is."""
    outputs, inputs = weight.shape
    return weight.dtype == torch.bfloat16 and _here() and inputs % 2 == 0 and outputs % COLUMNS == 0


@cache
def _here() -> bool:
    asked = config.CPU_FEATURES  # what numba compiles for, where it was told
    features = (get_host_cpu_features() if asked is None else asked).split(",")
    return "+avx512bf16" in features and "+amx-bf16" not in features and omp("GOMP_parallel") is not None


class _BFloat(ir.Type):  # type: ignore[misc]  # llvmlite has no types
    """LLVM's bf16, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


WORD, WHOLE = ir.IntType(32), ir.IntType(64)
REALS, WORDS = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(WORD, LANES)
HALVES, PAIRS = ir.VectorType(_BFloat(), LANES), ir.VectorType(_BFloat(), 2 * LANES)


class _Code:
    """Instructions on vectors of 16 numbers, at addresses that are whole numbers."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def call(self, name: str, made: Any, *given: Any) -> Any:
        kind = ir.FunctionType(made, [value.type for value in given])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.{name}"), given)

    def ahead(self, address: Any, count: Any, size: int) -> Any:
        return self.builder.add(address, self.builder.mul(count, WHOLE(size)))

    def load(self, address: Any, kind: Any) -> Any:
        return self.builder.load(self.builder.inttoptr(address, kind.as_pointer()), align=2)

    def store_bf16(self, x: Any, address: Any) -> None:
        rounded = self.call("x86.avx512bf16.cvtneps2bf16.512", HALVES, x)
        self.builder.store(rounded, self.builder.inttoptr(address, HALVES.as_pointer()), align=2)

    def load_bf16(self, address: Any) -> Any:
        numbers = self.builder.zext(self.load(address, ir.VectorType(ir.IntType(16), LANES)), WORDS)
        return self.builder.bitcast(self.builder.shl(numbers, WORDS([16] * LANES)), REALS)

    def load_pair(self, address: Any) -> Any:
        """The two numbers there, 16 times."""
        one = self.builder.insert_element(ir.Constant(WORDS, ir.Undefined), self.load(address, WORD), WORD(0))
        return self.builder.bitcast(self.builder.shuffle_vector(one, one, WORDS([0] * LANES)), PAIRS)

    def swish(self, x: Any) -> Any:
        """x / (1 + exp(-x)), with exp as in kernels.exp_row; no nearer to 0 than x / 2^126."""
        b = self.builder

        def times_plus(x: Any, y: Any, z: float) -> Any:
            return b.fadd(b.fmul(x, y, flags=MERGED), REALS([z] * LANES), flags=MERGED)

        t = b.fmul(x, REALS([-1.4426950408889634] * LANES))
        t = self.call("maxnum.v16f32", REALS, t, REALS([-126.0] * LANES))
        t = self.call("minnum.v16f32", REALS, t, REALS([126.0] * LANES))
        n = self.call("floor.v16f32", REALS, b.fadd(t, REALS([0.5] * LANES)))
        f = b.fmul(b.fsub(t, n), REALS([0.6931471805599453] * LANES))
        series = REALS([1 / 720] * LANES)
        for factor in (1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0):
            series = times_plus(f, series, factor)
        exponent = b.shl(b.add(b.fptosi(n, WORDS), WORDS([127] * LANES)), WORDS([23] * LANES))
        return b.fdiv(x, times_plus(series, b.bitcast(exponent, REALS), 1.0))


@intrinsic(prefer_literal=True)
def _tile(
    _: Any, x: Any, panel: Any, pairs: Any, bias: Any, other: Any, out: Any, width: Any, then: Any, rows: Any
) -> Any:
    """[rows, 32] of a product: rows at `x`, of `pairs` x 2 numbers, with a panel. `bias` is fp32, or at 0; `other` and
    `out` have rows of `width` numbers. All are addresses, but `then`, of CODES, and `rows`, known when compiling."""

    def generate(context: Any, builder: Any, __: Any, arguments: Any) -> Any:
        x, panel, pairs, bias, other, out, width, then, _ = arguments
        code, parts = _Code(builder), range(2)
        starts = [code.ahead(x, pairs, 4 * row) for row in range(rows.literal_value)]
        sums = {(row, part): cgutils.alloca_once(builder, REALS) for row in range(len(starts)) for part in parts}
        for total in sums.values():
            builder.store(ir.Constant(REALS, None), total)
        with cgutils.for_range(builder, pairs) as loop:
            at = code.ahead(panel, loop.index, 4 * COLUMNS)
            weights = [code.load(builder.add(at, WHOLE(4 * LANES * part)), PAIRS) for part in parts]
            for row, start in enumerate(starts):
                pair = code.load_pair(code.ahead(start, loop.index, 4))
                for part, weight in enumerate(weights):
                    before = builder.load(sums[row, part])
                    made = code.call("x86.avx512bf16.dpbf16ps.512", REALS, before, pair, weight)
                    builder.store(made, sums[row, part])

        def place(start: Any, row: int, part: int) -> Any:
            return builder.add(code.ahead(start, width, 2 * row), WHOLE(2 * LANES * part))

        def follow(condition: Any, change: Callable[[Any, int, int], Any]) -> None:
            with builder.if_then(condition):
                for (row, part), total in sums.items():
                    builder.store(change(builder.load(total), row, part), total)

        def asked(name: Then) -> Any:
            return builder.icmp_signed("==", then, WHOLE(CODES[name]))

        follow(
            builder.icmp_signed("!=", bias, WHOLE(0)),
            lambda made, _, part: builder.fadd(made, code.load(builder.add(bias, WHOLE(4 * LANES * part)), REALS)),
        )
        follow(asked("swish"), lambda made, *_: code.swish(made))
        follow(asked("mul"), lambda made, *at: builder.fmul(made, code.load_bf16(place(other, *at))))
        follow(asked("add"), lambda made, *at: builder.fadd(made, code.load_bf16(place(other, *at))))
        for at, total in sums.items():
            code.store_bf16(builder.load(total), place(out, *at))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 8, rows), generate


(TICKET, PANELS, ROWS, INPUTS, OUTPUTS, THEN, A_X, A_PANELS, A_BIAS, A_OTHER, A_OUT) = range(11)


@njit(inline="always")
def multiply(numbers: Any) -> None:
    """See `Panels`: blocks of rows by panels until none is left."""
    p = carray(numbers, (11,))
    rows, inputs, width, then = p[ROWS], p[INPUTS], p[OUTPUTS], p[THEN]
    pairs = inputs // 2
    while True:
        block, panel = divmod(ticket(numbers), p[PANELS])
        row, last = block * BLOCK, min(rows, (block + 1) * BLOCK)
        if row >= rows:
            break
        weights, first = p[A_PANELS] + 2 * COLUMNS * inputs * panel, COLUMNS * panel
        bias = p[A_BIAS] + 4 * first if p[A_BIAS] else 0
        while row < last:
            left, x, at = last - row, p[A_X] + 2 * inputs * row, 2 * (width * row + first)
            other, out = p[A_OTHER] + at, p[A_OUT] + at
            if left >= 12:  # 24 of the 32 registers
                _tile(x, weights, pairs, bias, other, out, width, then, 12)
                row += 12
            elif left >= 8:
                _tile(x, weights, pairs, bias, other, out, width, then, 8)
                row += 8
            elif left >= 4:
                _tile(x, weights, pairs, bias, other, out, width, then, 4)
                row += 4
            elif left >= 2:
                _tile(x, weights, pairs, bias, other, out, width, then, 2)
                row += 2
            else:
                _tile(x, weights, pairs, bias, other, out, width, then, 1)
                row += 1


def multiplied(numbers: Any) -> None:
    multiply(numbers)


class Panels:
    """A weight [out, in] in bf16 in panels of 32 outputs, their inputs in pairs as the CPU multiplies them; a bias
    [out]. Only where `suits` holds."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        outputs, inputs = weight.shape
        split = weight.reshape(outputs // COLUMNS, COLUMNS, inputs // 2, 2)
        self.panels, self.shape = split.transpose(1, 2).contiguous(), (outputs, inputs)
        self.bias = None if bias is None else bias.float().contiguous()

    def __call__(self, x: Tensor, then: Then = "none", other: Tensor | None = None) -> Tensor:
        """x [N, in] -> [N, out], rounded once: after swish, or after `other` [N, out] was multiplied or added."""
        (outputs, inputs), rows = self.shape, len(x)
        assert (
            x.dtype == torch.bfloat16 and x.shape == (rows, inputs) and (other is None) == (then in ("none", "swish"))
        )
        x, out = x.contiguous(), x.new_empty(rows, outputs)
        if other is not None:
            assert other.dtype == torch.bfloat16 and other.shape == out.shape
            other = other.contiguous()
        bias, more = (0 if given is None else given.data_ptr() for given in (self.bias, other))
        addresses = (x.data_ptr(), self.panels.data_ptr(), bias, more, out.data_ptr())
        numbers = np.array((0, len(self.panels), rows, inputs, outputs, CODES[then], *addresses), np.int64)
        shared_out(multiplied, numbers, len(self.panels), (self, x, other, out))
        return out
