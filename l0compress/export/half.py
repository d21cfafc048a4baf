"""Round float32 to 16 bits: on an ONNX file that has been verified equal.

requires: a float32 ``.onnx`` file.
ensures:  inputs and outputs stay float32; the new file runs and computes approximately what the float one does, or it
          is not written. The source is not changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from l0compress.errors import NOTHING_WRITTEN, InputError, SurgeryError
from l0compress.export.files import has_external_data, staged
from l0compress.export.quantize import check_alike, quiet
from l0compress.export.session import OnnxSession
from l0compress.verification.calls import Call
from l0compress_runtime.sessions import first_line

# A scale, a bias or an axis is not worth a node that casts it.
FEWEST_DIMENSIONS = 2


@dataclass(frozen=True)
class Half:
    """How to round a model to 16 bits.

    Attributes:
        dtype: ``float16`` computes in it, where what runs the file has kernels for it, as GPUs do; ONNX Runtime's CPU
            casts to float32 and back. ``bfloat16`` stores weights in it and computes in float32, since few have
            kernels for it.

    Raises:
        InputError: another dtype.
    """

    dtype: str = "float16"

    def __post_init__(self) -> None:
        if self.dtype not in ("float16", "bfloat16"):
            raise InputError(
                f"Unknown dtype {self.dtype!r} of an ONNX file: expected float16 or bfloat16.",
                fix="",
                assurance=NOTHING_WRITTEN,
            )


def halve_onnx(source: str | Path, path: str | Path, half: Half | None = None, *, sample: Call | None = None) -> Path:
    """Write a 16-bit form of an ONNX file, about half as large.

    Both files are run on one call, and the new one appears only if it computes approximately what the float one does.

    Args:
        source: a float32 ``.onnx`` file.
        path: the file to write.
        half: the dtype; float16 by default.
        sample: what both are compared on; by default noise in the shapes that the file names, if it accepts that.

    Raises:
        SurgeryError: the model cannot be converted, or what comes out does not run.
        NotEqualError: the 16-bit form computes something else, as where values leave the range of float16.
        RunError: the source cannot be read, or the path cannot be written to.

    Source: ``onnxruntime.transformers.float16``.

    Example:
        >>> import tempfile, torch, l0compress as l0
        >>> folder = Path(tempfile.mkdtemp())
        >>> linear = torch.nn.Linear(64, 64)
        >>> exported = l0.export_onnx(l0.capture(linear, (torch.randn(2, 64),)), folder / "float.onnx")
        >>> small = halve_onnx(exported.path, folder / "half.onnx")
        >>> small.stat().st_size < 0.6 * exported.size_bytes
        True
    """
    source, path, half = Path(source), Path(path), Half() if half is None else half
    exact = OnnxSession(source)
    model = onnx.load(source)
    with staged(path) as staging:
        model = _in_float16(model, source) if half.dtype == "float16" else stored_in_bfloat16(model)
        external, data = has_external_data(source), f"{path.name}.data"
        onnx.save_model(model, staging, save_as_external_data=external, location=data if external else None)
        check_alike(exact, staging, sample, kind=half.dtype)
    return path


def _in_float16(model: ModelProto, source: Path) -> ModelProto:
    # Importing it changes sys.path.
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    # Before ONNX Runtime 1.32 the value of such a node stayed float32, though what reads it was told otherwise.
    blocked = [*DEFAULT_OP_BLOCK_LIST, "ConstantOfShape"]
    try:
        with quiet():
            return convert_float_to_float16(model, keep_io_types=True, op_block_list=blocked)
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise SurgeryError(
            f"ONNX Runtime's converter cannot make {source.name} float16: {first_line(error)}.",
            fix="Export it without --dtype, or with --dtype bfloat16.",
        ) from error


def stored_in_bfloat16(model: ModelProto) -> ModelProto:
    """The model with weights of two or more dimensions in bfloat16, each cast back to float32 where it is read.

    What loads the file folds the casts, so that a call takes as long as before.

    >>> weight = numpy_helper.from_array(torch.ones(2, 3).numpy(), "weight")
    >>> value = helper.make_tensor_value_info
    >>> graph = helper.make_graph([helper.make_node("MatMul", ["x", "weight"], ["y"])], "product",
    ...     [value("x", TensorProto.FLOAT, [1, 2])], [value("y", TensorProto.FLOAT, [1, 3])], [weight])
    >>> stored = stored_in_bfloat16(helper.make_model(graph)).graph
    >>> [(node.op_type, list(node.input), list(node.output)) for node in stored.node]
    [('Cast', ['weight.bfloat16'], ['weight']), ('MatMul', ['x', 'weight'], ['y'])]
    >>> stored.initializer[0].data_type == TensorProto.BFLOAT16, len(stored.initializer[0].raw_data)
    (True, 12)
    """
    halved = ModelProto()
    halved.CopyFrom(model)
    _store_in_bfloat16_(halved.graph)
    return halved


def _store_in_bfloat16_(graph: GraphProto) -> None:
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < FEWEST_DIMENSIONS:
            continue
        name, values = tensor.name, torch.tensor(numpy_helper.to_array(tensor))
        bits = values.to(torch.bfloat16).view(torch.int16).numpy().tobytes()
        tensor.CopyFrom(helper.make_tensor(f"{name}.bfloat16", TensorProto.BFLOAT16, values.shape, bits, raw=True))
        casts.append(helper.make_node("Cast", [tensor.name], [name], name=f"{name}.float32", to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
