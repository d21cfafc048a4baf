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
    """torchvision, imported after its operators have been declared; the validation of ultralytics calls one of them."""
    torchvision = importlib.import_module("torchvision")
    if LIBRARY is not None:
        torchvision.ops.nms = nms
    return torchvision


def nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Non-maximum suppression: the indices of boxes that overlap no better one by more than the threshold.

    >>> boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.9], [4.0, 4.0, 5.0, 5.0]])
    >>> nms(boxes, torch.tensor([0.5, 0.9, 0.1]), 0.5)
    tensor([1, 2])
    """
    order, kept = scores.argsort(descending=True), []
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        low, high = torch.maximum(boxes[best, :2], boxes[order, :2]), torch.minimum(boxes[best, 2:], boxes[order, 2:])
        shared = (high - low).clamp(min=0).prod(1)
        order = order[shared <= iou_threshold * (area[best] + area[order] - shared)]
    return torch.stack(kept) if kept else order
