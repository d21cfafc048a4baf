"""Import this before torchvision where its compiled operators do not load: its models then import and run.

The wheel on PyPI is compiled against another build of torch. The models need none of its operators; only their
registration must find them declared.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
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


def _operators_load() -> bool:
    """Whether the compiled operators of torchvision fit this torch; true where there is no torchvision."""
    found = importlib.util.find_spec("torchvision")
    files = () if found is None or found.origin is None else Path(found.origin).parent.glob("_C*.so")
    try:
        for file in files:
            torch.ops.load_library(file)
    except OSError:
        return False
    return True


# The library must stay referenced: its declarations go when it does.
LIBRARY = None if _operators_load() else torch.library.Library("torchvision", "DEF")
if LIBRARY is not None:
    for declaration in _DECLARATIONS:
        LIBRARY.define(declaration)


def load() -> ModuleType:
    """torchvision, imported after its operators have been declared."""
    return importlib.import_module("torchvision")
