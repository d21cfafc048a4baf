"""The inner loops of the numba engine as explicit vector code: left to itself, the compiler keeps the sums in memory.

Only what plain loops were measured to be slower at is here (``benchmarks/engine_loops.py``; table in docs/engines.md).
At 4096x4096, 90 % zeros, one thread, ``tile`` takes a quarter of the time of plain loops at 8 samples, a third at 64,
``transpose`` saves a fifth of a batch of 64, and ``line`` a fifth of a 3x3 convolution. ``dot``, the product with one
sample, saves a third on processors whose gathers are slow; elsewhere a plain loop in ``numba_kernels`` is faster. The
copying of lines is a plain loop everywhere, since explicit code was no faster.

A tile is one row of the weight summed for ``width`` neighbouring outputs, all of them in registers::

    out[at + t] = scale[row] * (sum over the row's k of values[k] * source[base + indices[k] * step + t]) + bias[row]

A product with a batch (samples side by side, step = width) and a convolution without im2col (indices are offsets into
a padded image, step = 1) are both this sum. All take a layer's weights whole (numba_kernels.Weights): numba updates an
array's reference count whenever it is passed on or taken out of a tuple, and for all of the arrays that takes longer
than a short row. ``transpose`` transposes a square of ``width`` by ``width`` numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

LANES = 16
WIDTHS = (4, 8, 16, 32, 64)

# llvmlite and numba's code generation declare no types.
Value = Any

_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
# A product may be fused with the sum if the machine can; nothing else is reordered.
_FUSED = ("contract",)


def make_dot() -> Any:
    """Make the intrinsic ``dot``: one row of the weight times one sample, times its scale plus its bias.

    The compiler would read the sample by gathers. This reads it number by number, with the indices taken out of
    registers that hold several of them, so that there is little more than one read for each nonzero.
    """
    vector = ir.VectorType(_F32, 4)

    @intrinsic
    def dot(_typing, weights, row, source):
        signature = types.float32(weights, row, source)

        def generate(context: Any, builder: Any, signature: Any, args: Sequence[Value]) -> Value:
            entries = _row(context, builder, signature, args)
            (origin,) = _pointers(context, builder, signature, args, (2,))
            sums = [_variable(builder, vector) for _ in range(4)]
            rest = _variable(builder, _F32)
            stored = ir.VectorType(entries.values.type.pointee, vector.count)

            def add_one(k: Value, _lane: int) -> None:
                value = _as_float(builder, builder.load(builder.gep(entries.values, [k])), _F32)
                _multiply_add(builder, value, builder.load(builder.gep(origin, [_index(builder, entries, k)])), rest)

            whole = _multiple(builder, entries.start, entries.stop, len(sums) * vector.count)
            step = ir.Constant(_I64, len(sums) * vector.count)
            with cgutils.for_range_slice(builder, entries.start, whole, step) as (k, _):
                for part, total in enumerate(sums):
                    first = builder.add(k, ir.Constant(_I64, part * vector.count))
                    places = [builder.gep(origin, [index]) for index in _indices(builder, entries, first, vector.count)]
                    value = _load(builder, builder.gep(entries.values, [first]), 0, stored)
                    _multiply_add(builder, _as_float(builder, value, vector), _put_together(builder, places), total)
            _for_each(builder, (whole, entries.stop), 1, add_one)
            total = _tree_sum(builder, [builder.load(part) for part in sums])
            lanes = [builder.extract_element(total, ir.Constant(_I32, lane)) for lane in range(vector.count)]
            total = builder.fadd(_tree_sum(builder, lanes), builder.load(rest))
            return builder.fadd(builder.fmul(total, entries.scale, flags=_FUSED), entries.bias, flags=_FUSED)

        return signature, generate

    return dot


def make_tile(width: int) -> Any:
    """Make the intrinsic ``tile`` of one width, for samples that lie side by side (step = width)."""

    @intrinsic
    def tile(_typing, weights, row, source, out, at):
        signature = types.void(weights, row, source, out, at)

        def generate(context: Any, builder: Any, signature: Any, args: Sequence[Value]) -> Value:
            entries = _row(context, builder, signature, args)
            origin, written = _pointers(context, builder, signature, args, (2, 3))
            _tile(builder, entries, (origin, builder.gep(written, [args[4]])), width, width)
            return context.get_dummy_value()

        return signature, generate

    return tile


def make_line(*, beyond: bool) -> Any:
    """Make the intrinsic ``line``: tiles one after another, for ``size`` positions of an image (step = 1).

    ``beyond``: whether the last tile may be wider than what is left, so that fewer are needed. Without it, what is left
    of size after a multiple of four is not computed.
    """
    *narrower, widest = WIDTHS
    # The rest goes to one tile of 64 if it exceeds the 48 that one of 32 and one of 16 take.
    slack = 15 if beyond else 0

    @intrinsic
    def line(_typing, weights, row, source, base, out, at, size):
        signature = types.void(weights, row, source, base, out, at, size)

        def generate(context: Any, builder: Any, signature: Any, args: Sequence[Value]) -> Value:
            entries, size = _row(context, builder, signature, args), args[6]
            read, written = _pointers(context, builder, signature, args, (2, 4))
            origin, target = builder.gep(read, [args[3]]), builder.gep(written, [args[5]])

            def sum_at(place: Value, width: int) -> None:
                _tile(builder, entries, (builder.gep(origin, [place]), builder.gep(target, [place])), width, 1)

            whole = builder.sdiv(builder.add(size, ir.Constant(_I64, slack)), ir.Constant(_I64, widest))
            with cgutils.for_range(builder, whole) as loop:
                sum_at(builder.mul(loop.index, ir.Constant(_I64, widest)), widest)
            done = cgutils.alloca_once_value(builder, builder.mul(whole, ir.Constant(_I64, widest)))
            for width, next_narrower in zip(reversed(narrower), (*reversed(narrower[:-1]), 0), strict=True):
                place = builder.load(done)
                enough = ir.Constant(_I64, next_narrower + 1 if beyond else width)
                with builder.if_then(builder.icmp_signed(">=", builder.sub(size, place), enough)):
                    sum_at(place, width)
                    builder.store(builder.add(place, ir.Constant(_I64, width)), done)
            return context.get_dummy_value()

        return signature, generate

    return line


def make_transpose(width: int) -> Any:
    """Make the intrinsic ``transpose`` of squares of one width, a power of two.

    Line i is read at ``at + min(i, last) * pitch`` and column j written at ``out_at + min(j, out_last) * out_pitch``: a
    short batch repeats its last sample, and on the way back the repetitions overwrite that sample itself.
    """
    vector = ir.VectorType(_F32, width)
    # Interleaving the first half of the lines with the second, log2(width) times, transposes.
    halves = [[lane // 2 + lane % 2 * width + half * (width // 2) for lane in range(width)] for half in (0, 1)]

    @intrinsic
    def transpose(_typing, source, at, pitch, last, out, out_at, out_pitch, out_last):
        signature = types.void(source, at, pitch, last, out, out_at, out_pitch, out_last)

        def generate(context: Any, builder: Any, signature: Any, args: Sequence[Value]) -> Value:
            read, written = _pointers(context, builder, signature, args, (0, 4))

            def line(pointer: Value, number: int, at: Value, pitch: Value, last: Value) -> Value:
                fixed = ir.Constant(_I64, number)
                held = builder.select(builder.icmp_signed("<", fixed, last), fixed, last)
                return builder.gep(pointer, [builder.add(at, builder.mul(held, pitch))])

            lines = [_load(builder, line(read, i, *args[1:4]), 0, vector) for i in range(width)]
            for _ in range(width.bit_length() - 1):
                pairs = zip(lines[: width // 2], lines[width // 2 :], strict=True)
                lines = [builder.shuffle_vector(*pair, _mask(lanes)) for pair in pairs for lanes in halves]
            for j, column in enumerate(lines):
                builder.store(column, _vector_at(builder, line(written, j, *args[5:8]), 0, vector), align=4)
            return context.get_dummy_value()

        return signature, generate

    return transpose


@dataclass(frozen=True)
class _Row:
    """One row of a layer's weights: where its values and indices are, and what is done with their sum."""

    values: Value
    indices: Value
    signed: bool
    start: Value
    stop: Value
    scale: Value
    bias: Value


