"""Export the small model of a run, checked against the masked dense model of the same run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from l0compress.errors import InputError
from l0compress.export.bundled import SUFFIX
from l0compress.export.csr import BATCH_SIZES, CsrSettings, export_csr
from l0compress.export.files import Exported
from l0compress.export.onnx import export_onnx
from l0compress.export.pt2 import export_pt2
from l0compress.pipeline.runs import open_run
from l0compress.pipeline.sources import captured_pt2

EXPORTERS: dict[str, Callable[..., Exported]] = {"onnx": export_onnx, "csr": export_csr, "pt2": export_pt2}
SUFFIXES = {"onnx": ".onnx", "csr": SUFFIX, "pt2": ".pt2"}


def export_run(
    run: Path | None = None,
    *,
    format: str = "onnx",
    path: Path | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    settings: CsrSettings | None = None,
) -> Exported:
    """Write the small model of a run as an artifact; it appears only if it equals the run's masked dense model.

    Args:
        run: the run's folder; the newest run under ``./runs`` where it is not given.
        format: ``onnx``, ``csr`` or ``pt2``.
        path: where to write; ``RUN/model`` with the suffix of the format where it is not given.
        batch_sizes: for ``csr``, what the bundle is to be fast at.
        settings: for ``csr``, storage, threads and engines.

    Raises:
        InputError: an unknown format, no such run, or a path that cannot be written to.
        NotEqualError: the artifact does not compute what the masked model computes; nothing is written.
    """
    if format not in EXPORTERS:
        raise InputError(f"Unknown format {format!r}: expected one of {', '.join(EXPORTERS)}. Nothing was written.")
    finished = open_run(run)
    destination = finished.folder / f"model{SUFFIXES[format]}" if path is None else Path(path)
    options = {"batch_sizes": batch_sizes, "settings": settings} if format == "csr" else {}
    small, masked = captured_pt2(finished.small), captured_pt2(finished.masked)
    return EXPORTERS[format](small, destination, reference=masked, **options)
