"""ONNX Runtime with the interface of a kernel: arrays in, arrays out, in the order of the segment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from l0compress_runtime.archive import FormatError
from l0compress_runtime.errors import NOTHING_COMPUTED, InputError
from l0compress_runtime.manifest import Segment
from l0compress_runtime.protobuf import check_model, operators_of, with_initializers
from l0compress_runtime.sessions import NATIVE_ERRORS, first_line, open_session

Array = NDArray[Any]
Runner = Callable[[Sequence[Array]], Sequence[Array]]

# A protobuf message cannot be larger; the rest of the graph must fit in it along with its constants.
MOST_MODEL_BYTES = 2**31 - 2**20

# An untrusted graph can fail in more ways than with ONNX Runtime's own errors.
_ERRORS = (*NATIVE_ERRORS, ValueError, TypeError, RuntimeError, MemoryError)
_MOST_CHARACTERS = 300

# Seen with ONNX Runtime 1.31: it aborts the process if an LSTM or a GRU gets no samples, or a GRU no steps.
END_ON_EMPTY = frozenset({"LSTM", "GRU"})


def open_segment(
    segment: Segment,
    graph: bytes,
    tensors: Mapping[str, Array],
    *,
    threads: int | None,
    disabled: Sequence[str] = (),
) -> OpenSegment:
    """Open a segment in ONNX Runtime.

    Args:
        segment: its inputs and outputs.
        graph: the ONNX model without its larger constants.
        tensors: the constants by their name in the graph.
        threads: threads within an operator; None leaves the choice to ONNX Runtime.
        disabled: ONNX Runtime optimizers to disable.

    Raises:
        FormatError: the graph refers to other files, uses operators that are not ONNX's own, has different inputs or
            outputs, or cannot be loaded.
    """
    check_model(graph)
    if len(graph) + sum(array.nbytes for array in tensors.values()) > MOST_MODEL_BYTES:
        raise FormatError("is larger than an ONNX model in memory can be")
    try:
        session = open_session(with_initializers(graph, tensors), threads=threads, disabled=disabled)
    except _ERRORS as error:
        raise FormatError(f"cannot be loaded by ONNX Runtime: {_said(error)}") from error
    names, outputs = list(segment.inputs), list(segment.outputs)
    found = ({entry.name for entry in session.get_inputs()}, {entry.name for entry in session.get_outputs()})
    if found != (set(names), set(outputs)):
        raise FormatError("has different inputs or outputs from those in the manifest")
    if any(not entry.type.startswith("tensor(") for entry in (*session.get_inputs(), *session.get_outputs())):
        raise FormatError("returns something other than a tensor")

    return OpenSegment(session, names, outputs, takes_empty=END_ON_EMPTY.isdisjoint(operators_of(graph)))


class OpenSegment:
    """A segment that is ready to run: takes arrays in the order of its inputs, returns them in that of its outputs."""

    def __init__(
        self, session: onnxruntime.InferenceSession, inputs: list[str], outputs: list[str], *, takes_empty: bool
    ) -> None:
        self._session = session
        self._inputs = inputs
        self._outputs = outputs
        self._takes_empty = takes_empty

    def __call__(self, arrays: Sequence[Array]) -> Sequence[Array]:
        """Run on arrays.

        Raises:
            InputError: ONNX Runtime cannot run the graph on these.
        """
        return self.named(dict(zip(self._inputs, arrays, strict=True)))

    def named(self, feeds: Mapping[str, Array]) -> Sequence[Any]:
        """Run on arrays by name.

        Raises:
            InputError: as for a call.
        """
        if not self._takes_empty and any(array.size == 0 for array in feeds.values()):
            raise InputError(
                "the model cannot run on arrays without elements: ONNX Runtime's recurrent layers need at least one "
                "sample and one step.",
                fix="Pass at least one of each.",
                assurance=NOTHING_COMPUTED,
            )
        try:
            return self._session.run(self._outputs, feeds)
        except _ERRORS as error:
            raise InputError(
                f"the model cannot run on these inputs: {_said(error)}.",
                fix="Pass arrays of the shapes that its inputs name.",
            ) from error


def _said(error: BaseException) -> str:
    return first_line(error)[:_MOST_CHARACTERS]
