"""Find the products of a graph that may run sparse, with the nodes before and after that become part of them."""

from __future__ import annotations

from dataclasses import replace

from l0compress.export.partition.candidates import Candidate, Found
from l0compress.export.partition.flow import Flow, attributes_of
from l0compress.export.partition.names import spoken
from l0compress.export.partition.products import FLOATS, Unfit, product, sparse_share
from l0compress.export.partition.views import flattened_from

_ACTIVATIONS = {"Relu": "relu", "Tanh": "tanh", "Sigmoid": "sigmoid"}


def find_candidates(flow: Flow, *, activations: tuple[str, ...] = ("relu",)) -> Found:
    """Find every product with a sparse constant, with the bias and the activation that follow it.

    Args:
        flow: a graph whose constants are folded.
        activations: which activations become part of a layer.
    """
    candidates, reasons, taken = [], {}, set()
    for index, node in enumerate(flow.nodes):
        for name in flow.reads[index]:
            zeros = sparse_share(flow, name, kinds=FLOATS)
            if zeros is None:
                continue
            try:
                candidate = product(flow, index, name, zeros)
            except Unfit as reason:
                reasons[spoken(flow, name, node)] = f"{node.op_type} {reason}"
                continue
            candidate = _flattening(flow, _with_activation(flow, candidate, activations))
            if taken.isdisjoint(candidate.nodes):
                candidates.append(candidate)
                taken.update(candidate.nodes)
    return Found(tuple(candidates), reasons)


def _with_activation(flow: Flow, candidate: Candidate, activations: tuple[str, ...]) -> Candidate:
    if candidate.kind in ("embedding", "recurrent"):
        return candidate
    found = _activation(flow, candidate.outputs[0])
    if found is None or found[0] not in activations:
        return candidate
    activation, nodes = found
    outputs = (flow.nodes[nodes[-1]].output[0],)
    return replace(candidate, activation=activation, nodes=(*candidate.nodes, *nodes), outputs=outputs)


def _flattening(flow: Flow, candidate: Candidate) -> Candidate:
    """Include the flattening of its input, which would otherwise be a dense graph of its own."""
    maker = flow.makers.get(candidate.inputs[0])
    if candidate.kind != "linear" or maker is None or flow.only_reader(candidate.inputs[0]) is None:
        return candidate
    flat_from = flattened_from(flow, maker)
    if flat_from is None:
        return candidate
    inputs = (flow.nodes[maker].input[0],)
    return replace(candidate, inputs=inputs, nodes=(maker, *candidate.nodes), flat_from=flat_from)


def _activation(flow: Flow, value: str) -> tuple[str, tuple[int, ...]] | None:
    """Return the activation that is the only reader of a value, and its nodes."""
    reader = flow.only_reader(value)
    if reader is not None:
        node = flow.nodes[reader]
        if node.op_type == "Gelu":
            approximate = attributes_of(node).get("approximate", b"none")
            return ("gelu_tanh" if approximate == b"tanh" else "gelu"), (reader,)
        name = _ACTIVATIONS.get(node.op_type)
        return None if name is None else (name, (reader,))
    readers = flow.readers.get(value, ())
    if len(readers) == 2 and value not in flow.outputs:
        first, second = (flow.nodes[index] for index in readers)
        gated = first.op_type == "Sigmoid" and second.op_type == "Mul" and first.output[0] in second.input
        if gated and flow.only_reader(first.output[0]) == readers[1]:
            return "silu", readers
    return None
