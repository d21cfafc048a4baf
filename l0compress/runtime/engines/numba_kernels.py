"""The compiled loops of the numba engine. Importing this module imports numba; calling a kernel compiles it once.

Compiled code is kept on disk beside this file, or in the user's cache folder. Every kernel lets go of the interpreter's
lock. None looks at indices: layers are checked when they are made, inputs before a kernel is called.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from l0compress.runtime.engines.numba_simd import LANES, make_dot, make_tile
from l0compress.runtime.engines.numba_vector_math import NUMBERS, activate_, compiled

__all__ = [
    "LANES",
    "NUMBERS",
    "Part",
    "Weights",
    "Window",
    "batch_product",
    "convolve",
    "gather",
    "pointwise",
    "vector_product",
]

WIDEST = 64
ROWS = 32

_batch_64 = make_tile(64, 64, 2)
_batch_32 = make_tile(32, 32, 2)
_batch_16 = make_tile(16, 16, 4)
_batch_8 = make_tile(8, 8, 4)
_batch_4 = make_tile(4, 4, 4)
_plane_64 = make_tile(64, 1, 2)
_plane_32 = make_tile(32, 1, 2)
_plane_16 = make_tile(16, 1, 4)
_plane_8 = make_tile(8, 1, 4)
_plane_4 = make_tile(4, 1, 4)
_dot = make_dot(2)


class Weights(NamedTuple):
    """A layer's weight: CSR with a factor and a bias a row, and the number of its activation."""

    values: np.ndarray
    indices: np.ndarray
    starts: np.ndarray
    scale: np.ndarray
    bias: np.ndarray
    activation: int


class Part(NamedTuple):
    """What one thread computes: a range of the batch and a range of the rows of the weight."""

    begin: int
    end: int
    row: int
    last_row: int


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


@compiled
def tile_width(left: int, widest: int) -> int:
    """The width of the next tile when so many outputs are left: as few as possible are computed in vain."""
    width = 4
    while width < widest and left > (width if width < 32 else 48):
        width *= 2
    return width


@compiled
def batch_tile(weights, row, width, packed, sums, at):
    """Sums of one row for ``width`` samples that lie side by side in packed."""
    start, stop = np.int64(weights.starts[row]), np.int64(weights.starts[row + 1])
    if width == 64:
        _batch_64(weights.values, weights.indices, start, stop, packed, 0, sums, at)
    elif width == 32:
        _batch_32(weights.values, weights.indices, start, stop, packed, 0, sums, at)
    elif width == 16:
        _batch_16(weights.values, weights.indices, start, stop, packed, 0, sums, at)
    elif width == 8:
        _batch_8(weights.values, weights.indices, start, stop, packed, 0, sums, at)
    else:
        _batch_4(weights.values, weights.indices, start, stop, packed, 0, sums, at)


@compiled
def plane_tile(weights, row, width, source, base, sums, at):
    """Sums of one row for ``width`` neighbouring places of an image."""
    start, stop = np.int64(weights.starts[row]), np.int64(weights.starts[row + 1])
    if width == 64:
        _plane_64(weights.values, weights.indices, start, stop, source, base, sums, at)
    elif width == 32:
        _plane_32(weights.values, weights.indices, start, stop, source, base, sums, at)
    elif width == 16:
        _plane_16(weights.values, weights.indices, start, stop, source, base, sums, at)
    elif width == 8:
        _plane_8(weights.values, weights.indices, start, stop, source, base, sums, at)
    else:
        _plane_4(weights.values, weights.indices, start, stop, source, base, sums, at)


@compiled
def vector_product(weights, x, part, y):
    """y[i, row] for a few samples, one at a time."""
    for i in range(part.begin, part.end):
        sample = x[i]
        line = y[i, part.row : part.last_row]
        for row in range(part.row, part.last_row):
            start, stop = np.int64(weights.starts[row]), np.int64(weights.starts[row + 1])
            total = _dot(weights.values, weights.indices, start, stop, sample)
            line[row - part.row] = total * weights.scale[row] + weights.bias[row]
        activate_(line, weights.activation)


@compiled
def pack_(x, begin, count, width, packed):
    """packed[j * width + i] = x[begin + i, j], by blocks of a cache line; zeros where the batch has ended."""
    columns = x.shape[1]
    for first in range(0, columns, 16):
        last = min(first + 16, columns)
        for i in range(count):
            for j in range(first, last):
                packed[j * width + i] = x[begin + i, j]
        for j in range(first, last):
            for i in range(count, width):
                packed[j * width + i] = 0


