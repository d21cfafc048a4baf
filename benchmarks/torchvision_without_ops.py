"""Import this before torchvision where its compiled operators do not load: its models then import and run.

The wheel on PyPI is compiled against another build of torch. The models need none of its operators; only their
registration must find them declared.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

import torch

_DECLARATIONS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align(Tensor a, Tensor b, float c, SymInt d, SymInt e, int f, bool g) -> Tensor",
    "_roi_align_backward(Tensor a) -> Tensor",
    "ps_roi_align(Tensor a) -> (Tensor, Tensor)",
    "_ps_roi_align_backward(Tensor a) -> Tensor",
    "roi_pool(Tensor a) -> (Tensor, Tensor)",
    "_roi_pool_backward(Tensor a) -> Tensor",
    "ps_roi_pool(Tensor a) -> (Tensor, Tensor)",
    "_ps_roi_pool_backward(Tensor a) -> Tensor",
    "deform_conv2d(Tensor a) -> Tensor",
    "_deform_conv2d_backward(Tensor a) -> (Tensor, Tensor)",
)

# The library must stay referenced: its declarations go when it does.
LIBRARY = torch.library.Library("torchvision", "DEF") if importlib.util.find_spec("torchvision") else None
if LIBRARY is not None:
    for declaration in _DECLARATIONS:
        LIBRARY.define(declaration)


def load() -> ModuleType:
    """torchvision, imported after its operators have been declared."""
    return importlib.import_module("torchvision")
