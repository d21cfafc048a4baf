"""How an ONNX file is written: the version of its operators, and how much of it may be in one file."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import onnx_ir as ir

from l0compress.errors import NOTHING_WRITTEN, InputError, SurgeryError

# A protobuf message ends at 2 GiB; the margin is for everything that is not a weight.
LARGEST_FILE_BYTES = 2**31 - 2**26
# Below it torch's converter has no operators of its own, and what converts downward knows few of them.
OLDEST_OPSET = 13


@dataclass(frozen=True)
class OnnxSettings:
    """How an ONNX file is written.

    Attributes:
        opset: the version of ONNX's operators; None leaves it to torch's converter, which takes one that runs widely.
            From 23 on attention is a single operator.
        largest_file_bytes: the most that the file itself may hold; more goes to ``<path>.data`` beside it.

    Raises:
        InputError: a version that the installed onnx does not know, or that is too old.
    """

    opset: int | None = None
    largest_file_bytes: int = LARGEST_FILE_BYTES

    def __post_init__(self) -> None:
        newest = onnx.defs.onnx_opset_version()
        if self.opset is not None and not (type(self.opset) is int and OLDEST_OPSET <= self.opset <= newest):
            raise InputError(
                f"Opset {self.opset!r}: expected {OLDEST_OPSET} to {newest}.",
                fix="",
                assurance=NOTHING_WRITTEN,
            )


def check_opset(model: ir.Model, asked: int | None) -> None:
    """Raises:
    SurgeryError: the converter gave up, and left the model at another version than the one asked for.
    """
    written = model.opset_imports.get("")
    if asked is not None and written != asked:
        raise SurgeryError(
            f"the graph cannot be converted to ONNX opset {asked}: the converter stopped at {written}.",
            fix=f"Pass --opset {written} (in Python OnnxSettings(opset={written})), or omit it.",
        )
