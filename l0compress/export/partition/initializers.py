"""Fold everything that depends only on constants, so that weights are found that the exporter only rearranges.

The weights of recurrent layers reach their node in ONNX's order of gates, through Split and Concat of the user's. A
folded constant records what it was made from, because that has the user's name of a layer.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from l0compress.export.partition.flow import Flow, flow_of, has_inner_graph
from l0compress_runtime.sessions import open_session

# A constant that is far larger than what it is made from is better computed again.
MOST_GROWTH = 2
FEWEST_ELEMENTS = 4096
_RANDOM = (
    "RandomNormal",
    "RandomUniform",
    "RandomNormalLike",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
    "Dropout",
)
# An initializer is a tensor; it cannot hold lists of tensors, or optional tensors.
_MAKES_NO_TENSOR = ("SequenceEmpty", "SequenceConstruct", "SplitToSequence", "SequenceMap", "Optional")
_TENSOR_OF_SEQUENCE = ("SequenceAt", "SequenceLength", "ConcatFromSequence", "OptionalHasElement")


def fold_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with every node evaluated that reads only constants, and without unread constants.

    Constants of nodes (``Constant``) become initializers. The given model is not changed.
    """
    flow = flow_of(model)
    folded = _foldable(flow)
    values = _evaluated(flow, folded)
    large = {name for name, tensor in values.items() if _grows(flow, name, tensor)}
    gone = {index for index in folded if not any(name in large for name in flow.nodes[index].output)}
    gone -= _makers_of(flow, large)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    result.graph.node.extend(node for index, node in enumerate(flow.nodes) if index not in gone)
    added = [values[name] for index in sorted(gone) for name in flow.nodes[index].output if name in values]
    result.graph.initializer.extend(added)
    return without_unread(result)


def without_unread(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model without the initializers, and their descriptions, that no node reads."""
    flow = flow_of(model)
    kept = [tensor for tensor in model.graph.initializer if tensor.name in flow.readers or tensor.name in flow.outputs]
    names = {name for node in flow.nodes for name in node.output}
    described = [value for value in model.graph.value_info if value.name in names]
    del model.graph.initializer[:]
    del model.graph.value_info[:]
    model.graph.initializer.extend(kept)
    model.graph.value_info.extend(described)
    return model


def _foldable(flow: Flow) -> set[int]:
    constant, found = set(flow.constants), set()
    for index, node in enumerate(flow.nodes):
        fits = node.op_type not in _RANDOM and node.domain in ("", "ai.onnx") and not has_inner_graph(node)
        if fits and constant.issuperset(flow.reads[index]) and flow.outputs.isdisjoint(node.output):
            found.add(index)
            constant.update(node.output)
    return _within_tensors(flow, found)


def _within_tensors(flow: Flow, found: set[int]) -> set[int]:
    """Leave out nodes that pass something other than a tensor to nodes that stay."""
    makers: list[int] = []
    others: set[str] = set()
    for index in sorted(found):
        node = flow.nodes[index]
        passes_on = not others.isdisjoint(node.input) and node.op_type not in _TENSOR_OF_SEQUENCE
        if node.op_type in _MAKES_NO_TENSOR or passes_on:
            makers.append(index)
            others.update(node.output)
    kept = set(found)
    for index in reversed(makers):
        if any(reader not in kept for name in flow.nodes[index].output for reader in flow.readers.get(name, ())):
            kept.remove(index)
    return kept


def _evaluated(flow: Flow, folded: set[int]) -> dict[str, onnx.TensorProto]:
    """Return the values that nodes outside the folded ones read."""
    if not folded:
        return {}
    wanted = [
        name
        for index in sorted(folded)
        for name in flow.nodes[index].output
        if name and any(reader not in folded for reader in flow.readers.get(name, ()))
    ]
    read = {name for index in folded for name in flow.reads[index]}
    graph = helper.make_graph(
        [flow.nodes[index] for index in sorted(folded)],
        "constants",
        [],
        [onnx.ValueInfoProto(name=name) for name in wanted],
        [tensor for name, tensor in flow.constants.items() if name in read],
    )
    model = helper.make_model(graph, opset_imports=flow.model.opset_import, ir_version=flow.model.ir_version)
    session = open_session(model.SerializeToString())
    arrays = session.run(wanted, {})
    tensors = {
        name: numpy_helper.from_array(np.asarray(array), name) for name, array in zip(wanted, arrays, strict=True)
    }
    for name, tensor in tensors.items():
        sources = _sources(flow, name)
        if sources:
            tensor.doc_string = min(sources, key=lambda source: (-_size(flow.constants[source]), source))
    return tensors


def parameter_of(flow: Flow, name: str) -> str:
    """Return the name of the largest constant that this one was made from, or its own.

    If several are equally large, the first alphabetically: ``weight_ih_l0`` comes before ``weight_ih_l0_reverse``.
    """
    return flow.constants[name].doc_string or name


def _sources(flow: Flow, name: str) -> set[str]:
    """Return the constants that a value is made from."""
    sources, waiting = set(), [name]
    while waiting:
        current = waiting.pop()
        if current in flow.makers:
            waiting += flow.reads[flow.makers[current]]
        else:
            sources.add(current)
    return sources


def _grows(flow: Flow, name: str, tensor: onnx.TensorProto) -> bool:
    size = _size(tensor)
    if size <= FEWEST_ELEMENTS:
        return False
    return size > MOST_GROWTH * sum(_size(flow.constants[source]) for source in _sources(flow, name))


def _makers_of(flow: Flow, names: set[str]) -> set[int]:
    """Return the nodes that these values depend on."""
    found, waiting = set(), list(names)
    while waiting:
        maker = flow.makers.get(waiting.pop())
        if maker is not None and maker not in found:
            found.add(maker)
            waiting += flow.reads[maker]
    return found


def _size(tensor: onnx.TensorProto) -> int:
    size = 1
    for dim in tensor.dims:
        size *= dim
    return size
