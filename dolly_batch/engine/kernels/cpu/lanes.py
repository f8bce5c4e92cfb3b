"""Sixteen numbers at once, in LLVM's own vectors: what numba's compiler does one by one, or in shorter vectors.

Arguments are addresses (`tiles.address`), each of 16 numbers side by side or of a multiple of that.
"""

import math
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from dolly_batch.engine.kernels.cpu.softmax import EXP, LOG2_E, LOG_2, LOWEST
from dolly_batch.engine.kernels.cpu.tiles import ROWS

_WORD, _FLOAT, _PLACE = ir.IntType(32), ir.FloatType(), ir.IntType(64)
_WORDS, _FLOATS, _HALVES = (ir.VectorType(kind, ROWS) for kind in (_WORD, _FLOAT, ir.IntType(16)))


@intrinsic
def pair_up(typing_context, one, other, first, second):
    """Of the words at two addresses the first halves, side by side, to the third, the second halves to the fourth."""

    def generate(context, builder, signature, arguments):
        lower, upper = (_load(builder, place, _WORDS) for place in arguments[:2])
        firsts = builder.or_(builder.and_(lower, _words(0xFFFF)), builder.shl(upper, _words(16)))
        seconds = builder.or_(builder.lshr(lower, _words(16)), builder.and_(upper, _words(0xFFFF0000)))
        _store(builder, firsts, arguments[2])
        _store(builder, seconds, arguments[3])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


@intrinsic
def transpose(typing_context, rows, distance, columns):
    """16 rows of 16 words, `distance` bytes apart, to 16 rows of 16 that follow each other, one for each column."""

    def generate(context, builder, signature, arguments):
        rows, distance, columns = arguments
        vectors = [_load(builder, builder.add(rows, builder.mul(distance, _PLACE(i))), _WORDS) for i in range(ROWS)]
        for step in (1, 2, 4, 8):  # blocks of `step` words change places across the diagonal
            for i in range(ROWS):
                if i & step == 0:
                    upper, lower = vectors[i], vectors[i + step]
                    order = [j if j & step == 0 else ROWS + j - step for j in range(ROWS)]
                    vectors[i] = _shuffled(builder, upper, lower, order)
                    order = [j + step if j & step == 0 else ROWS + j for j in range(ROWS)]
                    vectors[i + step] = _shuffled(builder, upper, lower, order)
        for i, vector in enumerate(vectors):
            _store(builder, vector, builder.add(columns, _PLACE(4 * ROWS * i)))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), generate


