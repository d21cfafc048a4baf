"""Compress a YOLO in ultralytics' own trainer: the numbered lines are all that is new.

    pip install ultralytics
    python examples/yolo_train.py                   # yolov8n, built from its yaml, on rectangles that are drawn here
    python examples/yolo_train.py yolo11n-seg       # a segmenter

For real use give your own checkpoint and data. ``examples/yolo.py`` does the same in a loop of your own.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.models.yolo.segment import SegmentationTrainer

import l0compress as l0
from l0compress.integrations.ultralytics import L0Callback, decoded

SIZE, CLASSES = 96, ("dark", "bright")


def write_data(folder: Path, count: int) -> Path:
    """Write images with two rectangles each, whose brightness is their class, as ultralytics reads them."""
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / part).mkdir(parents=True)
        for number in range(count):
            image, lines = random.integers(0, 40, (SIZE, SIZE, 3), dtype=np.uint8), []
            for label in random.integers(0, 2, 2):
                (x, y), (width, height) = random.integers(8, 48, 2), random.integers(16, 40, 2)
                image[y : y + height, x : x + width] = 110 + 120 * label
                corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
                lines.append(" ".join([str(label), *(f"{value / SIZE:.4f}" for corner in corners for value in corner)]))
            cv2.imwrite(str(folder / "images" / part / f"{number}.png"), image)
            (folder / "labels" / part / f"{number}.txt").write_text("\n".join(lines))
    names = "\n".join(f"  {number}: {name}" for number, name in enumerate(CLASSES))
    (folder / "data.yaml").write_text(f"path: {folder}\ntrain: images/train\nval: images/val\nnames:\n{names}\n")
    return folder / "data.yaml"


def main(folder: Path, name: str = "yolov8n", *, images: int = 16, epochs: int = 3) -> l0.CapturedGraph:
    """Train with gates, cut, and export what is left."""
    torch.manual_seed(0)
    data = write_data(folder / "data", images)
    yolo = YOLO(name if name.endswith(".pt") else f"{name}.yaml")
    trainer = SegmentationTrainer if yolo.task == "segment" else DetectionTrainer
    compression = L0Callback("macs=0.6")  # 1
    yolo.train(
        trainer=compression.trainer(trainer),  # 2
        data=data, imgsz=SIZE, epochs=epochs, batch=8, nbs=8, device="cpu", project=folder, plots=False, verbose=False,
    )  # fmt: skip
    outcome = compression.finish()  # 3

    small = decoded(outcome.small)  # 4
    exported = l0.export_onnx(small, folder / "small.onnx", reference=decoded(outcome.masked))  # 5
    print(f"MACs: {l0.cost(outcome.dense).macs:,} -> {l0.cost(outcome.small).macs:,}")
    print(f"{exported.path}: equal within {exported.equality.max_relative:.1e}")
    return small


if __name__ == "__main__":
    main(Path(tempfile.mkdtemp()), *sys.argv[1:])
