"""The rounded weights of an int8 ONNX file, found by what reads them: ONNX Runtime names them anew in every version."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

INTEGER_PRODUCTS = ("MatMulInteger", "ConvInteger")


@dataclass(frozen=True)
class QuantizedWeight:
    """What is stored for one weight: integers, and the scale that makes floats of them."""

    values: onnx.TensorProto
    scale: onnx.TensorProto


class Reader:
    """Who makes and who reads the values of a graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = model.graph.node
        self.constants = {entry.name: entry for entry in model.graph.initializer}

    def consumer(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """The node that reads the first output of another."""
        return next(each for each in self.nodes if node.output[0] in each.input)

    def producers(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The nodes that make the inputs of another."""
        return [each for each in self.nodes if set(each.output) & set(node.input)]

    def constant_of(self, node: onnx.NodeProto) -> onnx.TensorProto:
        """The one initializer among the inputs of a node."""
        (found,) = [self.constants[name] for name in node.input if name in self.constants]
        return found


def integer_products(model: onnx.ModelProto) -> list[QuantizedWeight]:
    """Weights of the dynamic form: ``cast(product of integers) * (scale of the input * scale of the weight)``."""
    reader, found = Reader(model), []
    for node in reader.nodes:
        if node.op_type in INTEGER_PRODUCTS:
            scaled = reader.consumer(reader.consumer(node))
            (scales,) = [each for each in reader.producers(scaled) if each.op_type == "Mul"]
            found.append(QuantizedWeight(reader.constants[node.input[1]], reader.constant_of(scales)))
    return found


def integer_operands(model: onnx.ModelProto) -> list[QuantizedWeight]:
    """Weights of the static form, where a DequantizeLinear reads a constant; biases, of 32 bits, are left out."""
    reader = Reader(model)
    read = [node for node in reader.nodes if node.op_type == "DequantizeLinear" and node.input[0] in reader.constants]
    stored = [QuantizedWeight(*(reader.constants[name] for name in node.input[:2])) for node in read]
    return [weight for weight in stored if weight.values.data_type != onnx.TensorProto.INT32]