@intrinsic
def put_pairs(typing_context, firsts, seconds, total, found):
    """32 float32: first and second numbers in turn, each divided by the total."""

    def generate(context, builder, signature, arguments):
        firsts, seconds, total, found = arguments
        total = _spread(builder, total, _FLOATS)
        parts = [builder.fdiv(_load(builder, place, _FLOATS), total) for place in (firsts, seconds)]
        for number, first in enumerate((0, ROWS // 2)):
            mixed = _shuffled(builder, *parts, [first + i // 2 + i % 2 * ROWS for i in range(ROWS)])
            _store(builder, mixed, builder.add(found, _PLACE(4 * ROWS * number)))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32, types.int64), generate


@intrinsic
def softmax_in_two(typing_context, scores, count, size, high, low):
    """e to the power of each of the first `count` float32 scores, less the largest of them, as two bfloat16 each, and
    zeros behind them up to `size`; returns the sum, float32, which is NaN where a score is, whatever the others are.
    """

    def generate(context, builder, signature, arguments):
        scores, count, size, high, low = arguments
        num_whole = builder.and_(count, _PLACE(-ROWS))
        end = builder.and_(builder.add(count, _PLACE(ROWS - 1)), _PLACE(-ROWS))
        largest = cgutils.alloca_once_value(builder, _floats(-math.inf))
        total = cgutils.alloca_once_value(builder, _floats(0.0))

        def each(start, stop, work):
            with cgutils.for_range_slice(builder, start, stop, _PLACE(ROWS), _PLACE) as (at, _):
                work(at)

        def compare(at, is_last):
            found = _load(builder, _at(builder, scores, at, 4), _FLOATS)
            if is_last:
                found = builder.select(_is_before(builder, at, count), found, _floats(-math.inf))
            builder.store(_larger(builder, found, builder.load(largest)), largest)

        def weigh(at, is_last):
            found = _load(builder, _at(builder, scores, at, 4), _FLOATS)
            weight = _exponential(builder, builder.fsub(found, best))
            if is_last:
                weight = builder.select(_is_before(builder, at, count), weight, _floats(0.0))
            builder.store(builder.fadd(builder.load(total), weight), total)
            for place in (high, low):
                nearest = builder.add(builder.bitcast(weight, _WORDS), _words(0x8000))
                short = builder.trunc(builder.lshr(nearest, _words(16)), _HALVES)
                _store(builder, short, _at(builder, place, at, 2))
                weight = builder.fsub(weight, builder.bitcast(builder.and_(nearest, _words(0xFFFF0000)), _FLOATS))

        each(_PLACE(0), num_whole, lambda at: compare(at, False))
        each(num_whole, end, lambda at: compare(at, True))
        best = _spread(builder, _folded(builder, builder.load(largest), lambda *two: _larger(builder, *two)), _FLOATS)
        each(_PLACE(0), num_whole, lambda at: weigh(at, False))
        each(num_whole, end, lambda at: weigh(at, True))
        nothing = ir.Constant(_HALVES, [0] * ROWS)
        for place in (high, low):
            each(end, size, lambda at, place=place: _store(builder, nothing, _at(builder, place, at, 2)))
        return _folded(builder, builder.load(total), builder.fadd)

    return types.float32(*[types.int64] * 5), generate


def _is_before(builder: Any, start: Any, count: Any) -> Any:
    """Which of the 16 numbers from `start` on are among the first `count`."""
    left = _spread(builder, builder.trunc(builder.sub(count, start), _WORD), _WORDS)
    return builder.icmp_signed("<", ir.Constant(_WORDS, list(range(ROWS))), left)


def _larger(builder: Any, found: Any, best: Any) -> Any:
    """The larger one; `best` where `found` is a NaN."""
    return builder.select(builder.fcmp_ordered(">", found, best), found, best)


def _exponential(builder: Any, x: Any) -> Any:
    """`softmax.exponential`."""
    lowest = _floats(LOWEST)
    x = builder.select(builder.fcmp_ordered("<", x, lowest), lowest, x)
    whole = _call(builder, "floor", _fused(builder, x, _floats(LOG2_E), _floats(0.5)))
    rest = x
    for part in LOG_2:
        rest = _fused(builder, whole, _floats(-part), rest)
    series = _floats(EXP[0])
    for factor in EXP[1:]:
        series = _fused(builder, series, rest, _floats(factor))
    series = _fused(builder, builder.fmul(series, rest), rest, builder.fadd(rest, _floats(1.0)))
    power = builder.shl(builder.add(builder.fptosi(whole, _WORDS), _words(127)), _words(23))
    return builder.fmul(series, builder.bitcast(power, _FLOATS))


def _fused(builder: Any, one: Any, other: Any, addend: Any) -> Any:
    return _call(builder, "fma", one, other, addend)


def _call(builder: Any, name: str, *arguments: Any) -> Any:
    kind = ir.FunctionType(_FLOATS, [_FLOATS] * len(arguments))
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{ROWS}f32"), arguments)


def _folded(builder: Any, vector: Any, combine: Any) -> Any:
    """All numbers of a vector as one, halves with halves."""
    size = ROWS
    while size > 1:
        size //= 2
        orders = ([first + i for i in range(size)] for first in (0, size))
        vector = combine(*(_shuffled(builder, vector, vector, order) for order in orders))
    return builder.extract_element(vector, _WORD(0))


def _shuffled(builder: Any, one: Any, other: Any, order: list[int]) -> Any:
    """Numbers of two vectors in an order, in which the second one's follow the first one's."""
    return builder.shuffle_vector(one, other, ir.Constant(ir.VectorType(_WORD, len(order)), order))


def _spread(builder: Any, number: Any, kind: Any) -> Any:
    alone = builder.insert_element(ir.Constant(kind, ir.Undefined), number, _WORD(0))
    return _shuffled(builder, alone, alone, [0] * ROWS)


def _words(number: int) -> Any:
    return ir.Constant(_WORDS, [number] * ROWS)


def _floats(number: Any) -> Any:
    return ir.Constant(_FLOATS, [float(number)] * ROWS)


def _at(builder: Any, place: Any, index: Any, size: int) -> Any:
    return builder.add(place, builder.mul(index, _PLACE(size)))


def _load(builder: Any, place: Any, kind: Any) -> Any:
    return builder.load(builder.inttoptr(place, kind.as_pointer()), align=1)


def _store(builder: Any, vector: Any, place: Any) -> None:
    builder.store(vector, builder.inttoptr(place, vector.type.as_pointer()), align=1)
