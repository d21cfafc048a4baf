"""Sparse activations: a penalty on what leaves rectifiers, and the removal of units that never fire."""