@compiled
def batch_product(weights, x, part, packed, sums, y):
    """y = activation(x @ W.T * scale + bias) in the part's rectangle; packed and sums are scratch memory."""
    widest = min(WIDEST, packed.size // max(x.shape[1], 1))
    begin = part.begin
    while begin < part.end:
        width = tile_width(part.end - begin, widest)
        count = min(width, part.end - begin)
        pack_(x, begin, count, width, packed)
        for first in range(part.row, part.last_row, ROWS):
            last = min(first + ROWS, part.last_row)
            for row in range(first, last):
                batch_tile(weights, row, width, packed, sums, (row - first) * width)
            for i in range(count):
                line = y[begin + i, first:last]
                for row in range(first, last):
                    line[row - first] = sums[(row - first) * width + i] * weights.scale[row] + weights.bias[row]
                activate_(line, weights.activation)
        begin += count


@compiled
def finish_(sums, size, weights, row):
    """Factor, bias and activation of one row, in place."""
    scale, bias = weights.scale[row], weights.bias[row]
    line = sums[:size]
    for t in range(size):
        line[t] = line[t] * scale + bias
    activate_(line, weights.activation)


@compiled
def pointwise(weights, x, part, span, sums, y):
    """A convolution that reads every place once: x (n, channels, places), y (n, rows, places).

    A part counts spans of places, image after image. A last tile that would reach beyond the image begins earlier, and
    only its new places are kept.
    """
    places = x.shape[2]
    spans = (places + span - 1) // span
    for unit in range(part.begin, part.end):
        source, out = x[unit // spans].reshape(-1), y[unit // spans]
        begin = unit % spans * span
        end = min(begin + span, places)
        for row in range(part.row, part.last_row):
            place = begin
            while place < end:
                width = tile_width(end - place, WIDEST)
                while width > places:
                    width //= 2
                first = min(place, places - width)
                last = min(first + width, end)
                plane_tile(weights, row, width, source, first, sums, 0)
                finish_(sums, width, weights, row)
                out[row, place:last] = sums[place - first : last - first]
                place = last


@compiled
def fill_(image, window, top, left, packed):
    """The part of the padded image, phase by phase, that a band of output from (top, left) on reads."""
    channels, height, width = image.shape
    down, across = window.stride
    at = 0
    for channel in range(channels):
        for phase in range(len(window.phases)):
            column = left * across + window.phases[phase, 1] - window.before[1]
            begin = min(max(0, -(column // across)), window.pitch)
            end = min(max(begin, (width - 1 - column) // across + 1), window.pitch)
            for i in range(window.rows):
                line = packed[at : at + window.pitch]
                at += window.pitch
                row = (top + i) * down + window.phases[phase, 0] - window.before[0]
                if row < 0 or row >= height:
                    line[:] = 0
                    continue
                line[:begin] = 0
                line[end:] = 0
                read = image[channel, row]
                if across == 1:
                    line[begin:end] = read[column + begin : column + end]
                else:
                    for j in range(begin, end):
                        line[j] = read[column + j * across]


@compiled
def convolve(weights, x, part, window, packed, sums, y):
    """y (n, rows, height, width) from x (n, channels, height, width); a part counts bands, image after image."""
    height, width = y.shape[2], y.shape[3]
    bands = window.bands[0] * window.bands[1]
    for unit in range(part.begin, part.end):
        out = y[unit // bands]
        top = unit % bands // window.bands[1] * window.band[0]
        left = unit % bands % window.bands[1] * window.band[1]
        fill_(x[unit // bands], window, top, left, packed)
        bottom, right = min(top + window.band[0], height), min(left + window.band[1], width)
        size = (bottom - top - 1) * window.pitch + right - left
        for row in range(part.row, part.last_row):
            place = 0
            while place < size:
                tile = tile_width(size - place, WIDEST)
                plane_tile(weights, row, tile, packed, place, sums, place)
                place += tile
            finish_(sums, size, weights, row)
            for i in range(bottom - top):
                out[row, top + i, left:right] = sums[i * window.pitch : i * window.pitch + right - left]


@compiled
def gather(weights, rows, out):
    """out[i] = row rows[i] of the weight, dense."""
    for i in range(len(rows)):
        line = out[i]
        line[:] = 0
        row = rows[i]
        for k in range(weights.starts[row], weights.starts[row + 1]):
            line[weights.indices[k]] = weights.values[k] * weights.scale[row]