def _row(context: Any, builder: Any, signature: Any, args: Sequence[Value]) -> _Row:
    """Return the row given by the second argument, of the weights given by the first."""
    fields = [
        context.make_array(kind)(context, builder, builder.extract_value(args[0], at)).data
        for at, kind in enumerate(signature.args[0].types[:5])
    ]
    values, indices, starts, scale, bias = fields
    start, scale, bias = (builder.load(builder.gep(field, [args[1]])) for field in (starts, scale, bias))
    stop = builder.load(builder.gep(starts, [builder.add(args[1], ir.Constant(_I64, 1))]))
    return _Row(values, indices, signature.args[0].types[1].dtype.signed, start, stop, scale, bias)


def _tile(builder: Any, entries: _Row, where: tuple[Value, Value], width: int, step: int) -> None:
    """Sum the row for ``width`` outputs; where: what is read for the first, and where it is written.

    Two or four nonzeros at a time are accumulated separately, to hide the latency of the adder.
    """
    origin, target = where
    vector = ir.VectorType(_F32, min(width, LANES))
    parts = range(0, width, vector.count)
    sums = [[_variable(builder, vector) for _ in parts] for _ in range(2 if width > LANES else 4)]

    def add(k: Value, lane: int) -> None:
        value = _spread(builder, _as_float(builder, builder.load(builder.gep(entries.values, [k])), _F32), vector)
        place = builder.gep(origin, [builder.mul(_index(builder, entries, k), ir.Constant(_I64, step))])
        for part, total in zip(parts, sums[lane], strict=True):
            _multiply_add(builder, value, _load(builder, place, part, vector), total)

    _for_each(builder, (entries.start, entries.stop), len(sums), add)
    scale, bias = (_spread(builder, value, vector) for value in (entries.scale, entries.bias))
    for part, *totals in zip(parts, *sums, strict=True):
        total = _tree_sum(builder, [builder.load(total) for total in totals])
        scaled = builder.fadd(builder.fmul(total, scale, flags=_FUSED), bias, flags=_FUSED)
        builder.store(scaled, _vector_at(builder, target, part, vector), align=4)


