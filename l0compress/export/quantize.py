"""Quantize float32 to int8: ONNX Runtime's own quantizer, on a file that has been verified equal.

requires: a float32 ``.onnx`` file; for static quantization also calls that activations are calibrated on.
ensures:  weights are int8 with one scale per channel (uint8 in dynamic convolutions, where ONNX Runtime multiplies no
          others); the new file runs and computes approximately what the float one does, or it is not written. The
          source is not changed.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from torch import Tensor

from l0compress.errors import NOTHING_WRITTEN, InputError, NotEqualError, RunError, SurgeryError
from l0compress.export.files import has_external_data, staged
from l0compress.export.session import OnnxSession
from l0compress.export.unsharing import unshared
from l0compress.verification.calls import Call
from l0compress_runtime.sessions import NATIVE_ERRORS, first_line, open_session

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
# Rounding to int8 costs a few hundredths of the outputs, to 16 bits a tenth of that. If it costs as much as this,
# something else was computed.
LARGEST_SHARES = {"int8": 0.5, "float16": 0.05, "bfloat16": 0.05}
_OF_THE_QUANTIZER = (RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError, *NATIVE_ERRORS)


@dataclass(frozen=True)
class Int8:
    """How to quantize a model to int8.

    Attributes:
        method: ``dynamic`` measures each activation's range in every call; ``static`` calibrates it beforehand;
            ``auto`` is static for models with convolutions, whose dynamic kernels are slower than float32, and dynamic
            otherwise.
        num_samples: samples to calibrate on, static only.

    Raises:
        InputError: unknown method, or no samples to calibrate on.
    """

    method: str = "auto"
    num_samples: int = 256

    def __post_init__(self) -> None:
        if self.method not in ("auto", "dynamic", "static"):
            raise InputError(
                f"Unknown int8 method {self.method!r}: expected auto, dynamic or static.",
                fix="",
                assurance=NOTHING_WRITTEN,
            )
        if self.num_samples < 1:
            raise InputError(
                f"{self.num_samples} samples cannot calibrate anything.",
                fix="Give 1 or more.",
                assurance=NOTHING_WRITTEN,
            )

    def method_for(self, source: Path) -> str:
        """Return ``dynamic`` or ``static``, depending on the operators of an ``.onnx`` file."""
        if self.method != "auto":
            return self.method
        model = onnx.load(source, load_external_data=False)
        return "static" if any(node.op_type in CONVOLUTIONS for node in model.graph.node) else "dynamic"


def quantize_onnx(
    source: str | Path, path: str | Path, *, calibration: Iterable[Call] | None = None, sample: Call | None = None
) -> Path:
    """Write an int8 form of an ONNX file: static if there are calls to calibrate on, dynamic otherwise.

    Weights get one scale per output channel. A static model is in QDQ form with int8 activations. Both files are run on
    one call, and the new one appears only if it computes approximately what the float one does.

    Args:
        source: a float32 ``.onnx`` file.
        path: the file to write.
        calibration: calls whose activations set the ranges.
        sample: what both are compared on; by default the first calibration call, or noise in the shapes that the
            file names, if the float file accepts that.

    Raises:
        SurgeryError: ONNX Runtime's quantizer refuses the model, or produces a file that does not run.
        NotEqualError: the int8 form computes something else.
        RunError: the source cannot be read, or the path cannot be written to.

    Source: ``onnxruntime.quantization``.

    Example:
        >>> import torch, l0compress as l0
        >>> folder = Path(tempfile.mkdtemp())
        >>> linear = torch.nn.Linear(64, 64)
        >>> exported = l0.export_onnx(l0.capture(linear, (torch.randn(2, 64),)), folder / "float.onnx")
        >>> small = quantize_onnx(exported.path, folder / "int8.onnx")
        >>> small.stat().st_size < 0.6 * exported.size_bytes
        True
    """
    source, path = Path(source), Path(path)
    exact = OnnxSession(source)
    calls = None if calibration is None else iter(calibration)
    if calls is not None and (first := next(calls, None)) is not None:
        sample, calls = sample or first, chain([first], calls)
    with staged(path) as staging:
        _quantize(source, staging, None if calls is None else _Reader(exact, calls))
        check_alike(exact, staging, sample, kind="int8")
    return path


def _quantize(source: Path, path: Path, reader: CalibrationDataReader | None) -> None:
    external = has_external_data(source)
    common: dict[str, Any] = {"per_channel": True, "use_external_data_format": external}
    try:
        with quiet(), tempfile.TemporaryDirectory() as folder:
            prepared = _unshared(source, Path(folder, source.name), external=external)
            if reader is None:
                quantize_dynamic(prepared, path, weight_type=_dynamic_weights(source), **common)
            else:
                int8: dict[str, Any] = dict.fromkeys(("activation_type", "weight_type"), QuantType.QInt8)
                quantize_static(prepared, path, reader, quant_format=QuantFormat.QDQ, **int8, **common)
    except DecodeError as error:
        # It writes intermediate files and reads them again without checking whether they are complete.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
    except _OF_THE_QUANTIZER as error:
        raise SurgeryError(
            f"ONNX Runtime cannot quantize {source.name}: {first_line(error)}.", fix="Export it without --quantize."
        ) from error


def _dynamic_weights(source: Path) -> QuantType:
    """Return the type of weights: signed, unless a convolution would then be left without a kernel."""
    operators = {node.op_type for node in onnx.load(source, load_external_data=False).graph.node}
    return QuantType.QInt8 if "Conv" not in operators or _runs_signed_convolutions() else QuantType.QUInt8


@cache
def _runs_signed_convolutions() -> bool:
    """Return whether this ONNX Runtime multiplies signed weights in ``ConvInteger``; 1.24 is the first that does."""
    values = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("ConvInteger", ["x", "weight"], ["y"])],
        "convolution",
        [values("x", onnx.TensorProto.UINT8, [1, 1, 1, 1])],
        [values("y", onnx.TensorProto.INT32, [1, 1, 1, 1])],
        [onnx.numpy_helper.from_array(np.ones((1, 1, 1, 1), np.int8), "weight")],
    )
    # Versions that every ONNX Runtime since 1.14 reads.
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    try:
        open_session(model.SerializeToString())
    except NATIVE_ERRORS:
        return False
    return True


def _unshared(source: Path, path: Path, *, external: bool) -> Path:
    """Write the source to ``path``, with a separate weight for every way in which one is read.

    The quantizer writes next to its input, and leaves files there when it fails: that must not be the user's folder.
    """
    model = unshared(onnx.load(source))
    if model is None:
        for name in (source.name, *([f"{source.name}.data"] if external else [])):
            shutil.copyfile(source.with_name(name), path.with_name(name))
        return path
    onnx.save_model(model, path, save_as_external_data=external, location=f"{path.name}.data" if external else None)
    return path


def check_alike(exact: OnnxSession, path: Path, sample: Call | None, *, kind: str) -> None:
    """Check that a rounded form, such as int8, computes approximately what the float form does.

    Raises:
        SurgeryError: the rounded form does not run on what the float form runs on.
        NotEqualError: it computes something else.
    """
    call = sample or exact.example_call()
    try:
        expected = exact(*call.args, **call.kwargs)
    except InputError:
        # Noise need not fit: a model may require ids, or a length, that its shapes do not show.
        if sample is not None:
            raise
        expected = {}
    instead = "Export it without --quantize." if kind == "int8" else "Export it without --dtype."
    try:
        got = OnnxSession(path)(*call.args, **call.kwargs) if expected else {}
    except (RunError, InputError) as error:
        reason = first_line(error.__cause__ or error)
        raise SurgeryError(
            f"ONNX Runtime cannot run the {kind} form of {exact.path.name}: {reason}.", fix=instead
        ) from error
    for name, values in expected.items():
        share, most = rms_difference(got[name], values), LARGEST_SHARES[kind]
        if share > most:
            raise NotEqualError(
                f"The {kind} form of {exact.path.name} computes something else: output {name!r} differs from the float "
                f"form's by {share:.0%} of its size, and {most:.0%} is too much for rounding. The result is "
                f"refused and nothing was written. {instead}"
            )


def rms_difference(got: Tensor, expected: Tensor) -> float:
    """Return the root mean square difference from expected values, relative to them: zeros are at distance 1.

    One sample that falls on the other side of a threshold may differ by all of the largest output; it takes many to
    change the mean. Non-float tensors, and expected values that are not finite or all zero, do not count.

    Example:
        >>> import torch
        >>> rms_difference(torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.0]))
        0.2
    """
    finite = expected.isfinite()
    size = expected[finite].double().norm().item() if expected.is_floating_point() else 0.0
    if size == 0.0:
        return 0.0
    share = (got[finite].double() - expected[finite].double()).norm().item() / size
    return share if math.isfinite(share) else math.inf


def annotate_(path: Path, properties: Mapping[str, str]) -> None:
    """Add properties to the metadata of an ONNX file."""
    model = onnx.load(path, load_external_data=False)
    known = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, {**known, **properties})
    path.write_bytes(model.SerializeToString(deterministic=True))


class _Reader(CalibrationDataReader):
    """Feeds the quantizer one call after another, until there are none left."""

    def __init__(self, session: OnnxSession, calls: Iterable[Call]) -> None:
        self._feeds = (session.feeds(call) for call in calls)

    def get_next(self) -> Any:
        return next(self._feeds, None)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the quantizer, which advises preparation that the exporter has done: folded norms and known shapes."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
