"""An ONNX graph taken apart: products with sparse constants on one side, maximal dense graphs on the other."""
