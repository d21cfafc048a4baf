"""The operators of ONNX in PyTorch, and the graph that is built of them.

A value is a tensor, or it lives on the *host*: sizes and what is computed from them are Python numbers, so that a
size which is free when the model is captured stays free. :mod:`values` says how, the other modules hold one family of
operators each, :mod:`registry` finds them, and :mod:`build` makes an ``fx.GraphModule`` of a parsed file.
"""

from __future__ import annotations
