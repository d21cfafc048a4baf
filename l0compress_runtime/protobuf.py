"""ONNX models as bytes: find what a model must not contain, and add weights, without the onnx package.

A serialized message is a sequence of fields, and two concatenated messages are read as one in which
repeated fields are joined. So weights are added to a model by appending them to it.

Source: the protobuf encoding; field numbers from onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l0compress_runtime.archive import FormatError

Array = NDArray[Any]

DATA_TYPES = {
    "float32": 1,
    "uint8": 2,
    "int8": 3,
    "uint16": 4,
    "int16": 5,
    "int32": 6,
    "int64": 7,
    "bool": 9,
    "float16": 10,
    "float64": 11,
    "uint32": 12,
    "uint64": 13,
}
# The operators of ONNX itself. Any others may bring code, or read files.
DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
MOST_NESTED = 32

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_OPERATOR = 4
_DOMAIN_OF = {"node": 7, "opset": 1, "function": 10}
# Which message a field of a message holds, for fields below which tensors and operators can be found.
_BELOW = {
    "model": {7: "graph", 8: "opset", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "function": {7: "node", 9: "opset", 11: "attribute"},
    "tensor": {},
    "opset": {},
}


def check_model(model: bytes) -> None:
    """Check that a model is self-contained: no data in other files, no operators but those of ONNX.

    Raises:
        FormatError: it is not a model, or contains such a thing.
    """
    _check(memoryview(model), "model", 0)


def operators_of(model: bytes) -> set[str]:
    """Return the operator types of a checked model, including those of graphs within nodes.

    Example:
        >>> operators_of(_field(7, _field(1, _field(4, b"LSTM"))))
        {'LSTM'}
    """
    return set(_operators(memoryview(model), "model"))


def with_initializers(model: bytes, tensors: Mapping[str, Array]) -> bytes:
    """Return the model with tensors added to its initializers.

    Example:
        >>> with_initializers(b"", {"w": np.zeros(2, np.uint8)})
        b':\\r*\\x0b\\x08\\x02\\x10\\x02B\\x01wJ\\x02\\x00\\x00'
    """
    added = b"".join(_field(5, _tensor(name, array)) for name, array in tensors.items())
    return model + _field(7, added) if tensors else model


def _check(message: memoryview, kind: str, depth: int) -> None:
    if depth > MOST_NESTED:
        raise FormatError("nests graphs too deeply")
    for number, wire, value in _fields(message):
        if kind == "model" and number == 20:
            raise FormatError("holds training information")
        if kind == "tensor" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0)):
            raise FormatError("refers to data in another file")
        if number == _DOMAIN_OF.get(kind) and bytes(_message(wire, value)).decode("utf-8", "replace") not in DOMAINS:
            raise FormatError(f"uses operators of {bytes(_message(wire, value))[:80]!r}, which are not ONNX's own")
        below = _BELOW[kind].get(number)
        if below is not None:
            _check(_message(wire, value), below, depth + 1)


def _operators(message: memoryview, kind: str) -> Iterator[str]:
    for number, wire, value in _fields(message):
        if kind == "node" and number == _OPERATOR:
            yield bytes(_message(wire, value)).decode("utf-8", "replace")
        below = _BELOW[kind].get(number)
        if below is not None and below not in ("tensor", "sparse"):
            yield from _operators(_message(wire, value), below)


def _message(wire: int, value: int | memoryview) -> memoryview:
    if wire != _BYTES or isinstance(value, int):
        raise FormatError("is not an ONNX model: a message is missing")
    return value


def _fields(message: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield number, wire, value
            continue
        if wire == _BYTES:
            size, at = _varint(message, at)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise FormatError(f"is not an ONNX model: wire type {wire}")
        if size > len(message) - at:
            raise FormatError("is not an ONNX model: it ends too early")
        yield number, wire, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise FormatError("is not an ONNX model: a number does not end")
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _encoded(number << 3) + _encoded(value)
    return _encoded(number << 3 | _BYTES) + _encoded(len(value)) + value


def _tensor(name: str, array: Array) -> bytes:
    dims = b"".join(_field(1, int(size)) for size in array.shape)
    raw = np.ascontiguousarray(array).tobytes()
    return dims + _field(2, DATA_TYPES[str(array.dtype)]) + _field(8, name.encode()) + _field(9, raw)
