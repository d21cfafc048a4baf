"""A YOLO of ultralytics as one graph, and with gates in it as the model that its trainer trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from l0compress.gates.attach import gate
from l0compress.graph import CapturedGraph, capture


class Both(nn.Module):
    """A YOLO that returns the decoded and the raw predictions, in this order, as its losses take them.

    In evaluation mode the head decodes boxes, in training mode it returns raw maps, which the loss needs. So the head
    stays in training mode, where the second head of YOLOv10 does not reach back into the backbone.
    """

    def __init__(self, yolo: nn.Module) -> None:
        super().__init__()
        self.yolo = yolo
        self.train(yolo.training)

    def train(self, mode: bool = True) -> Both:
        super().train(mode)
        cast(Any, self.yolo).model[-1].training = True  # only the head; its layers stay in the mode of the rest
        return self

    def forward(self, images: Tensor) -> tuple[Any, dict[str, Any]]:
        head, raw = cast(Any, self.yolo).model[-1], self.yolo(images)
        chosen = raw["one2one" if head.end2end else "one2many"] if "one2one" in raw else raw
        decoded = head._inference(chosen)
        if head.end2end:
            decoded = head.postprocess(decoded.permute(0, 2, 1))
        return ((decoded, chosen["proto"]) if "proto" in chosen else decoded), raw


class Decoded(nn.Module):
    """What an application needs of :class:`Both`: boxes, scores and, for a segmenter, the inputs of the masks."""

    def __init__(self, both: nn.Module) -> None:
        super().__init__()
        self.both = both

    def forward(self, images: Tensor) -> Any:
        return self.both(images)[0]


def decoded(graph: CapturedGraph) -> CapturedGraph:
    """The graph of a :class:`Both` without its raw maps: what is exported."""
    return capture(Decoded(graph.module()), graph.example_args)


class GatedYolo(nn.Module):
    """What the trainer of ultralytics trains, averages, validates and saves in place of a YOLO.

    Whatever else it is asked for (strides, names, the criterion's settings) is the YOLO's own, whose weights it leaves
    alone.

    Attributes:
        gated: the gated network, which returns what :class:`Both` returns.
    """

    def __init__(self, yolo: nn.Module, size: int) -> None:
        super().__init__()
        graph = capture(Both(yolo.eval()), (torch.rand(2, 3, size, size),))
        self.gated, self.criterion = gate(graph), None
        # In a tuple, so that its weights are neither trained nor averaged nor saved as this module's.
        self._of = (yolo,)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "_of":
                raise
            return getattr(self._of[0], name)

    def forward(self, images: Any, *_: Any, **options: Any) -> Any:
        """Predictions for images; for a batch of the trainer's its loss."""
        del options  # augmentation and pictures of features, which nobody has asked for
        return self.loss(images) if isinstance(images, dict) else self.gated(images)

    def loss(self, batch: dict[str, Any], preds: Any = None) -> Any:
        """The YOLO's own loss on a batch, and its parts."""
        yolo = cast(Any, self._of[0])
        if self.criterion is None:
            yolo.args = self.args
            self.criterion = yolo.init_criterion()
        return self.criterion(self.gated(batch["img"]) if preds is None else preds, batch)

    def half(self) -> GatedYolo:
        """Nothing: gates stay in float32, in checkpoints too."""
        return self

    def fuse(self, **kwargs: Any) -> GatedYolo:
        """Nothing: there is no batch norm to fuse before the cut."""
        del kwargs
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GatedYolo:
        # The criterion reads the device off the YOLO.
        self._of[0]._apply(fn)
        return cast(GatedYolo, super()._apply(fn, recurse))
