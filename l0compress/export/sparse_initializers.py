"""Store ONNX initializers without their zeros, in coordinate form.

requires: an ``.onnx`` file with weights that are mostly exact zeros.
ensures:  the same model in fewer bytes. ONNX Runtime makes these weights dense again when it loads the file, so the
          model is not faster and takes no less memory; a bundle is what runs on sparse weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from l0compress.errors import InputError
from l0compress.export.files import has_external_data

_FEWEST_ELEMENTS = 64


@dataclass(frozen=True)
class SparseWeights:
    """The result for a file: names of the sparsely stored weights, and bytes before and after."""

    names: tuple[str, ...]
    bytes_before: int
    bytes_after: int


def store_sparsely_(path: str | Path) -> SparseWeights:
    """Rewrite an ``.onnx`` file so that weights that are smaller in coordinate form are stored in it.

    A nonzero takes its value and an eight-byte index, so float32 weights gain below a third of nonzeros.

    Raises:
        InputError: the weights are in a file beside the model.

    Source: ``SparseTensorProto`` in the ONNX specification.

    Example:
        >>> import tempfile, torch, l0compress as l0
        >>> linear = torch.nn.Linear(64, 64)
        >>> with torch.no_grad():
        ...     _ = linear.weight.mul_(torch.arange(64) % 16 == 0)
        >>> exported = l0.export_onnx(l0.capture(linear, (torch.randn(2, 64),)), Path(tempfile.mkdtemp(), "model.onnx"))
        >>> stored = store_sparsely_(exported.path)
        >>> stored.names, stored.bytes_after < 0.3 * stored.bytes_before
        (('weight',), True)
    """
    path = Path(path)
    if has_external_data(path):
        raise InputError(
            f"The weights of {path} are in a separate file, where none can be sparse.",
            fix="Export a bundle, which stores no zeros.",
        )
    before = path.stat().st_size
    model = onnx.load(path)
    kept: list[onnx.TensorProto] = []
    sparse: list[onnx.SparseTensorProto] = []
    for tensor in model.graph.initializer:
        smaller = _coordinates(tensor)
        if smaller is None:
            kept.append(tensor)
        else:
            sparse.append(smaller)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    model.graph.sparse_initializer.extend(sparse)
    content = model.SerializeToString(deterministic=True)
    path.write_bytes(content)
    return SparseWeights(tuple(tensor.values.name for tensor in sparse), before, len(content))


def _coordinates(tensor: onnx.TensorProto) -> onnx.SparseTensorProto | None:
    """Return the tensor in coordinate form with indices into its flattened elements, if that takes fewer bytes."""
    dense = numpy_helper.to_array(tensor)
    if dense.size < _FEWEST_ELEMENTS or dense.dtype.kind != "f":
        return None
    (places,) = np.nonzero(dense.ravel())
    if len(places) * (dense.itemsize + places.itemsize) >= dense.nbytes or not len(places):
        return None
    values = numpy_helper.from_array(dense.ravel()[places], tensor.name)
    indices = numpy_helper.from_array(places.astype(np.int64), f"{tensor.name}_indices")
    return onnx.helper.make_sparse_tensor(values, indices, list(dense.shape))
