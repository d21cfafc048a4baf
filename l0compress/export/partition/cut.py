"""Cut a graph at chosen products: the rest falls into as few dense graphs as possible, in a valid order.

A node's *stage* is the number of products on the longest path from the inputs to it. Dense nodes of one stage form one
segment; the products of a stage run after it, and depend neither on each other nor on later stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from l0compress.export.partition.candidates import Candidate
from l0compress.export.partition.flow import Flow
from l0compress_runtime.protobuf import DATA_TYPES

# Smaller constants stay inside their graph.
FEWEST_OUTSIDE = 32


@dataclass(frozen=True, eq=False)
class DenseSegment:
    """A dense graph.

    Attributes:
        model: ONNX without the constants listed below.
        inputs: the values that it reads.
        outputs: the values that it produces.
        constants: names of the constants that it lacks.
    """

    model: onnx.ModelProto
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Types:
    """Dtype and shape of every value that may cross a cut, as ONNX describes them."""

    values: dict[str, onnx.ValueInfoProto]


def types_of(model: onnx.ModelProto, examples: Sequence[dict[str, NDArray[np.generic]]]) -> Types:
    """Describe values from several runs: for a size that was always the same, use what shape inference says.

    Args:
        model: the whole graph.
        examples: for runs at different batch sizes, the values by name.
    """
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    known = {value.name: value for value in (*inferred.graph.value_info, *inferred.graph.output)}
    values = {value.name: value for value in model.graph.input}
    for name in examples[0]:
        shapes = [example[name].shape for example in examples]
        dims = _dims(known.get(name), shapes)
        dtype = helper.np_dtype_to_tensor_dtype(examples[0][name].dtype)
        values[name] = helper.make_tensor_value_info(name, dtype, dims)
    return Types(values)


def cut(flow: Flow, types: Types, chosen: Sequence[Candidate]) -> list[DenseSegment | Candidate]:
    """The graph as a sequence of dense graphs and of the chosen candidates.

    With nothing chosen that is one dense graph: the model itself.
    """
    stages = _stages(flow, chosen)
    steps: list[DenseSegment | Candidate] = []
    owned = {node for candidate in chosen for node in candidate.nodes}
    for stage in range(max(stages, default=0) + 1):
        nodes = [index for index, at in enumerate(stages) if at == stage and index not in owned]
        if nodes:
            steps.append(segment(flow, types, nodes))
        steps += [candidate for candidate in chosen if stages[candidate.nodes[0]] == stage]
    return steps


def segment(flow: Flow, types: Types, nodes: Sequence[int]) -> DenseSegment:
    """Some nodes as a graph of their own."""
    inputs, outputs = _ends(flow, nodes)
    read = dict.fromkeys(name for index in nodes for name in flow.reads[index] if name in flow.constants)
    read.update(dict.fromkeys(name for name in outputs if name in flow.constants))
    outside = tuple(name for name in read if _is_outside(flow.constants[name]))
    inside = [flow.constants[name] for name in read if name not in outside]
    produced = {name for index in nodes for name in flow.nodes[index].output}
    described = [value for name, value in types.values.items() if name in produced and name not in outputs]
    graph = helper.make_graph(
        [flow.nodes[index] for index in nodes],
        "segment",
        [types.values[name] for name in inputs],
        [_described(flow, types, name) for name in outputs],
        inside,
        value_info=described,
    )
    model = helper.make_model(
        graph, opset_imports=flow.model.opset_import, ir_version=flow.model.ir_version, functions=flow.model.functions
    )
    return DenseSegment(model, inputs, outputs, outside)


def _described(flow: Flow, types: Types, name: str) -> onnx.ValueInfoProto:
    for value in flow.model.graph.output:
        if value.name == name:
            return value
    return types.values[name]


def _stages(flow: Flow, chosen: Sequence[Candidate]) -> list[int]:
    """Return the stage of every node."""
    owner = {node: position for position, candidate in enumerate(chosen) for node in candidate.nodes}
    stages = [0] * len(flow.nodes)
    for index in _order(flow, chosen, owner):
        members = chosen[owner[index]].nodes if index in owner else (index,)
        stage = 0
        for member in members:
            for name in flow.reads[member]:
                maker = flow.makers.get(name)
                if maker is not None and maker not in members:
                    stage = max(stage, stages[maker] + (maker in owner))
        for member in members:
            stages[member] = stage
    return stages


def _order(flow: Flow, chosen: Sequence[Candidate], owner: dict[int, int]) -> list[int]:
    """Return nodes in an order in which everything that a candidate reads comes before the candidate.

    The nodes of a candidate count as one; its last node determines its place, since what lies between reads the
    candidate at most through that one.
    """
    return [index for index in range(len(flow.nodes)) if index not in owner or index == chosen[owner[index]].nodes[-1]]


def _ends(flow: Flow, nodes: Sequence[int]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    inside = set(nodes)
    made = {name for index in nodes for name in flow.nodes[index].output if name}
    reads = dict.fromkeys(name for index in nodes for name in flow.reads[index])
    inputs = tuple(name for name in reads if name not in made and name not in flow.constants)
    outputs = tuple(
        name
        for index in nodes
        for name in flow.nodes[index].output
        if name and (name in flow.outputs or any(reader not in inside for reader in flow.readers.get(name, ())))
    )
    return inputs, outputs


def _is_outside(tensor: onnx.TensorProto) -> bool:
    size = 1
    for dim in tensor.dims:
        size *= dim
    return size >= FEWEST_OUTSIDE and tensor.data_type in DATA_TYPES.values()


def _dims(known: onnx.ValueInfoProto | None, shapes: list[tuple[int, ...]]) -> list[int | str | None]:
    """Keep sizes that are known to be fixed; everything else gets its name, or none."""
    inferred = list(known.type.tensor_type.shape.dim) if known is not None else []
    if len(inferred) != len(shapes[0]):
        return [None] * len(shapes[0])
    return (
        [
            dim.dim_value if dim.HasField("dim_value") and len(set(sizes)) == 1 else (dim.dim_param or None)
            for dim, sizes in zip(inferred, zip(*shapes, strict=True), strict=True)
        ]
        if shapes[0]
        else []
    )
