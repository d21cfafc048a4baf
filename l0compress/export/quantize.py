"""Eight-bit integers in place of float32: ONNX Runtime's own quantizer, on a file that has been proven equal.

requires: a float32 ``.onnx`` file; for static quantization also calls that activations are calibrated on.
ensures:  weights are int8 with one scale a channel; the new file says how it was made and how closely it computes.
          The source is not changed.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from l0compress.calls import Call
from l0compress.errors import InputError, SurgeryError
from l0compress.export.files import has_external_data
from l0compress.export.session import OnnxSession
from l0compress.runtime.sessions import first_line

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})


@dataclass(frozen=True)
class Int8:
    """How a model becomes int8.

    Attributes:
        method: ``dynamic`` measures each activation's range anew in every call; ``static`` calibrates it beforehand;
            ``auto`` is static where there are convolutions, whose dynamic kernels are slower than float32, and dynamic
            elsewhere.
        num_samples: samples to calibrate on, static only.

    Raises:
        InputError: an unknown method, or no samples to calibrate on.
    """

    method: str = "auto"
    num_samples: int = 256

    def __post_init__(self) -> None:
        if self.method not in ("auto", "dynamic", "static"):
            raise InputError(
                f"Unknown int8 method {self.method!r}: expected auto, dynamic or static. Nothing was written."
            )
        if self.num_samples < 1:
            raise InputError(
                f"{self.num_samples} samples cannot calibrate anything. Nothing was written. Give 1 or more."
            )

    def method_for(self, source: Path) -> str:
        """``dynamic`` or ``static``, decided by the operators of an ``.onnx`` file."""
        if self.method != "auto":
            return self.method
        model = onnx.load(source, load_external_data=False)
        return "static" if any(node.op_type in CONVOLUTIONS for node in model.graph.node) else "dynamic"


def quantize_onnx(source: str | Path, path: str | Path, *, calibration: Iterable[Call] | None = None) -> Path:
    """Write an int8 form of an ONNX file: static where there are calls to calibrate on, dynamic otherwise.

    Weights get one scale an output channel. A static model is in QDQ form with int8 activations.

    Args:
        source: a float32 ``.onnx`` file.
        path: the file to write.
        calibration: calls whose activations set the ranges.

    Raises:
        SurgeryError: ONNX Runtime's quantizer refuses the model.

    Source: ``onnxruntime.quantization``.

    Example:
        >>> import tempfile, torch, l0compress as l0
        >>> folder = Path(tempfile.mkdtemp())
        >>> linear = torch.nn.Linear(64, 64)
        >>> exported = l0.export_onnx(l0.capture(linear, (torch.randn(2, 64),)), folder / "float.onnx")
        >>> small = quantize_onnx(exported.path, folder / "int8.onnx")
        >>> small.stat().st_size < 0.6 * exported.size_bytes
        True
    """
    source, path = Path(source), Path(path)
    external = has_external_data(source)
    common: dict[str, Any] = {"per_channel": True, "weight_type": QuantType.QInt8, "use_external_data_format": external}
    try:
        with _quiet():
            if calibration is None:
                quantize_dynamic(source, path, **common)
            else:
                calls = _Reader(OnnxSession(source), calibration)
                quantize_static(
                    source, path, calls, quant_format=QuantFormat.QDQ, activation_type=QuantType.QInt8, **common
                )
    except (RuntimeError, ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise SurgeryError(
            f"ONNX Runtime cannot quantize {source.name}: {first_line(error)}. Nothing was written. Export it without "
            "--quantize."
        ) from error
    return path


def annotate_(path: Path, properties: Mapping[str, str]) -> None:
    """Add properties to the metadata of an ONNX file."""
    model = onnx.load(path, load_external_data=False)
    known = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, {**known, **properties})
    path.write_bytes(model.SerializeToString(deterministic=True))


class _Reader(CalibrationDataReader):
    """The quantizer asks for one call after another, until there is none."""

    def __init__(self, session: OnnxSession, calls: Iterable[Call]) -> None:
        self._feeds = (session.feeds(call) for call in calls)

    def get_next(self) -> Any:
        return next(self._feeds, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantizer advises a preparation that the exporter has already made: folded norms and known shapes."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
