"""What settings may be chosen from, by name."""

from __future__ import annotations

# Those that take part of the epochs to decide.
TRAINED_METHODS = ("l0", "gradual-magnitude", "group-lasso", "l1", "proximal", "hybrid")
# Those of them that learn gates.
GATED_METHODS = ("l0", "hybrid")
_SCORES, _SEARCHES = ("fisher", "magnitude", "layer-magnitude", "random", "taylor"), ("search", "reinforce")
METHOD_NAMES = ("l0", *_SCORES, *TRAINED_METHODS[1:], *_SEARCHES)
OPTIMIZERS, SCHEDULERS = ("adamw", "sgd"), ("cosine",)
LOSSES = ("auto", "cross-entropy", "bce", "mse")
PANEL = "Training"
LATENCY_DTYPES = ("float32", "int8")
PRECISIONS = ("float32", "bfloat16", "float16")
