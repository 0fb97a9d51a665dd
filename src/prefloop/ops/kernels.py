"""What a step of decoding does between its products, one row of numbers at a time, compiled by numba for this CPU.

Left to torch it is some thirty calls a layer, each of them slower than its work. bf16 comes as uint16, because numpy
has none, and is computed in fp32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import carray, njit, types
from numba.extending import overload
from torch import Tensor

from prefloop.ops.attention import Traits
from prefloop.ops.threads import FAST, pointer, shared_out, ticket

FOUR = 4  # keys and values that are read at a time


def widen(source: Any, into: Any, bits: Any) -> None:
    """Numbers of any kind as fp32; `bits` are those of `into`."""
    for i in range(len(into)):
        into[i] = source[i]


def narrow(source: Any, into: Any, bits: Any) -> None:
    """fp32 numbers as those of `into`, rounded to the nearest, ties to even; `bits` are those of `source`."""
    for i in range(len(into)):
        into[i] = source[i]


@overload(widen, inline="always")
def _widened(source: Any, into: Any, bits: Any) -> Any:
    def from_bf16(source: Any, into: Any, bits: Any) -> None:
        for i in range(len(into)):
            bits[i] = np.uint32(source[i]) << np.uint32(16)

    return from_bf16 if source.dtype == types.uint16 else widen


@overload(narrow, inline="always")
def _narrowed(source: Any, into: Any, bits: Any) -> Any:
    def to_bf16(source: Any, into: Any, bits: Any) -> None:
        for i in range(len(into)):
            odd = (bits[i] >> np.uint32(16)) & np.uint32(1)
            into[i] = np.uint16((bits[i] + np.uint32(0x7FFF) + odd) >> np.uint32(16))

    return to_bf16 if into.dtype == types.uint16 else narrow


@njit(fastmath=FAST, inline="always")
def _turn(x: Any, cos: Any, sin: Any) -> None:
    """Rotary positions (Su et al. 2021) in place, in halves as Llama has them."""
    half = len(x) // 2
    for i in range(half):
        a, b = x[i], x[i + half]
        x[i] = a * cos[i] - b * sin[i]
        x[i + half] = b * cos[i + half] + a * sin[i + half]


@njit(fastmath=FAST, inline="always")
def exp_row(x: Any, count: int, scratch: Any, bits: Any) -> None:
    """exp in place of the first `count` numbers, none above 0: 2^n by the exponent's bits, the rest by its Taylor
    series (within 2e-7); 0 below the least normal number."""
    for i in range(count):
        t = max(x[i] * np.float32(1.4426950408889634), np.float32(-127.0))
        n = np.floor(t + np.float32(0.5))
        f = (t - n) * np.float32(0.6931471805599453)
        bits[i] = (np.int32(n) + np.int32(127)) << np.int32(23)
        series = np.float32(1 / 120) + f * np.float32(1 / 720)
        series = np.float32(1 / 6) + f * (np.float32(1 / 24) + f * series)
        x[i] = np.float32(1) + f * (np.float32(1) + f * (np.float32(0.5) + f * series))
    for i in range(count):
        x[i] *= scratch[i]


@njit(fastmath=FAST, inline="always")
def norm_rows(numbers: Any, kind: Any) -> None:
    """See `rms_norm`: rows until none is left."""
    p = carray(numbers, (7,))
    rows, width = p[1], p[2]
    x, out = carray(pointer(p[4], kind), (rows, width)), carray(pointer(p[6], kind), (rows, width))
    weight, eps = carray(pointer(p[5], np.float32), (width,)), np.float32(p[3:4].view(np.float64)[0])
    wide = np.empty(width, np.float32)
    bits = wide.view(np.uint32)
    while True:
        row = ticket(numbers)
        if row >= rows:
            break
        widen(x[row], wide, bits)
        total = np.float32(0)
        for i in range(width):
            total += wide[i] * wide[i]
        scale = np.float32(1) / np.sqrt(total / np.float32(width) + eps)
        for i in range(width):
            wide[i] *= scale * weight[i]
        narrow(wide, out[row], bits)


def norm_bf16(numbers: Any) -> None:
    norm_rows(numbers, np.uint16)


def norm_fp32(numbers: Any) -> None:
    norm_rows(numbers, np.float32)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight x / sqrt(mean(x^2) + eps) of rows [N, D], with the weight in fp32 (Zhang and Sennrich 2019)."""
    assert weight.dtype == torch.float32 and weight.shape == x.shape[1:] and weight.is_contiguous()
    x = x.contiguous()
    out = torch.empty_like(x)
    numbers = np.array((0, *x.shape, 0, x.data_ptr(), weight.data_ptr(), out.data_ptr()), np.int64)
    numbers[3:4].view(np.float64)[0] = eps
    shared_out({torch.bfloat16: norm_bf16, torch.float32: norm_fp32}[x.dtype], numbers, len(x), (x, weight, out))
    return out


