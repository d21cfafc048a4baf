"""ONNX files as input: models of other frameworks, converted to modules by onnx2torch.

requires: an ``.onnx`` file, with external data beside it or without.
ensures:  a module whose weights are parameters; its outputs are those of the file that a gradient can flow through.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import checker, version_converter
from torch import fx, nn

from l0compress.errors import ModelError
from l0compress.loading.references import FOREIGN_ERRORS, first_line, import_extra, without_broken

# The newest that the converter reads, and an older one that onnx can always be brought to.
NEWEST_OPSET, OLDER_OPSETS = 18, (17, 16, 13)
FLOATING = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16})
ONNX_ERRORS = (*FOREIGN_ERRORS, DecodeError, checker.ValidationError, onnx.shape_inference.InferenceError)
LARGEST_FILE = 2**31


def load_onnx(path: Path) -> nn.Module:
    """Convert an ONNX file to a module, in evaluation mode.

    Integer outputs, such as the label beside the probabilities of a classifier, are left out with what computes them.

    Raises:
        ModelError: the file is damaged or malformed, names files outside its folder, or uses an operator that the
            converter lacks.
    """
    model = _read(path)
    model = _older(_without_gelu(_copying_zeros(_differentiable(model, path))), path)
    with without_broken("torchvision", _torchvision_stand_in()):
        onnx2torch = import_extra("onnx2torch", extra="onnx-input", purpose="An .onnx model", error=ModelError)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = onnx2torch.convert(model)
    except (NotImplementedError, *ONNX_ERRORS) as reason:
        raise ModelError(
            f"Model {str(path)!r} cannot be converted ({first_line(reason)}). Nothing was changed. Export it without "
            "that operator, or give the original PyTorch module as .pt2."
        ) from reason
    return _trainable(module).eval()


def _torchvision_stand_in() -> ModuleType:
    """What the converter wants of torchvision when it is imported; only two operators of detectors would call it."""
    stand_in, operators = ModuleType("torchvision"), ModuleType("torchvision.ops")
    vars(operators).update(roi_align=None)
    vars(stand_in).update(ops=operators)
    return stand_in


def _read(path: Path) -> onnx.ModelProto:
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ModelError(f"Cannot read model {str(path)!r}: it is larger than 2 GiB, which ONNX does not allow.")
        model = onnx.load(str(path), load_external_data=False)
        _check_external(model, path)
        onnx.load_external_data_for_model(model, str(path.parent))
        checker.check_model(model)
    except ONNX_ERRORS as reason:
        raise ModelError(
            f"Cannot read model {str(path)!r} as an ONNX file ({first_line(reason)}). Nothing was changed. "
            "Export it again, or copy the file again."
        ) from reason
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
                f"Cannot read model {str(path)!r}: its weight {tensor.name!r} points to {str(location)!r}, outside the "
                "folder of the model. Nothing was changed. Do not use this file."
            )
        if not beside.is_file():
            raise ModelError(
                f"Cannot read model {str(path)!r}: its weights are in {str(beside)!r}, and there is no such file. "
                "Nothing was changed. Copy it beside the model."
            )
        end = int(entries.get("offset") or 0) + int(entries.get("length") or 0)
        if end > beside.stat().st_size or end < 0:
            raise ModelError(
                f"Cannot read model {str(path)!r}: its weight {tensor.name!r} ends at byte {end:,} of "
                f"{str(beside)!r}, which has {beside.stat().st_size:,}. Nothing was changed. Copy both files again."
            )


def _tensors(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    found = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            found += [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                found += _tensors(inner)
    return found


def _differentiable(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The same model with its floating-point outputs alone."""
    outputs = [value for value in model.graph.output if value.type.tensor_type.elem_type in FLOATING]
    if not outputs:
        raise ModelError(
            f"Model {str(path)!r} has no output of floating-point numbers to train on. Nothing was changed. "
            "Export it with its scores or probabilities as a tensor (skl2onnx: options={'zipmap': False})."
        )
    if len(outputs) == len(model.graph.output):
        return model
    needed, nodes = {value.name for value in outputs}, []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            nodes.append(node)
    kept = onnx.ModelProto()
    kept.CopyFrom(model)
    del kept.graph.node[:], kept.graph.output[:], kept.graph.initializer[:]
    kept.graph.node.extend(reversed(nodes))
    kept.graph.output.extend(outputs)
    kept.graph.initializer.extend(value for value in model.graph.initializer if value.name in needed)
    return kept


