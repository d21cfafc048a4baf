"""ONNX files as input: models of other frameworks, as modules of PyTorch operators.

requires: an ``.onnx`` file, with or without external data beside it.
ensures:  a module whose weights are parameters; its outputs are those of the file that gradients can flow through.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import onnx
from google.protobuf.message import DecodeError
from onnx import checker, inliner
from torch import nn

from l0compress.errors import ModelError
from l0compress.loading.onnx.build import OLDEST_OPSET, build
from l0compress.loading.onnx.parsed import NodeError
from l0compress.loading.onnx_nodes import FLOATING, ContentError, parse
from l0compress.loading.references import FOREIGN_ERRORS, first_line

ONNX_ERRORS = (*FOREIGN_ERRORS, DecodeError, checker.ValidationError, onnx.shape_inference.InferenceError)
LARGEST_FILE = 2**31


def load_onnx(path: Path) -> nn.Module:
    """Load an ONNX file as a module in evaluation mode.

    Integer outputs, such as the label beside the probabilities of a classifier, are dropped together with what computes
    them. Half precision is read as float32, which training requires.

    Returns:
        A module that takes the inputs of the file by position or by name, and returns a tensor, or a tuple of several.

    Raises:
        ModelError: the file is damaged or malformed, names files outside its folder, or has an unsupported node.
    """
    model = _read(path)
    opset = _opset(model, path)
    outputs = _differentiable(model, path)
    try:
        if model.functions:
            model = inliner.inline_local_functions(model)
        return build(parse(model.graph, outputs), opset)
    except (NodeError, ContentError) as reason:
        raise ModelError(
            f"Model {str(path)!r} cannot be converted: {reason}.",
            fix="Export it without that, or give the original PyTorch module as .pt2.",
        ) from reason
    except ONNX_ERRORS as reason:
        raise _unreadable(path, reason) from reason


def _unreadable(path: Path, reason: BaseException) -> ModelError:
    return ModelError(
        f"Cannot read model {str(path)!r} as an ONNX file ({first_line(reason)}).",
        fix="Export it again, or copy the file again.",
    )


def _opset(model: onnx.ModelProto, path: Path) -> int:
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    version = max(versions, default=onnx.defs.onnx_opset_version())
    if version < OLDEST_OPSET:
        raise ModelError(
            f"Model {str(path)!r} uses version {version} of the ONNX operators, but {OLDEST_OPSET} or later is needed.",
            fix=f"Convert it: onnx.version_converter.convert_version(model, {OLDEST_OPSET + 6}).",
        )
    return version


def _differentiable(model: onnx.ModelProto, path: Path) -> list[str]:
    """Return the names of the floating-point outputs."""
    outputs = [value.name for value in model.graph.output if value.type.tensor_type.elem_type in FLOATING]
    if not outputs:
        raise ModelError(
            f"Model {str(path)!r} has no output of floating-point numbers to train on.",
            fix="Export it with its scores or probabilities as a tensor (skl2onnx: options={'zipmap': False}).",
        )
    return outputs


def _read(path: Path) -> onnx.ModelProto:
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ModelError(f"Cannot read model {str(path)!r}: it is larger than 2 GiB, which ONNX does not allow.")
        model = onnx.load(str(path), load_external_data=False)
        _check_external(model, path)
        onnx.load_external_data_for_model(model, str(path.parent))
        checker.check_model(model)
    except ONNX_ERRORS as reason:
        raise _unreadable(path, reason) from reason
    return model


def _check_external(model: onnx.ModelProto, path: Path) -> None:
    for tensor in _tensors(model.graph):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        location = PurePosixPath(entries.get("location", ""))
        beside = path.parent / location
        if location.is_absolute() or len(location.parts) != 1 or ".." in location.parts or beside.is_symlink():
            raise ModelError(
                f"Cannot read model {str(path)!r}: its weight {tensor.name!r} points to {str(location)!r}, outside "
                "the folder of the model.",
                fix="Do not use this file.",
            )
        if not beside.is_file():
            raise ModelError(
                f"Cannot read model {str(path)!r}: its weights are in {str(beside)!r}, and there is no such file.",
                fix="Copy it next to the model.",
            )
        end = int(entries.get("offset") or 0) + int(entries.get("length") or 0)
        if end > beside.stat().st_size or end < 0:
            raise ModelError(
                f"Cannot read model {str(path)!r}: its weight {tensor.name!r} ends at byte {end:,} of "
                f"{str(beside)!r}, which has {beside.stat().st_size:,}.",
                fix="Copy both files again.",
            )


def _tensors(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    found = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            found += [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                found += _tensors(inner)
    return found
