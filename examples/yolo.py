"""Compress a YOLO detector or segmenter of ultralytics in your own loop, with ultralytics' own loss.

    pip install ultralytics
    python examples/yolo.py                                  # yolov8n, built from its yaml, not trained
    python examples/yolo.py yolo11n-seg --macs 0.5 --steps 200
    python examples/yolo.py my.pt --size 640                 # your own checkpoint

Any ``yolov8*``, ``yolov10*``, ``yolo11*``, ``yolo12*`` with or without ``-seg`` works. It needs ``ultralytics``
(tested with 8.4) and its dependencies (torchvision, opencv, PyYAML, ...), nothing else.

To run out of the box, it learns random rectangles. For real use replace ``batches`` by your data loader: a dictionary
with ``img``, ``batch_idx``, ``cls`` and ``bboxes`` (and ``masks`` for segmentation), as the ``YOLODataset`` of
ultralytics returns it. A run for accuracy takes a few epochs of it, and a few more of the small model afterwards.

In evaluation mode the head decodes boxes, in training mode it returns raw maps, which the loss needs. ``Both`` returns
the two, so that one graph is trained, cut and deployed; ``decoded`` is the small network without the raw maps.
``examples/yolo_train.py`` does the same in the trainer of ultralytics.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel, SegmentationModel, load_checkpoint

import l0compress as l0
from l0compress.integrations.ultralytics import Both, decoded

BATCH_SIZE = 4


def yolo_of(name: str, num_classes: int) -> Any:
    """Build a YOLO from its yaml, or load it from a checkpoint if the name is one."""
    if name.endswith((".pt", ".pth")):
        return load_checkpoint(name)[0].float()
    kind = SegmentationModel if "-seg" in name else DetectionModel
    yolo = kind(f"{name.removesuffix('.yaml')}.yaml", nc=num_classes, verbose=False)
    yolo.args = get_cfg()  # the loss weights
    return yolo


def batches(steps: int, size: int, num_classes: int) -> Iterator[dict[str, Tensor]]:
    """Yield random images with two rectangles each, whose colour is their class."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        count = 2 * BATCH_SIZE
        centres = torch.rand(count, 2, generator=generator) * 0.4 + 0.3
        boxes = torch.cat([centres, torch.rand(count, 2, generator=generator) * 0.3 + 0.2], 1)
        classes = torch.randint(num_classes, (count, 1), generator=generator)
        images = torch.rand(BATCH_SIZE, 3, size, size, generator=generator) * 0.2
        masks = torch.zeros(BATCH_SIZE, size // 4, size // 4)
        for at, ((x, y, width, height), (label,)) in enumerate(zip(boxes.tolist(), classes.tolist(), strict=True)):
            for tensor, value in ((images, 0.3 + 0.7 * label / num_classes), (masks, at % 2 + 1)):
                side = tensor.shape[-1]
                rows = slice(int((y - height / 2) * side), int((y + height / 2) * side) + 1)
                columns = slice(int((x - width / 2) * side), int((x + width / 2) * side) + 1)
                tensor[at // 2, ..., rows, columns] = value
        index = torch.arange(count) // 2
        yield {"img": images, "batch_idx": index, "cls": classes.float(), "bboxes": boxes, "masks": masks}


def fit(network: nn.Module, criterion: Any, optimizer: Any, data: Any, budget: l0.Budget | None = None) -> None:
    """The loop that you may already have; the two lines with ``budget`` are new."""
    network.train()
    for batch in data:
        loss = criterion(network(batch["img"]), batch)[0].sum()
        if budget is not None:
            loss = loss + budget.penalty()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimizer.step()
        if budget is not None:
            budget.step()


def compress(yolo: Any, *, macs: float, steps: int, size: int, num_classes: int) -> tuple[Any, Any]:
    """Gate, train, harden, shrink and verify; return the captured and the small graph."""
    criterion = yolo.init_criterion()
    graph = l0.capture(Both(yolo), (torch.rand(2, 3, size, size),))
    gated = l0.gate(graph)
    budget = l0.Budget(gated, {"macs": macs}, ramp_steps=max(1, steps // 2))
    optimizer = torch.optim.AdamW(gated.param_groups(lr=1e-4, gate_lr=0.05, weight_decay=0.01))
    fit(gated, criterion, optimizer, batches(steps, size, num_classes), budget)
    plan = l0.harden(gated, budget)
    small = gated.shrink(plan)
    equality = l0.verify(small, l0.masked(l0.fold(gated, plan), plan))
    print(f"small and masked dense model: equal, largest relative difference {equality.max_relative:.1e}")
    network = small.module()
    fit(network, criterion, torch.optim.AdamW(network.parameters(), lr=1e-4), batches(steps // 2, size, num_classes))
    return graph, small.with_state(network.state_dict())


def main(arguments: list[str] | None = None) -> l0.CapturedGraph:
    """Compress the YOLO that the command line names, and export it."""
    parser = argparse.ArgumentParser(description="Compress a YOLO of ultralytics.")
    parser.add_argument("model", nargs="?", default="yolov8n", help="a yaml's name, or a checkpoint")
    parser.add_argument("--macs", type=float, default=0.6, help="share of the multiply-accumulates that stays")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, default=96, help="of the images, a multiple of 32")
    parser.add_argument("--classes", type=int, default=4, help="of a model that is built from its yaml")
    parser.add_argument("--output", type=Path, default=None, help="folder of the ONNX file, a temporary one without")
    chosen = parser.parse_args(arguments)
    torch.manual_seed(0)
    yolo = yolo_of(chosen.model, chosen.classes)
    yolo.eval()(torch.rand(1, 3, chosen.size, chosen.size))  # used before capture, as yours may have been
    num_classes = yolo.model[-1].nc
    graph, small = compress(yolo, macs=chosen.macs, steps=chosen.steps, size=chosen.size, num_classes=num_classes)
    before, after = l0.cost(graph), l0.cost(small)
    print(f"{chosen.model}: {before.params:,} -> {after.params:,} parameters, {before.macs:,} -> {after.macs:,} MACs")

    deployed = decoded(small)
    folder = chosen.output or Path(tempfile.mkdtemp())
    path = folder / f"{Path(chosen.model).stem}-small.onnx"
    exported = l0.export_onnx(deployed, path)
    difference, sizes = exported.equality.max_relative, exported.equality.batch_sizes
    print(f"{path}: {exported.size_bytes:,} bytes, equal under ONNX Runtime: {difference:.1e} at batch sizes {sizes}")
    return small


if __name__ == "__main__":
    main()
