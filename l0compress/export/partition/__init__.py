"""Partition an ONNX graph: products with sparse constants on one side, maximal dense graphs on the other."""
