"""Layers to time sparse, the same layers for ONNX Runtime (dense and int8), and the timing of all of them in turn."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from scipy import sparse

from l0compress_runtime.engines import find
from l0compress_runtime.engines.threads import run_parts
from l0compress_runtime.layers import SparseConv, SparseLinear
from l0compress_runtime.timing import Turns, in_turns

DENSE, INT8 = "dense", "int8"
FEWEST_TURNS, MOST_TURNS = 7, 10_000

Runner = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """A layer, a density and a batch; a linear layer is (size, size), a convolution 3x3 or 1x1 on square images."""

    kind: str  # "linear" or "conv"
    size: int  # features or channels, in and out
    density: float
    batch: int
    kernel: int = 1
    image: int = 1

    @property
    def layer(self) -> str:
        """What the table calls it."""
        if self.kind == "linear":
            return f"{self.size}x{self.size}"
        return f"{self.kernel}x{self.kernel} conv, {self.size} channels, {self.image}x{self.image}"

    @property
    def macs(self) -> float:
        """Multiplications of the sparse layer for the whole batch."""
        return self.size * self.columns * self.density * self.batch * self.image**2

    @property
    def columns(self) -> int:
        """Columns of the weight."""
        return self.size * self.kernel**2

    @property
    def weight_bytes(self) -> float:
        """The smallest that is read: four bytes a value, two an index."""
        return self.size * self.columns * self.density * 6


@dataclass(frozen=True)
class Result:
    """Median microseconds of every candidate, by name."""

    case: Case
    us: Mapping[str, float]

    def speedup(self, name: str, over: str = DENSE) -> float:
        """How many times faster than ``over``."""
        return self.us[over] / self.us[name]

    def best(self) -> str:
        """The fastest engine."""
        return min((name for name in self.us if name not in (DENSE, INT8)), key=self.us.__getitem__)


def dense_weight(size: int, columns: int) -> NDArray[Any]:
    generator = np.random.default_rng(0)
    return generator.normal(size=(size, columns)).astype(np.float32) / np.float32(columns**0.5)


def pruned(case: Case) -> NDArray[Any]:
    """The dense weight with all but ``density`` of it set to zero, at random."""
    weight = dense_weight(case.size, case.columns)
    drop = np.random.default_rng(1).random(weight.shape) >= case.density
    weight[drop] = 0
    return weight


def layer_of(case: Case) -> SparseLinear | SparseConv:
    weight, bias = sparse.csr_array(pruned(case)), np.full(case.size, 0.5, np.float32)
    if case.kind == "linear":
        return SparseLinear(weight, bias)
    around = (case.kernel // 2, case.kernel // 2)
    return SparseConv(weight, (case.kernel, case.kernel), padding=(around, around), bias=bias)


def input_of(case: Case) -> NDArray[Any]:
    shape = (case.batch, case.size, *[case.image] * (2 if case.kind == "conv" else 0))
    return np.random.default_rng(2).normal(size=shape).astype(np.float32)


def onnx_model(case: Case) -> onnx.ModelProto:
    """The layer with its zeros written out; what ONNX Runtime does takes as long whatever the weights are."""
    weight, bias = pruned(case), np.full(case.size, 0.5, np.float32)
    if case.kind == "linear":
        nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Add", ["p", "b"], ["y"])]
        weight = np.ascontiguousarray(weight.T)
    else:
        nodes = [helper.make_node("Conv", ["x", "w", "b"], ["y"], pads=[case.kernel // 2] * 4)]
        weight = weight.reshape(case.size, case.size, case.kernel, case.kernel)
    shape = ["n", case.size, *[case.image] * (2 if case.kind == "conv" else 0)]
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def session_of(case: Case, threads: int, *, int8: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # Threads that go on spinning after a run would slow down whatever is timed next in the same process.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.onnx"
        onnx.save(onnx_model(case), path)
        if int8:
            path = quantized(path, case)
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Calibration(CalibrationDataReader):
    """The input of a case, once."""

    def __init__(self, x: NDArray[Any]) -> None:
        self._left = [{"x": x}]

    def get_next(self) -> dict[str, Any] | None:
        return self._left.pop() if self._left else None


def quantized(path: Path, case: Case) -> Path:
    """The int8 form that is faster: dynamic for a product, static for a convolution."""
    logging.disable(logging.WARNING)  # a lone layer needs no preprocessing, whatever the quantizer advises
    out = path.with_suffix(".int8")
    if case.kind == "linear":
        quantize_dynamic(path, out, weight_type=QuantType.QInt8, per_channel=True)
    else:
        quantize_static(path, out, Calibration(input_of(case)), per_channel=True)
    return out


def runners_of(case: Case, threads: int) -> dict[str, Runner]:
    """Every candidate, found to compute the same first (int8 nearly)."""
    layer, x = layer_of(case), input_of(case)
    sessions = {name: session_of(case, threads, int8=name == INT8) for name in (DENSE, INT8)}
    runners: dict[str, Runner] = {name: _session_runner(session, x) for name, session in sessions.items()}
    for engine in find():
        if engine.supports(layer):
            runners[engine.name] = _kernel_runner(engine.compile(layer, threads=threads), x)
    expected = runners[DENSE]()
    for name, run in runners.items():
        off = float(np.abs(run() - expected).max())
        if off > (0.1 if name == INT8 else 1e-4):
            raise SystemExit(f"{name} is off by {off:g} on {case}")
    return runners


def _session_runner(session: onnxruntime.InferenceSession, x: NDArray[Any]) -> Runner:
    return lambda: session.run(None, {"x": x})[0]


def _kernel_runner(kernel: Callable[[NDArray[Any]], NDArray[Any]], x: NDArray[Any]) -> Runner:
    return lambda: kernel(x)


def interleaved(runners: Mapping[str, Runner], seconds: float) -> dict[str, float]:
    """Median microseconds of each; they take turns, in an order that rotates, until the time is up."""
    taken = in_turns(runners, Turns(seconds, rounds=MOST_TURNS, fewest_rounds=FEWEST_TURNS))
    return {name: float(np.median(values)) / 1e3 for name, values in taken.items()}


def measured(case: Case, threads: int, seconds: float) -> Result:
    return Result(case, interleaved(runners_of(case, threads), seconds))


@cache
def read_gb_a_second(size_bytes: int, threads: int) -> float:
    """How fast so many bytes are read again and again: each thread takes dot products of its share with itself."""
    shares = np.array_split(np.ones(max(size_bytes // 4, threads * 4096), np.float32), threads)
    parts = [partial(np.dot, share, share) for share in shares]
    us = interleaved({"read": lambda: run_parts(parts, threads=threads)}, 0.3)["read"]
    return sum(share.nbytes for share in shares) / us / 1e3


@cache
def peak_gmacs_a_second(threads: int) -> float:
    """Multiplications and additions in ONNX Runtime's dense product of 2048x2048 with 512 samples, in 10⁹ a second."""
    case = Case("linear", 2048, 1.0, 512)
    run = _session_runner(session_of(case, threads, int8=False), input_of(case))
    return case.macs / interleaved({"product": run}, 1.0)["product"] / 1e3


def limit_us(case: Case, threads: int) -> float:
    """The least time there could be: the weight's bytes at the speed of reading, or all products at the peak."""
    size = 1 << max(int(case.weight_bytes), 1 << 16).bit_length()
    reading = case.weight_bytes / read_gb_a_second(size, threads) / 1e3
    return max(reading, case.macs / peak_gmacs_a_second(threads) / 1e3)
