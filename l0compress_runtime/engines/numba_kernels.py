"""The compiled loops of the numba engine. Importing this module imports numba; calling a kernel compiles it once.

Compiled code is cached on disk, next to this file or in the user's cache folder, for as long as this file does not
change: if you edit numba_simd or numba_vector_math, touch it as well. Every kernel releases the interpreter's lock.
None checks indices: layers are checked on construction, inputs before a kernel is called.

Engines pass plain tuples: numba spends a microsecond per call on a named tuple, and a tenth of that on a plain
one. A kernel restores the names. A *part* is what one thread computes: a range of the batch and a range of
the rows of the weight, (begin, end, first row, last row).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from llvmlite.binding import get_host_cpu_name

from l0compress_runtime.engines.numba_simd import LANES, WIDTHS, make_dot, make_line, make_tile, make_transpose
from l0compress_runtime.engines.numba_vector_math import NUMBERS as NUMBERS
from l0compress_runtime.engines.numba_vector_math import activate_, compiled, inlined, reordered

WIDEST = WIDTHS[-1]
ROWS = 64

_batch_4, _batch_8, _batch_16, _batch_32, _batch_64 = (make_tile(width) for width in WIDTHS)
_line, _line_beyond = make_line(beyond=False), make_line(beyond=True)
_transpose_4 = make_transpose(4)
_transpose_8 = make_transpose(8)
_transpose_16 = make_transpose(16)


class Weights(NamedTuple):
    """A layer's weight: CSR with a factor and a bias per row, and the number of its activation."""

    values: np.ndarray
    indices: np.ndarray
    starts: np.ndarray
    scale: np.ndarray
    bias: np.ndarray
    activation: int


class Window(NamedTuple):
    """How a convolution reads an image: in bands of output, each from a packed copy (channels, phases, rows, pitch).

    A convolution with a stride reads each phase of the image (every stride-th row and column) as an image of its own.
    """

    phases: np.ndarray  # (phases, 2): first row and column of each
    rows: int
    pitch: int
    stride: tuple[int, int]
    before: tuple[int, int]  # zeros above and to the left
    band: tuple[int, int]  # rows and columns of output at a time
    bands: tuple[int, int]  # how many of them cover the output


@reordered
def plain_dot(weights, row, source):
    """Return the sum over the row's k of values[k] * source[indices[k]], times its scale plus its bias."""
    total = np.float32(0)
    for k in range(weights.starts[row], weights.starts[row + 1]):
        # Unsigned, or numba would look for negative indices, which count from the end.
        total += np.float32(weights.values[np.uint64(k)]) * source[np.uint64(weights.indices[np.uint64(k)])]
    return total * weights.scale[row] + weights.bias[row]


# The compiler turns the plain loop into gathers, which AMD's processors take apart into many small operations.
dot = make_dot() if get_host_cpu_name().startswith("znver") else plain_dot


@reordered
def copy_(source, at, out, out_at, count):
    """Set ``out[out_at + i] = source[at + i]`` for i below count."""
    for i in range(count):
        out[np.uint64(out_at + i)] = source[np.uint64(at + i)]


@inlined
def tile_width(left: int, widest: int) -> int:
    """Return the width of the next tile for this many remaining outputs, wasting as few as possible."""
    width = 4
    while width < widest and left > (width if width < 32 else 48):
        width *= 2
    return width


@compiled
def vector_product(weights, x, part, y):
    """Compute y[i, row] for a few samples, one at a time."""
    held, (begin, end, first, last) = Weights(*weights), part
    for i in range(begin, end):
        sample, line = x[i], y[i, first:last]
        for row in range(first, last):
            line[row - first] = dot(held, row, sample)
        activate_(line, held.activation)


@compiled
def pack_(x, begin, count, width, packed):
    """Set packed[j * width + i] = x[begin + i, j]; past the end of the batch its last sample is repeated."""
    columns = x.shape[1]
    source, at, last = x.reshape(-1), begin * columns, count - 1
    if columns < min(width, LANES):
        for j in range(columns):
            for i in range(width):
                packed[j * width + i] = x[begin + min(i, last), j]
        return
    for square in range(0, columns, min(width, LANES)):
        j = min(square, columns - min(width, LANES))
        if width == 4:
            _transpose_4(source, at + j, columns, last, packed, j * width, width, width)
        elif width == 8:
            _transpose_8(source, at + j, columns, last, packed, j * width, width, width)
        else:
            for i in range(0, min(width, count), LANES):
                first = at + i * columns + j
                _transpose_16(source, first, columns, last - i, packed, j * width + i, width, width)


@compiled
def unpack_(sums, width, y, begin, count, span):
    """Set y[begin + i, row + r] = sums[r * width + i] for r below size, where span is (row, size)."""
    (row, size), rows = span, y.shape[1]
    target, at, last = y.reshape(-1), begin * rows + row, count - 1
    if size < min(width, LANES):
        for i in range(count):
            for r in range(size):
                y[begin + i, row + r] = sums[r * width + i]
        return
    for square in range(0, size, min(width, LANES)):
        r = min(square, size - min(width, LANES))
        if width == 4:
            _transpose_4(sums, r * width, width, width, target, at + r, rows, last)
        elif width == 8:
            _transpose_8(sums, r * width, width, width, target, at + r, rows, last)
        else:
            for i in range(0, count, LANES):
                _transpose_16(sums, r * width + i, width, width, target, at + i * rows + r, rows, last - i)