def _index(builder: Any, entries: _Row, k: Value) -> Value:
    """Return the k-th index, as wide as an address."""
    value = builder.load(builder.gep(entries.indices, [k]))
    if value.type == _I64:
        return value
    return builder.sext(value, _I64) if entries.signed else builder.zext(value, _I64)


def _indices(builder: Any, entries: _Row, first: Value, count: int) -> list[Value]:
    """Return ``count`` neighbouring indices, as wide as addresses, read eight bytes at a time (little-endian)."""
    bits, start = entries.indices.type.pointee.width, builder.gep(entries.indices, [first])
    words = [builder.load(_vector_at(builder, start, at, _I64), align=bits // 8) for at in range(0, count, 64 // bits)]
    # No index is negative, so what is above it need not be its sign.
    return [
        builder.and_(builder.lshr(word, ir.Constant(_I64, shift)), ir.Constant(_I64, (1 << bits) - 1))
        for word in words
        for shift in range(0, 64, bits)
    ]


def _put_together(builder: Any, places: Sequence[Value]) -> Value:
    """Return a vector of the floats at these places."""
    vector = ir.Constant(ir.VectorType(_F32, len(places)), ir.Undefined)
    for lane, place in enumerate(places):
        vector = builder.insert_element(vector, builder.load(place), ir.Constant(_I32, lane))
    return vector


def _mask(lanes: Sequence[int]) -> Value:
    return ir.Constant(ir.VectorType(_I32, len(lanes)), list(lanes))


def _pointers(context: Any, builder: Any, signature: Any, args: Sequence[Value], which: Sequence[int]) -> list[Value]:
    return [context.make_array(signature.args[at])(context, builder, args[at]).data for at in which]


def _variable(builder: Any, kind: Any) -> Value:
    zero = [0.0] * kind.count if isinstance(kind, ir.VectorType) else 0.0
    return cgutils.alloca_once_value(builder, ir.Constant(kind, zero))


def _for_each(builder: Any, bounds: Sequence[Value], unroll: int, body: Callable[[Value, int], None]) -> None:
    """Call body with every index between the bounds, ``unroll`` of them per loop iteration."""
    start, stop = bounds
    whole = _multiple(builder, start, stop, unroll)
    with cgutils.for_range_slice(builder, start, whole, ir.Constant(_I64, unroll)) as (k, _):
        for lane in range(unroll):
            body(builder.add(k, ir.Constant(_I64, lane)), lane)
    if unroll > 1:
        with cgutils.for_range_slice(builder, whole, stop, ir.Constant(_I64, 1)) as (k, _):
            body(k, 0)


def _multiple(builder: Any, start: Value, stop: Value, size: int) -> Value:
    """Return where the last whole iteration of ``size`` ends."""
    return builder.sub(stop, builder.srem(builder.sub(stop, start), ir.Constant(_I64, size)))


def _as_float(builder: Any, value: Value, kind: Any) -> Value:
    return value if value.type == kind else builder.sitofp(value, kind)


def _spread(builder: Any, value: Value, vector: Any) -> Value:
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, undefined, _mask([0] * vector.count))


def _vector_at(builder: Any, pointer: Value, offset: int, vector: Any) -> Value:
    return builder.bitcast(builder.gep(pointer, [ir.Constant(_I64, offset)]), vector.as_pointer())


def _load(builder: Any, pointer: Value, offset: int, vector: Any) -> Value:
    size = vector.element.width // 8 if isinstance(vector.element, ir.IntType) else 4
    return builder.load(_vector_at(builder, pointer, offset, vector), align=size)


def _multiply_add(builder: Any, value: Value, x: Value, total: Value) -> None:
    builder.store(builder.fadd(builder.fmul(value, x, flags=_FUSED), builder.load(total), flags=_FUSED), total)


def _tree_sum(builder: Any, values: Sequence[Value]) -> Value:
    if len(values) == 1:
        return values[0]
    half = len(values) // 2
    return builder.fadd(_tree_sum(builder, values[:half]), _tree_sum(builder, values[half:]))
