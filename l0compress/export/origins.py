"""Which parameters the constants of an ONNX graph came from, where the converter lost their names.

The converter computes whatever depends only on constants, such as the transposed weight of a linear layer without bias.
The name of the layer is all that tells a reader which one it was.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from l0compress.graph.capture import CapturedGraph

Array = NDArray[Any]
# How many numbers to compare before comparing all of them: many layers share a width.
FIRST = 64


def note_origins_(model: ir.Model, graph: CapturedGraph) -> None:
    """Record in every matrix that is a transposed or reshaped parameter which parameter it is.

    For the weights of a recurrent layer's two directions, which are one constant, it is the first.
    """
    by_size: dict[int, list[tuple[str, Array]]] = defaultdict(list)
    for name, parameter in graph.module().named_parameters():
        if parameter.dim() > 1 and parameter.dtype is torch.float32:
            by_size[parameter.numel()].append((name, parameter.detach().numpy(force=True)))
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if "." in name or tensor is None or len(tensor.shape) < 2 or tensor.dtype != ir.DataType.FLOAT:
            continue
        array = tensor.numpy()
        for part in (array, array[:1]):
            known = by_size.get(part.size, ())
            origin = next((origin for origin, parameter in known if _is_made_of(part, parameter)), None)
            if origin is not None:
                tensor.doc_string = origin
                break


def _is_made_of(array: Array, parameter: Array) -> bool:
    """Return whether an array is a parameter with other dimensions of size 1, or with its matrices transposed.

    Example:
        >>> _is_made_of(np.ones((1, 3, 2)), np.ones((2, 3)))
        True
    """
    shape, whole = [[size for size in found.shape if size > 1] for found in (array, parameter)]
    array, parameter = array.reshape(shape), parameter.reshape(whole)
    turned = parameter.swapaxes(-1, -2) if parameter.ndim > 1 else parameter
    return any(
        found.shape == array.shape
        and np.array_equal(found[:1].ravel()[:FIRST], array[:1].ravel()[:FIRST])
        and np.array_equal(found, array)
        for found in (parameter, turned)
    )