@compiled
def batch_sums(weights, first, last, width, packed, sums):
    """Sum rows first to last for ``width`` samples that lie side by side in packed, row by row into sums."""
    at = 0
    for row in range(first, last):
        if width == 64:
            _batch_64(weights, row, packed, sums, at)
        elif width == 32:
            _batch_32(weights, row, packed, sums, at)
        elif width == 16:
            _batch_16(weights, row, packed, sums, at)
        elif width == 8:
            _batch_8(weights, row, packed, sums, at)
        else:
            _batch_4(weights, row, packed, sums, at)
        at += width
    if weights.activation:
        activate_(sums[:at], weights.activation)


@compiled
def batch_product(weights, x, part, kept, memory, y):
    """Compute y = activation(x @ W.T * scale + bias) in the part's rectangle.

    memory is scratch for packed samples and sums; kept says that the part's samples are already packed there.
    """
    held, (begin, end, row, last_row) = Weights(*weights), part
    packed, sums = memory
    widest = min(WIDEST, packed.size // max(x.shape[1], 1))
    while begin < end:
        width = tile_width(end - begin, widest)
        count = min(width, end - begin)
        if not kept:
            pack_(x, begin, count, width, packed)
        for first in range(row, last_row, ROWS):
            last = min(first + ROWS, last_row)
            batch_sums(held, first, last, width, packed, sums)
            unpack_(sums, width, y, begin, count, (first, last - first))
        begin += count


@compiled
def pointwise(weights, x, part, span, sums, y):
    """Convolve with a kernel that reads every position once: x (n, channels, places), y (n, rows, places).

    A part counts spans of places, image by image. An image has at least four places; what is left of a span after
    whole tiles is computed by a tile that starts earlier, and only its new places are kept.
    """
    held, (first_unit, last_unit, first, last) = Weights(*weights), part
    channels, places, rows = x.shape[1], x.shape[2], y.shape[1]
    spans = (places + span - 1) // span
    source, out = x.reshape(-1), y.reshape(-1)
    for unit in range(first_unit, last_unit):
        image, begin = unit // spans, unit % spans * span
        size = min(span, places - begin)
        whole = size // 4 * 4
        read = image * channels * places + begin
        for row in range(first, last):
            written = (image * rows + row) * places + begin
            _line(held, row, source, read, out, written, whole)
            if whole < size:
                _line(held, row, source, read + size - 4, sums, 0, 4)
                for place in range(whole, size):
                    out[written + place] = sums[place - size + 4]
            if held.activation:
                activate_(out[written : written + size], held.activation)


@compiled
def fill_(image, window, top, left, packed):
    """Fill packed with the part of the padded image, phase by phase, read by a band of output from (top, left) on."""
    channels, height, width = image.shape
    down, across = window.stride
    pitch, phases = window.pitch, window.phases
    source = image.reshape(-1)
    packed[: channels * len(phases) * window.rows * pitch] = 0
    for channel in range(channels):
        for phase in range(len(phases)):
            column = left * across + phases[phase, 1] - window.before[1]
            begin = min(max(0, -(column // across)), pitch)
            end = min(max(begin, (width - 1 - column) // across + 1), pitch)
            for i in range(window.rows):
                row = (top + i) * down + phases[phase, 0] - window.before[0]
                if row < 0 or row >= height:
                    continue
                read = (channel * height + row) * width + column
                written = ((channel * len(phases) + phase) * window.rows + i) * pitch
                if across == 1:
                    copy_(source, read + begin, packed, written + begin, end - begin)
                else:
                    for j in range(begin, end):
                        packed[written + j] = source[read + j * across]


@compiled
def convolve(weights, x, part, window, memory, y):
    """Compute y (n, rows, height, width) from x (n, channels, height, width); a part counts bands, image by image.

    memory is scratch for the packed image and sums.
    """
    held, how, (first_unit, last_unit, first, last) = Weights(*weights), Window(*window), part
    packed, sums = memory
    rows, height, width = y.shape[1:]
    bands = how.bands[0] * how.bands[1]
    out = y.reshape(-1)
    for unit in range(first_unit, last_unit):
        image, band = unit // bands, unit % bands
        top, left = band // how.bands[1] * how.band[0], band % how.bands[1] * how.band[1]
        fill_(x[image], how, top, left, packed)
        lines, columns = min(how.band[0], height - top), min(how.band[1], width - left)
        size = (lines - 1) * how.pitch + columns
        for row in range(first, last):
            _line_beyond(held, row, packed, 0, sums, 0, size)
            if held.activation:
                activate_(sums[:size], held.activation)
            for i in range(lines):
                read, written = i * how.pitch, ((image * rows + row) * height + top + i) * width + left
                copy_(sums, read, out, written, columns)


@compiled
def gather(weights, rows, out):
    """Set out[i] = row rows[i] of the weight, dense."""
    held = Weights(*weights)
    for i in range(len(rows)):
        line = out[i]
        line[:] = 0
        row = rows[i]
        for k in range(held.starts[row], held.starts[row + 1]):
            line[held.indices[k]] = held.values[k] * held.scale[row]
