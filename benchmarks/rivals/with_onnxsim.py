"""onnxsim: calibrated structured pruning of the ONNX file, and its fine-tuning of what is left by ridge regression.

Nothing is trained. It gets the file that we export of the dense model, and the samples that ours get, without labels.
Its sparsity is turned until the budget is met; everything else is its default.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from quality.cells import Cell
from quality.problem import Problem
from torch import Tensor

from l0compress.data import Batch, Data, Split
from l0compress.export.onnx import write_onnx
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.groups.cost import cost
from l0compress.loading import load_model
from l0compress.pipeline.sources import prepare
from l0compress.training.targets import Target
from rivals.made import Made, NotCut, fitted, refusals_of

Feeds = list[dict[str, NDArray[np.generic]]]
_BATCH = 64


def make(cell: Cell, problem: Problem) -> Made:
    """The network that onnxsim makes of the problem's ONNX file."""
    import onnx
    import onnxsim

    few = problem.calibration(cell.seed)
    target = Target.of(problem.target(cell.unit, cell.budget)).on(cost(problem.graph).get(cell.unit))
    with tempfile.TemporaryDirectory() as folder:
        dense_path, small_path = Path(folder) / "dense.onnx", Path(folder) / "small.onnx"
        write_onnx(problem.graph, dense_path)
        dense = onnx.load(dense_path)
        feeds = feeds_of([value.name for value in dense.graph.input], few)

        def read(model: onnx.ModelProto) -> CapturedGraph:
            onnx.save(model, small_path)
            return prepare(load_model(small_path), few).graph

        with refusals_of("onnxsim"):
            # How many channels go does not depend on which, so that the search needs no samples.
            share, _ = fitted(
                lambda share: read(onnxsim.apply_structured_pruning(dense, sparsity=share)), cell.unit, target.limit
            )
            small = onnxsim.apply_structured_wanda_pruning(dense, calibration_data=feeds, sparsity=share)
            graph = read(onnxsim.apply_pruning_finetune(dense, small, calibration_data=feeds))
    found = cost(graph)
    if found.get(cell.unit) > target.limit:
        raise NotCut(f"its calibrated cut leaves {found.get(cell.unit):,} {cell.unit}, not {target.limit:,} or fewer")
    module = graph.module()
    return Made(module, module, found)


def feeds_of(names: list[str], data: Data) -> Feeds:
    """All samples of the training and the validation part, as what ONNX Runtime is fed with."""
    parts = [part for part in (data.train, data.val) if isinstance(part, Split)]
    return [_feed(names, batch) for part in parts for batch in part.batches(_BATCH)]


def _feed(names: list[str], batch: Batch) -> dict[str, NDArray[np.generic]]:
    given = {**dict(zip(names, batch.args, strict=False)), **batch.kwargs}
    return {name: value.numpy() for name, value in given.items() if isinstance(value, Tensor)}
