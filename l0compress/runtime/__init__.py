"""Sparse models on numpy, scipy and onnxruntime; torch only in the engine named after it, and only when it is used."""
