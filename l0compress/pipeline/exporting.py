"""Export the small model of a run, checked against the masked dense model of the same run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from l0compress.errors import InputError
from l0compress.export.files import Exported
from l0compress.export.onnx import export_onnx
from l0compress.export.pt2 import export_pt2
from l0compress.export.quantize import Int8
from l0compress.pipeline.quantizing import export_int8
from l0compress.pipeline.runs import open_run
from l0compress.pipeline.sources import captured_pt2

EXPORTERS: dict[str, Callable[..., Exported]] = {"onnx": export_onnx, "pt2": export_pt2}


def export_run(
    run: Path | None = None, *, format: str = "onnx", path: Path | None = None, int8: Int8 | None = None
) -> Exported:
    """Write the small model of a run as an artifact; it appears only if it equals the run's masked dense model.

    Args:
        run: the run's folder; the newest run under ``./runs`` where it is not given.
        format: ``onnx`` or ``pt2``.
        path: where to write; ``RUN/model.<format>`` where it is not given, ``RUN/model.int8.onnx`` for int8.
        int8: quantize the ONNX file as this says.

    Raises:
        InputError: an unknown format, no such run, or a path that cannot be written to.
        NotEqualError: the artifact does not compute what the masked model computes; nothing is written.
    """
    if format not in EXPORTERS:
        raise InputError(f"Unknown format {format!r}: expected one of {', '.join(EXPORTERS)}. Nothing was written.")
    if int8 is not None and format != "onnx":
        raise InputError(f"Only ONNX files are quantized, and the format is {format!r}. Nothing was written.")
    finished = open_run(run)
    if int8 is not None:
        return export_int8(finished, path or finished.folder / "model.int8.onnx", int8=int8)
    destination = finished.folder / f"model.{format}" if path is None else Path(path)
    return EXPORTERS[format](captured_pt2(finished.small), destination, reference=captured_pt2(finished.masked))
