"""One model in its own process: capture, group, shrink at a random plan, compare, export.

    python -m zoo.worker NAME

A line of JSON is sent after each stage, so that what a later stage costs (or a time limit) takes nothing away from
what is known already; the last line counts.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from l0compress.errors import CaptureError, NothingToPruneError
from l0compress.export.onnx import export_onnx
from l0compress.graph import CapturedGraph, Groups, KeepPlan, capture, cost, find_groups, masked, shrink
from l0compress.graph.capture import USER_CODE_ERRORS
from l0compress.graph.labels.values import flattened, varying
from l0compress.graph.nodes.network import attribute, op_name
from l0compress.verification.calls import BATCH_SIZES, Call, example_calls
from zoo.catalogue import find
from zoo.entry import Entry
from zoo.reference import reads_sums, silenced
from zoo.table import TOLERANCE_64
from zoo.weights import randomise_

DENSITY = 0.5
WIDE_LIMIT = 400_000_000  # parameters beyond which one batch is enough


class Report:
    """What is known so far; every stage is written out when it ends."""

    def __init__(self, entry: Entry, send: Callable[[bytes], Any]) -> None:
        self.found: dict[str, Any] = {"name": entry.name, "kind": entry.kind, "seconds": {}, "stage": "build"}
        self.send = send

    def write(self, **values: Any) -> None:
        self.found.update(values)
        self.found["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        self.send(json.dumps(self.found).encode())

    def timed(self, stage: str, function: Any, *args: Any) -> Any:
        self.found["stage"] = stage
        start = time.perf_counter()
        result = function(*args)
        self.found["seconds"][stage] = round(time.perf_counter() - start, 2)
        return result


def floats(output: Any) -> list[Tensor]:
    return [
        leaf.double() for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]


def distance(got: list[Tensor], expected: list[Tensor]) -> float:
    """Largest difference of any output, relative to its largest magnitude; infinite where shapes or NaN differ."""
    worst = 0.0
    for a, b in zip(got, expected, strict=True):
        finite = torch.isfinite(b)
        if a.shape != b.shape or not torch.equal(torch.isfinite(a), finite) or (b.numel() and not bool(finite.any())):
            return float("inf")
        if b.numel():
            scale = b[finite].abs().max().clamp(min=1e-30)
            worst = max(worst, float((a[finite] - b[finite]).abs().max() / scale))
    return worst


def answers(model: nn.Module, calls: tuple[Call, ...]) -> list[Tensor]:
    with torch.no_grad():
        return [leaf for call in calls for leaf in floats(model(*call.copy().args, **call.copy().kwargs))]


def answers_of(build: Callable[[], nn.Module], calls: tuple[Call, ...]) -> list[Tensor]:
    """The same of a model that is made for it and let go: modules hold themselves, and large ones cannot wait."""
    found = answers(build(), calls)
    gc.collect()
    return found


def shares(groups: Groups) -> dict[str, Any]:
    """What at least one move removes, of all parameters and of those between embeddings and output layers."""
    removable = torch.zeros(groups.components.count, dtype=torch.bool)
    for removal in groups.removals:
        removable[list(removal.components)] = True
    outer, reasons = _outer(groups), _reasons(groups)
    total = inner = lost = inner_lost = 0
    frozen: Counter[str] = Counter()
    seen: set[int] = set()
    for name, value in groups.labelled.parameters.items():
        tensor = attribute(groups.graph.graph_module, name)
        if not isinstance(tensor, nn.Parameter) or id(tensor) in seen:
            continue
        seen.add(id(tensor))
        stays = tensor.numel()
        for plane in value.planes:
            (dim,) = varying(plane)
            free = removable[torch.from_numpy(groups.components.of(flattened(plane))).long()]
            stays = stays // tensor.shape[dim] * int((~free).sum())
        total, lost = total + tensor.numel(), lost + stays
        if name not in outer:
            inner, inner_lost = inner + tensor.numel(), inner_lost + stays
        if stays:
            frozen[reasons.get(name, "no dimension of it is a channel")] += stays
    return {
        "params": total,
        "prunable": 1 - lost / max(total, 1),
        "inner_params": inner,
        "inner_prunable": 1 - inner_lost / max(inner, 1),
        "frozen": frozen.most_common(5),
    }


def _outer(groups: Groups) -> set[str]:
    """Tables of embeddings, and layers whose rows are the model's output."""
    tables = {
        str(node.args[0].target)
        for node in groups.graph.nodes()
        if op_name(node) == "embedding" and getattr(node.args[0], "op", "") == "get_attr"
    }
    heads = {place.where for place in groups.frozen if place.dim == 0 and "part of the model's output" in place.reason}
    return tables | heads


def _reasons(groups: Groups) -> dict[str, str]:
    reasons: dict[str, str] = {}
    for place in groups.frozen:
        if place.where not in reasons or place.dim == 0:
            reasons[place.where] = f"{place.op}: {place.reason}"
    return reasons


def wide(graph: CapturedGraph) -> CapturedGraph:
    return graph.to(torch.float64)


