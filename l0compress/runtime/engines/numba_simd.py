"""The inner loops of the numba engine, written in vectors: a compiler left alone keeps the sums in memory.

``tile`` sums one row of the weight for ``width`` neighbouring outputs, all of them in registers::

    out[at + t] = factor * (sum over k from start to stop of values[k] * source[base + indices[k] * step + t]) + addend

A product with a batch (the batch side by side, step = width) and a convolution without im2col (indices are offsets into
a padded image, step = 1) are both this sum. ``dot`` is the sum for a single output, with step = 1; it returns it.
``transpose`` turns a square of ``width`` by ``width`` numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

LANES = 16
DOT_LANES = 8

# llvmlite and numba's code generation declare no types.
Value = Any

_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
# A product may be fused with the sum where the machine can; nothing else is reordered.
_FUSED = ("contract",)


def make_tile(width: int, step: int, unroll: int) -> Any:
    """The intrinsic ``tile`` of one width; ``unroll`` nonzeros are summed apart, to hide the latency of the adder."""
    vector = ir.VectorType(_F32, min(width, LANES))

    @intrinsic
    def tile(_typing, values, indices, start, stop, source, base, factor, addend, out, at):
        signature = types.void(values, indices, start, stop, source, base, factor, addend, out, at)

        def generate(context: Any, builder: Any, signature: Any, args: Sequence[Value]) -> Value:
            weight, index, read, written = _pointers(context, builder, signature, args, (0, 1, 4, 8))
            signed = signature.args[1].dtype.signed
            origin = builder.gep(read, [args[5]])
            parts = range(0, width, vector.count)
            sums = [[_variable(builder, vector) for _ in parts] for _ in range(unroll)]

            def add(k: Value, lane: int) -> None:
                value = _spread(builder, _as_float(builder, builder.load(builder.gep(weight, [k])), _F32), vector)
                offset = _as_int64(builder, builder.load(builder.gep(index, [k])), signed)
                place = builder.gep(origin, [builder.mul(offset, ir.Constant(_I64, step))])
                for part, total in zip(parts, sums[lane], strict=True):
                    _multiply_add(builder, value, _load(builder, place, part, vector), total)

            _for_each(builder, args[2:4], unroll, add)
            target = builder.gep(written, [args[9]])
            factor, addend = (_spread(builder, value, vector) for value in args[6:8])
            for part, *totals in zip(parts, *sums, strict=True):
                total = _tree_sum(builder, [builder.load(total) for total in totals])
                scaled = builder.fadd(builder.fmul(total, factor, flags=_FUSED), addend, flags=_FUSED)
                builder.store(scaled, _vector_at(builder, target, part, vector), align=4)
            return context.get_dummy_value()

        return signature, generate

    return tile


def make_dot(vectors: int) -> Any:
    """The intrinsic ``dot``, ``vectors`` times eight nonzeros at once."""
    vector = ir.VectorType(_F32, DOT_LANES)

    @intrinsic
    def dot(_typing, values, indices, start, stop, source):
        signature = types.float32(values, indices, start, stop, source)

        def generate(context: Any, builder: Any, signature: Any, args: Sequence[Value]) -> Value:
            weight, index, read = _pointers(context, builder, signature, args, (0, 1, 4))
            signed = signature.args[1].dtype.signed
            sums = [_variable(builder, vector) for _ in range(vectors)]
            rest = _variable(builder, _F32)

            def read_at(k: Value) -> Value:
                return builder.load(
                    builder.gep(read, [_as_int64(builder, builder.load(builder.gep(index, [k])), signed)])
                )

            def add_vectors(k: Value, _: int) -> None:
                for part, total in enumerate(sums):
                    first = builder.add(k, ir.Constant(_I64, part * DOT_LANES))
                    gathered = _gathered(builder, read_at, first, vector)
                    stored = ir.VectorType(weight.type.pointee, DOT_LANES)
                    value = _as_float(builder, _load(builder, builder.gep(weight, [first]), 0, stored), vector)
                    _multiply_add(builder, value, gathered, total)

            def add_one(k: Value, _: int) -> None:
                value = _as_float(builder, builder.load(builder.gep(weight, [k])), _F32)
                _multiply_add(builder, value, read_at(k), rest)

            start, stop = args[2:4]
            whole = _multiple(builder, start, stop, vectors * DOT_LANES)
            with cgutils.for_range_slice(builder, start, whole, ir.Constant(_I64, vectors * DOT_LANES)) as (k, _):
                add_vectors(k, 0)
            _for_each(builder, (whole, stop), 1, add_one)
            total = _tree_sum(builder, [builder.load(part) for part in sums])
            lanes = [builder.extract_element(total, ir.Constant(_I32, lane)) for lane in range(DOT_LANES)]
            return builder.fadd(_tree_sum(builder, lanes), builder.load(rest))

        return signature, generate

    return dot


def make_transpose(width: int) -> Any:
    """The intrinsic ``transpose`` of squares of one width, a power of two.

    Line i is read at ``at + min(i, last) * pitch`` and column j written at ``out_at + min(j, out_last) * out_pitch``: a
    batch that is short repeats its last sample, and on the way back the repetitions fall on the sample itself.
    """
    vector = ir.VectorType(_F32, width)
    # Interleaving the first half of the lines with the second, as often as the width has bits, transposes.
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


def make_copy() -> Any:
    """The intrinsic ``copy``: ``out[out_at + i] = source[at + i]`` for i below count, without looking at bounds."""

    @intrinsic
    def copy(_typing, source, at, out, out_at, count):
        signature = types.void(source, at, out, out_at, count)

        def generate(context: Any, builder: Any, signature: Any, args: Sequence[Value]) -> Value:
            read, written = _pointers(context, builder, signature, args, (0, 2))
            target, origin = builder.gep(written, [args[3]]), builder.gep(read, [args[1]])
            cgutils.raw_memcpy(builder, target, origin, args[4], 4)
            return context.get_dummy_value()

        return signature, generate

    return copy


def _mask(lanes: Sequence[int]) -> Value:
    return ir.Constant(ir.VectorType(_I32, len(lanes)), list(lanes))


def _pointers(context: Any, builder: Any, signature: Any, args: Sequence[Value], which: Sequence[int]) -> list[Value]:
    return [context.make_array(signature.args[at])(context, builder, args[at]).data for at in which]


def _variable(builder: Any, kind: Any) -> Value:
    zero = [0.0] * kind.count if isinstance(kind, ir.VectorType) else 0.0
    return cgutils.alloca_once_value(builder, ir.Constant(kind, zero))


def _for_each(builder: Any, bounds: Sequence[Value], unroll: int, body: Callable[[Value, int], None]) -> None:
    """Call body with every index between the bounds, ``unroll`` of them in one turn of the loop."""
    start, stop = bounds
    whole = _multiple(builder, start, stop, unroll)
    with cgutils.for_range_slice(builder, start, whole, ir.Constant(_I64, unroll)) as (k, _):
        for lane in range(unroll):
            body(builder.add(k, ir.Constant(_I64, lane)), lane)
    if unroll > 1:
        with cgutils.for_range_slice(builder, whole, stop, ir.Constant(_I64, 1)) as (k, _):
            body(k, 0)


def _multiple(builder: Any, start: Value, stop: Value, size: int) -> Value:
    """Where the last whole turn of ``size`` ends."""
    return builder.sub(stop, builder.srem(builder.sub(stop, start), ir.Constant(_I64, size)))


def _as_float(builder: Any, value: Value, kind: Any) -> Value:
    return value if value.type == kind else builder.sitofp(value, kind)


def _as_int64(builder: Any, value: Value, signed: bool) -> Value:
    if value.type == _I64:
        return value
    return builder.sext(value, _I64) if signed else builder.zext(value, _I64)


def _gathered(builder: Any, read_at: Callable[[Value], Value], first: Value, vector: Any) -> Value:
    """What ``read_at`` gives for neighbouring numbers; the processor's own gather is slower."""
    gathered = ir.Constant(vector, ir.Undefined)
    for lane in range(vector.count):
        x = read_at(builder.add(first, ir.Constant(_I64, lane)))
        gathered = builder.insert_element(gathered, x, ir.Constant(_I32, lane))
    return gathered


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