def _copying_zeros(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with plain reshapes: PyTorch writes that a 0 is a size, also where there is none."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            constants.update((node.output[0], given.t) for given in node.attribute if given.name == "value")
    kept = onnx.ModelProto()
    kept.CopyFrom(model)
    for node in kept.graph.node:
        if node.op_type == "Reshape" and not _asks_for_zero(constants.get(node.input[1])):
            others = [given for given in node.attribute if given.name != "allowzero"]
            del node.attribute[:]
            node.attribute.extend(others)
    return kept


def _asks_for_zero(shape: onnx.TensorProto | None) -> bool:
    return shape is not None and 0 in onnx.numpy_helper.to_array(shape).tolist()


def _without_gelu(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with Gelu, which no version that the converter reads has, as the operators that it stands for."""
    kept = onnx.ModelProto()
    kept.CopyFrom(model)
    del kept.graph.node[:]
    for node in model.graph.node:
        kept.graph.node.extend(_gelu(node) if node.op_type == "Gelu" else [node])
    return kept


def _gelu(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """x * (1 + erf(x / sqrt(2))) / 2, or x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x³))) / 2."""
    (x,), (y,) = node.input, node.output
    approximate = {given.name: given.s for given in node.attribute}.get("approximate", b"none") == b"tanh"
    made: list[onnx.NodeProto] = []

    def apply(operator: str, *inputs: str) -> str:
        name = f"{y}_gelu_{len(made)}"
        made.append(onnx.helper.make_node(operator, inputs, [name]))
        return name

    def number(value: float) -> str:
        name = f"{y}_gelu_{len(made)}"
        made.append(
            onnx.helper.make_node(
                "Constant", [], [name], value=onnx.numpy_helper.from_array(np.array(value, np.float32))
            )
        )
        return name

    if approximate:
        cubed = apply("Mul", apply("Mul", apply("Mul", x, x), x), number(0.044715))
        inner = apply("Tanh", apply("Mul", apply("Add", x, cubed), number(math.sqrt(2 / math.pi))))
    else:
        inner = apply("Erf", apply("Mul", x, number(math.sqrt(0.5))))
    half = apply("Mul", x, number(0.5))
    made.append(onnx.helper.make_node("Mul", [half, apply("Add", inner, number(1.0))], [y]))
    return made


def _older(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The same model in a version of the operators that the converter reads."""
    used = {node.domain for node in model.graph.node}
    versions = [entry for entry in model.opset_import if entry.domain in used or entry.domain == ""]
    del model.opset_import[:]
    model.opset_import.extend(versions)
    version = next((entry.version for entry in versions if entry.domain == ""), 0)
    reasons = []
    for wanted in (NEWEST_OPSET, *OLDER_OPSETS):
        if version <= NEWEST_OPSET:
            return model
        try:
            return version_converter.convert_version(model, wanted)
        except ONNX_ERRORS as reason:
            reasons.append(first_line(reason))
    raise ModelError(
        f"Model {str(path)!r} uses version {version} of the ONNX operators, and cannot be brought to {NEWEST_OPSET} "
        f"({reasons[0]}). Nothing was changed. Export it with opset {NEWEST_OPSET} (skl2onnx: target_opset=18)."
    )


def _trainable(module: fx.GraphModule) -> fx.GraphModule:
    """Weights that products read directly become parameters, and constant shapes become part of the graph."""
    owner = getattr(module, "initializers", None)
    for node in list(module.graph.nodes):
        if node.op == "call_module" and type(module.get_submodule(str(node.target))).__name__ == "OnnxReshape":
            _fix_shape_(module, node)
    if isinstance(owner, nn.Module):
        for name, buffer in list(owner._buffers.items()):
            if buffer is not None and buffer.is_floating_point() and buffer.numel() > 1:
                del owner._buffers[name]
                owner.register_parameter(name, nn.Parameter(buffer.detach().clone()))
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _fix_shape_(module: fx.GraphModule, node: fx.Node) -> None:
    """A reshape whose shape is a constant tensor: the numbers move into the graph; zero keeps the input's size."""
    source, shape = node.args[0], node.args[1]
    if not (isinstance(shape, fx.Node) and shape.op == "get_attr" and isinstance(source, fx.Node)):
        return
    sizes: list[Any] = _attribute(module, str(shape.target)).tolist()
    with module.graph.inserting_before(node):
        sizes = [
            module.graph.call_method("size", (source, dim)) if size == 0 else size for dim, size in enumerate(sizes)
        ]
        reshaped = module.graph.call_function(torch.reshape, (source, tuple(sizes)))
    node.replace_all_uses_with(reshaped)
    module.graph.erase_node(node)


def _attribute(module: nn.Module, target: str) -> Any:
    path, _, name = target.rpartition(".")
    return getattr(module.get_submodule(path), name)