def compare_wide(report: Report, graph: CapturedGraph, plan: KeepPlan) -> None:
    """float64: shrunk against masked, against the independent reference, and masked against float32 and dense."""
    double = report.timed("to float64", wide, graph)
    calls = example_calls(double, (3,) if report.found["params"] < WIDE_LIMIT else ())
    small = answers_of(lambda: shrink(double, plan).module(), calls)
    reference = answers_of(lambda: masked(double, plan), calls)
    report.write(error64=distance(small, reference))
    report.write(**_against_weights(double, plan, small, calls))
    report.write(noise=_rounding(graph, double, plan))
    dense = answers_of(double.module, calls)
    report.write(away=distance(reference, dense), largest=max(float(leaf.abs().max()) for leaf in dense))


def _rounding(graph: CapturedGraph, double: CapturedGraph, plan: KeepPlan) -> float:
    """What float32 does to the masked model, at the batches that ONNX Runtime will be asked for."""
    sizes = BATCH_SIZES if sum(weight.numel() for weight in graph.state().values()) < WIDE_LIMIT else ()
    calls = example_calls(graph, sizes)
    rounded = answers_of(lambda: masked(graph, plan), calls)
    return distance(rounded, answers_of(lambda: masked(double, plan), tuple(map(_widened, calls))))


def _widened(call: Call) -> Call:
    def cast(leaf: Any) -> Any:
        return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return Call(*pytree.tree_map(cast, (call.args, call.kwargs)))


def _against_weights(
    graph: CapturedGraph, plan: KeepPlan, small: list[Tensor], calls: tuple[Call, ...]
) -> dict[str, Any]:
    """The independent reference with noise in dropped rows, else with zeros; None where means run over channels."""
    for noisy in (True, False):
        found = answers_of(partial(silenced, graph, plan.parameter_keeps(), noisy=noisy), calls)
        error = distance(small, found)
        if error <= TOLERANCE_64:
            return {"independent": error, "noisy": noisy}
    return {"independent": None if reads_sums(plan) else error, "noisy": False}


def compare_narrow(report: Report, graph: CapturedGraph, plan: KeepPlan, small: CapturedGraph) -> None:
    """float32: ONNX Runtime against masked; where the export fails, whether the dense model exports."""
    reference = masked(graph, plan)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            exported = report.timed("export", lambda: export_onnx(small, path, reference=reference, tolerance=1e9))
        except USER_CODE_ERRORS as error:
            dense_error = _dense_export_error(graph, path)
            report.write(onnx_error=_told(error), dense_onnx_error=dense_error)
            return
        report.write(onnx=exported.equality.max_relative, onnx_batches=list(exported.equality.batch_sizes))


def _dense_export_error(graph: CapturedGraph, path: Path) -> str | None:
    try:
        export_onnx(graph, path, tolerance=1e9)
    except USER_CODE_ERRORS as error:
        return _told(error)
    return None


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:600]


def examine(entry: Entry, report: Report, *, with_onnx: bool) -> None:
    torch.manual_seed(0)
    model, args, kwargs = report.timed("build", entry.build)
    try:
        report.timed("randomise", randomise_, model, args, kwargs)
        with torch.no_grad():
            eager = floats(model(*args, **kwargs))
    except USER_CODE_ERRORS as error:
        report.write(verdict="does not run", reason=_told(error))
        return
    try:
        graph = report.timed("capture", lambda: capture(model, args, kwargs, dynamic=entry.dynamic))
    except CaptureError as error:
        report.write(verdict="not captured", reason=str(error)[:600])
        return
    captured = answers(graph.module(), (Call(graph.example_args, graph.example_kwargs),))
    report.write(capture_error=distance(captured, eager), nodes=len(list(graph.nodes())))
    model = eager = captured = None  # a large model is there twice by now
    try:
        groups = report.timed("group", find_groups, graph)
    except NothingToPruneError as error:
        report.write(verdict="frozen", reason=str(error)[:600])
        return
    report.write(groups=len(groups.groups), moves=groups.num_moves, **shares(groups))
    plan = report.timed("plan", lambda: KeepPlan.random(groups, DENSITY, 0))
    small = report.timed("shrink", shrink, graph, plan)
    predicted, found = plan.cost, cost(small)
    report.write(left=found.params / max(report.found["params"], 1), cost_exact=predicted == found)
    report.found["stage"] = "compare"
    compare_wide(report, graph, plan)
    gc.collect()
    report.write(stage="export" if with_onnx else "done")
    if with_onnx:
        compare_narrow(report, graph, plan, small)
        report.write(stage="done")


def main(name: str, send: Callable[[bytes], Any], with_onnx: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    entry = find(name)
    report = Report(entry, send)
    try:
        examine(entry, report, with_onnx=with_onnx == "1")
    except USER_CODE_ERRORS as error:
        frames = traceback.extract_tb(error.__traceback__)[-4:]
        where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
        report.write(verdict="crash", reason=f"{_told(error)} [{report.found['stage']}; {where}]")


if __name__ == "__main__":
    main(sys.argv[1], lambda line: print(line.decode()), "1")
