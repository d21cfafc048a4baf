"""The operators of ONNX in PyTorch, and the graph that is built from them.

A value is a tensor, or it is on the *host*: sizes and what is computed from them are Python numbers, so that a size
that is free when the model is captured stays free. :mod:`values` defines this, the other modules hold one family of
operators each, :mod:`registry` finds them, and :mod:`build` makes an ``fx.GraphModule`` from a parsed file.
"""

from __future__ import annotations
