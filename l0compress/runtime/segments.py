"""ONNX Runtime behind the interface of a kernel: arrays in, arrays out, in the order of the segment."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from l0compress.errors import InputError
from l0compress.runtime.archive import FormatError
from l0compress.runtime.manifest import Segment
from l0compress.runtime.protobuf import check_model, with_initializers

Array = NDArray[Any]
Run = Callable[[Sequence[Array]], Sequence[Array]]

# A protobuf message cannot be larger; the rest of the graph has to fit beside its constants.
MOST_MODEL_BYTES = 2**31 - 2**20

# The errors of the compiled module, which declares no types.
_native = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
_ERRORS = (
    _native.EPFail,
    _native.Fail,
    _native.InvalidArgument,
    _native.InvalidGraph,
    _native.InvalidProtobuf,
    _native.ModelLoaded,
    _native.NoModel,
    _native.NoSuchFile,
    _native.NotImplemented,
    _native.RuntimeException,
    ValueError,
    TypeError,
    RuntimeError,
    MemoryError,
)
_ERROR_CODE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_SILENT = 4


def open_segment(segment: Segment, graph: bytes, tensors: Mapping[str, Array], *, threads: int | None) -> OpenSegment:
    """A segment in ONNX Runtime.

    Args:
        segment: its inputs and outputs.
        graph: the ONNX model without its larger constants.
        tensors: the constants by their name in the graph.
        threads: threads within an operator; None leaves the choice to ONNX Runtime.

    Raises:
        FormatError: the graph refers to other files, uses operators that are not ONNX's own, has other inputs or
            outputs, or cannot be loaded.
    """
    check_model(graph)
    if len(graph) + sum(array.nbytes for array in tensors.values()) > MOST_MODEL_BYTES:
        raise FormatError("is larger than an ONNX model in memory can be")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SILENT
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    # Between two segments other kernels run, which threads that go on spinning would slow down.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        # Without the fallback, which prints before it tries the same again.
        session = onnxruntime.InferenceSession(
            with_initializers(graph, tensors), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except _ERRORS as error:
        raise FormatError(f"cannot be loaded by ONNX Runtime: {first_line(error)}") from error
    names, outputs = list(segment.inputs), list(segment.outputs)
    found = ({entry.name for entry in session.get_inputs()}, {entry.name for entry in session.get_outputs()})
    if found != (set(names), set(outputs)):
        raise FormatError("has other inputs and outputs than the manifest says")
    if any(not entry.type.startswith("tensor(") for entry in (*session.get_inputs(), *session.get_outputs())):
        raise FormatError("hands on what is not a tensor")

    return OpenSegment(session, names, outputs)


class OpenSegment:
    """A segment that is ready to run: arrays in the order of its inputs become arrays in that of its outputs."""

    def __init__(self, session: onnxruntime.InferenceSession, inputs: list[str], outputs: list[str]) -> None:
        self._session = session
        self._inputs = inputs
        self._outputs = outputs

    def __call__(self, arrays: Sequence[Array]) -> Sequence[Array]:
        """Run on arrays.

        Raises:
            InputError: ONNX Runtime cannot run the graph on these.
        """
        return self.named(dict(zip(self._inputs, arrays, strict=True)))

    def named(self, feeds: Mapping[str, Array]) -> Sequence[Any]:
        """Run on arrays by name."""
        try:
            return self._session.run(self._outputs, feeds)
        except _ERRORS as error:
            raise InputError(
                f"the model cannot run on these inputs: {first_line(error)}. Nothing was changed. Pass arrays of the "
                "shapes that its inputs name."
            ) from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message without ONNX Runtime's error code, or the error's type where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return _ERROR_CODE.sub("", lines[0]).rstrip(".")[:300] if lines else type(error).__name__