@njit(fastmath=FAST, inline="always")
def _draw(numbers: Any, kind: Any) -> None:
    """See `draw`: rows until none is left."""
    p = carray(numbers, (8,))
    rows, size, width = p[1], p[2], p[3]
    row = ticket(numbers)
    if row >= rows:
        return
    logits = carray(pointer(p[4], kind), (rows, size))
    reals = carray(pointer(p[5], np.float64), (3, rows))  # temperatures, uniforms, softcaps
    tokens, logprobs = carray(pointer(p[6], np.int64), (rows,)), carray(pointer(p[7], np.float32), (rows,))
    x, scratch = np.empty(size, np.float32), np.empty(size, np.float32)
    bits, powers = x.view(np.uint32), scratch.view(np.int32)
    sums = np.empty(size // width, np.float64)
    while row < rows:
        widen(logits[row], x, bits)
        temperature, softcap = np.float32(reals[0, row]), np.float32(reals[2, row])
        if softcap:
            for i in range(size):
                x[i] = softcap * np.tanh(x[i] / softcap)
        top = np.float32(-np.inf)
        for i in range(size):
            x[i] /= temperature
            top = max(top, x[i])
        for i in range(size):
            x[i] -= top
        exp_row(x, size, scratch, powers)
        total = 0.0
        for block in range(len(sums)):
            mass = np.float32(0)
            for i in range(width):
                mass += x[block * width + i]
            total += np.float64(mass)
            sums[block] = total
        wanted = min(reals[1, row] * total, np.nextafter(total, 0.0))
        block = min(np.searchsorted(sums, wanted, side="right"), len(sums) - 1)
        before = sums[block - 1] if block else 0.0
        inside, last, token = 0.0, block * width, -1
        for i in range(block * width, (block + 1) * width):
            if x[i] > 0:
                last = i
                inside += np.float64(x[i])
                if inside > wanted - before:
                    token = i
                    break
        token = token if token >= 0 else last  # rounding never leads to a place that adds nothing
        tokens[row] = token if total > 0 else -1
        logprobs[row] = np.log(x[token] / np.float32(total))
        row = ticket(numbers)


def _draw_bf16(numbers: Any) -> None:
    _draw(numbers, np.uint16)


def _draw_fp32(numbers: Any) -> None:
    _draw(numbers, np.float32)


def draw(
    logits: Tensor, temperatures: Tensor, uniforms: Tensor, softcap: float | None, width: int
) -> tuple[Tensor, Tensor]:
    """See engine.generate.draw; the distribution is summed by blocks of `width`, which divides V. Token -1 where a
    row's numbers have no sum."""
    logits = logits.contiguous()
    reals = torch.stack([temperatures.double(), uniforms.double(), torch.full_like(uniforms, softcap or 0).double()])
    tokens, logprobs = torch.empty(len(logits), dtype=torch.int64), torch.empty(len(logits))
    addresses = [x.data_ptr() for x in (logits, reals, tokens, logprobs)]
    numbers = np.array([0, *logits.shape, width, *addresses], np.int64)
    shared_out({torch.bfloat16: _draw_bf16, torch.float32: _draw_fp32}[logits.dtype], numbers, len(logits))
    return tokens, logprobs


# Places in the numbers that `Attention` hands over: whole numbers and addresses, then two fp64 numbers by their bits.
(TICKET, ROWS, HEADS, KEY_HEADS, WIDTH, SLOTS, PLACES, PROMPTS, LENGTH, WINDOW, TURNS, SINKS) = range(12)
(A_HEADS, A_OWN, A_GIVEN, A_AT, A_PROMPT, A_PREFIX, A_COS, A_SIN, A_SINKS, A_OUT, SCALING, SOFTCAP) = range(12, 24)


@njit(fastmath=FAST, inline="always")
def attend_rows(numbers: Any, kind: Any) -> None:
    """See `Attention`: rows until none is left."""
    p = carray(numbers, (24,))
    row = ticket(numbers)
    if row >= p[ROWS]:
        return
    rows, heads, key_heads, width, slots, places = p[ROWS], p[HEADS], p[KEY_HEADS], p[WIDTH], p[SLOTS], p[PLACES]
    prompts, length, window, turns = p[PROMPTS], p[LENGTH], p[WINDOW], p[TURNS]
    asked = carray(pointer(p[A_HEADS], kind), (rows, heads + 2 * key_heads, width))
    own = carray(pointer(p[A_OWN], kind), (2, slots, key_heads, places, width))
    given = carray(pointer(p[A_GIVEN], kind), (2, prompts, key_heads, length, width))
    out = carray(pointer(p[A_OUT], kind), (rows, heads, width))
    at, prompt = carray(pointer(p[A_AT], np.int64), (rows,)), carray(pointer(p[A_PROMPT], np.int64), (rows,))
    prefix = carray(pointer(p[A_PREFIX], np.int64), (rows,))
    cos = carray(pointer(p[A_COS], np.float32), (rows, width))
    sin = carray(pointer(p[A_SIN], np.float32), (rows, width))
    sinks = carray(pointer(p[A_SINKS], np.float32), (heads,))
    reals = p[SCALING : SOFTCAP + 1].view(np.float64)
    scaling, softcap = np.float32(reals[0]), np.float32(reals[1])
    group, longest = heads // key_heads, places + length + FOUR
    query, mixed = np.empty((group, width), np.float32), np.empty((group, width), np.float32)
    query_bits, mixed_bits = query.view(np.uint32), mixed.view(np.uint32)
    scores, scratch, buffer = (
        np.empty((group, longest), np.float32),
        np.empty(longest, np.float32),
        np.empty(width, np.float32),
    )
    powers, bits = scratch.view(np.int32), buffer.view(np.uint32)
    four = np.empty((FOUR, width), np.float32)
    four_bits = four.view(np.uint32)
    while row < rows:
        shared = prefix[row]
        total = shared + at[row] + 1
        first = max(0, total - window) if window else 0
        for head in range(key_heads):
            keys, values = own[0, row, head], own[1, row, head]
            given_keys, given_values = given[0, prompt[row], head], given[1, prompt[row], head]
            widen(asked[row, heads + head], buffer, bits)
            if turns:
                _turn(buffer, cos[row], sin[row])
            narrow(buffer, keys[at[row]], bits)
            new = asked[row, heads + key_heads + head]
            for i in range(width):
                values[at[row], i] = new[i]
            for g in range(group):
                widen(asked[row, head * group + g], query[g], query_bits[g])
                if turns:
                    _turn(query[g], cos[row], sin[row])
            for s in range(first, total, FOUR):
                for j in range(FOUR):
                    place = min(s + j, total - 1)
                    widen(given_keys[place] if place < shared else keys[place - shared], four[j], four_bits[j])
                for g in range(group):
                    a, b, c, d = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
                    for i in range(width):
                        a += query[g, i] * four[0, i]
                        b += query[g, i] * four[1, i]
                        c += query[g, i] * four[2, i]
                        d += query[g, i] * four[3, i]
                    weights = scores[g, s - first : s - first + FOUR]
                    weights[0], weights[1], weights[2], weights[3] = a * scaling, b * scaling, c * scaling, d * scaling
            for g in range(group):
                count, weights = total - first, scores[g]
                if softcap:
                    for s in range(count):
                        weights[s] = softcap * np.tanh(weights[s] / softcap)
                sink = sinks[head * group + g] if p[SINKS] else np.float32(-np.inf)
                top = sink
                for s in range(count):
                    top = max(top, weights[s])
                for s in range(count):
                    weights[s] -= top
                exp_row(weights, count, scratch, powers)
                mass = np.exp(sink - top) if p[SINKS] else np.float32(0)
                for s in range(count):
                    mass += weights[s]
                for s in range(count):
                    weights[s] /= mass
                weights[count : count + FOUR] = 0
            for g in range(group):
                for i in range(width):
                    mixed[g, i] = 0
            for s in range(first, total, FOUR):
                for j in range(FOUR):
                    place = min(s + j, total - 1)
                    widen(given_values[place] if place < shared else values[place - shared], four[j], four_bits[j])
                for g in range(group):
                    weights = scores[g, s - first : s - first + FOUR]
                    for i in range(width):
                        mixed[g, i] += (
                            weights[0] * four[0, i]
                            + weights[1] * four[1, i]
                            + (weights[2] * four[2, i] + weights[3] * four[3, i])
                        )
            for g in range(group):
                narrow(mixed[g], out[row, head * group + g], mixed_bits[g])
        row = ticket(numbers)


def attend_bf16(numbers: Any) -> None:
    attend_rows(numbers, np.uint16)


def _attend_fp32(numbers: Any) -> None:
    attend_rows(numbers, np.float32)


class Attention:
    """Attention of one new token in each of N rows, layer after layer: what does not change between layers."""

    def __init__(self, at: Tensor, prompt: Tensor, prefix: Tensor) -> None:
        """All [N] int64. Row n is written at place at[n], and sees prefix[n] tokens of prompt number prompt[n]."""
        self.at, self.prompt, self.prefix = at, prompt, prefix
        self.numbers = np.zeros(24, np.int64)
        self.numbers[ROWS] = len(at)
        self.numbers[[A_AT, A_PROMPT, A_PREFIX]] = [x.data_ptr() for x in (at, prompt, prefix)]

    def turn(self, cos: Tensor, sin: Tensor) -> None:
        """From now on queries and keys are turned by these [N, D], in fp32."""
        self.cos, self.sin = cos.contiguous(), sin.contiguous()
        self.numbers[[TURNS, A_COS, A_SIN]] = 1, self.cos.data_ptr(), self.sin.data_ptr()

    def __call__(self, heads: Tensor, own: Tensor, given: Tensor, traits: Traits) -> Tensor:
        """Keep the tokens' keys and values, and attend to what each row sees.

        heads [N, H + 2 Hk, D]: a token's queries, keys and values. own [2, slots, Hk, S, D]: what rows have kept. given
        [2, P, Hk, S', D]: prompts. Returns [N, H x D]. Everything is computed in fp32.
        """
        _, slots, key_heads, places, width = own.shape
        query_heads = heads.shape[1] - 2 * key_heads
        assert own.dtype == given.dtype == heads.dtype and own.is_contiguous() and given.is_contiguous()
        heads, out = heads.contiguous(), heads.new_empty(len(heads), query_heads * width)
        numbers = self.numbers.copy()
        numbers[:TURNS] = (
            0,
            len(heads),
            query_heads,
            key_heads,
            width,
            slots,
            places,
            given.shape[1],
            given.shape[3],
            traits.window or 0,
        )
        sinks = None if traits.sinks is None else traits.sinks.float().contiguous()
        numbers[[SINKS, A_SINKS]] = (0, 0) if sinks is None else (1, sinks.data_ptr())
        numbers[[A_HEADS, A_OWN, A_GIVEN, A_OUT]] = [x.data_ptr() for x in (heads, own, given, out)]
        numbers[SCALING:].view(np.float64)[:] = traits.scaling, traits.softcap or 0.0
        run = {torch.bfloat16: attend_bf16, torch.float32: _attend_fp32}[heads.dtype]
        shared_out(run, numbers, len(heads), (self, heads, own, given, sinks, out))
        return out
