"""Export the small model of a run, checked against the masked dense model of the same run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from l0compress.errors import NOTHING_WRITTEN, InputError
from l0compress.export.bundle import BATCH_SIZES, BundleSettings, export_bundle
from l0compress.export.bundle_session import SUFFIX
from l0compress.export.files import Exported, size_on_disk, staged
from l0compress.export.half import Half
from l0compress.export.onnx import export_onnx
from l0compress.export.onnx_settings import OnnxSettings
from l0compress.export.pt2 import captured_pt2, export_pt2
from l0compress.export.quantize import Int8
from l0compress.export.session import OnnxSession
from l0compress.export.sparse_initializers import SparseWeights, store_sparsely_
from l0compress.graph.capture import CapturedGraph
from l0compress.old_names import FORMATS
from l0compress.pipeline.config import read_config
from l0compress.pipeline.huggingface import FORMAT as HUGGINGFACE
from l0compress.pipeline.huggingface import export_run_folder, export_run_with_past
from l0compress.pipeline.quantizing import export_rounded
from l0compress.pipeline.run_manifest import read_manifest
from l0compress.pipeline.runs import CONFIG, FinishedRun, check_not_of, open_family, open_run
from l0compress.progress import Stages
from l0compress.training.settings import FinetuneSettings
from l0compress.verification.calls import Call, sized_example
from l0compress.verification.equality import verify

# A folder of transformers has no suffix, and a name of its own.
SUFFIXES = {"onnx": ".onnx", "bundle": SUFFIX, "pt2": ".pt2", HUGGINGFACE: ""}


@dataclass(frozen=True)
class ExportOptions:
    """How an artifact is made.

    Attributes:
        rounding: quantize an ONNX file, or round it to 16 bits, as this says.
        sparse_weights: leave zeros out of an ONNX file.
        batch_sizes: what a bundle is to be fast at; the usual ones where it is None.
        bundle: storage, threads and engines of a bundle; the usual ones where it is None.
        onnx: how an ONNX file is written; as usual where it is None.
        with_past: give an ONNX file past key values, to generate with.
    """

    rounding: Int8 | Half | None = None
    sparse_weights: bool = False
    batch_sizes: Sequence[int] | None = None
    bundle: BundleSettings | None = None
    onnx: OnnxSettings | None = None
    with_past: bool = False

    @property
    def file_name(self) -> str:
        """What an ONNX file is called in its run's folder."""
        if self.with_past:
            return "model.with_past.onnx"
        form = "int8" if isinstance(self.rounding, Int8) else None if self.rounding is None else self.rounding.dtype
        return "model.onnx" if form is None else f"model.{form}.onnx"


@dataclass(frozen=True)
class SparselyStored(Exported):
    """An ONNX file whose zeros are not stored; ``weights`` says which weights that concerns."""

    weights: SparseWeights

    def lines(self) -> tuple[str, ...]:
        """What was checked and saved, in words."""
        weights = self.weights
        if not weights.names:
            return (
                *super().lines(),
                "no weight has enough zeros to be stored sparsely: at least two thirds are needed",
            )
        return (
            *super().lines(),
            f"{len(weights.names)} weights are stored sparsely: {weights.bytes_before:,} bytes became "
            f"{weights.bytes_after:,}",
            "ONNX Runtime makes them dense again when it loads the file: it is smaller, not faster",
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``json.dumps``."""
        return {**super().to_json(), "sparse_weights": asdict(self.weights)}


def export_run(
    run: Path | None = None,
    *,
    format: str = "onnx",
    path: Path | None = None,
    options: ExportOptions | None = None,
) -> Exported:
    """Write the small model of a run as an artifact; it appears only if it equals the run's masked dense model.

    Args:
        run: the run's folder; the newest run under ``./runs`` where it is not given.
        format: ``onnx``, ``bundle``, ``pt2``, or ``huggingface`` for a folder that ``from_pretrained`` reads.
        path: where to write; ``RUN/model`` with the suffix of the format where it is not given, ``RUN/model.int8.onnx``
            for int8 and the like for 16 bits, ``RUN/model.with_past.onnx``, ``RUN/huggingface``.
        options: how it is made.

    Raises:
        InputError: an unknown format, no such run, or a path that cannot be written to.
        NotEqualError: the artifact does not compute what the masked model computes; nothing is written.
    """
    options = ExportOptions() if options is None else options
    format = FORMATS.get(format, format)
    _check(format, options)
    return _exported(open_run(run), format, path, options)


def export_family(
    folder: Path,
    *,
    member: str | None = None,
    format: str = "onnx",
    path: Path | None = None,
    options: ExportOptions | None = None,
) -> dict[str, Exported]:
    """Write the members of a family as artifacts, each as :func:`export_run` writes it; returns them by name.

    Args:
        folder: the family's folder.
        member: the target of one member, such as ``macs=0.4``; all of them where it is not given.
        path: where to write the one member; beside the member's other files where it is not given.
        format, options: as for :func:`export_run`.

    Raises:
        InputError: as :func:`export_run`, no such member, or one path for several.
        NotEqualError: an artifact does not compute what its masked model computes; those before it are written.
    """
    options = ExportOptions() if options is None else options
    format = FORMATS.get(format, format)
    _check(format, options)
    family = open_family(folder)
    members = family.members if member is None else (family.member(member),)
    if path is not None and len(members) > 1:
        raise InputError(
            f"{str(path)!r} is one path for {len(members)} members.",
            fix="Omit it, or name one of them with --member.",
            assurance=NOTHING_WRITTEN,
        )
    stages, written = Stages([1] * len(members)), {}
    for one in members:
        with stages.stage(one.folder.name):
            written[one.folder.name] = _exported(one, format, path, options)
    return written


def _exported(finished: FinishedRun, format: str, path: Path | None, options: ExportOptions) -> Exported:
    name = options.file_name if format == "onnx" else f"model{SUFFIXES[format]}"
    name = HUGGINGFACE if format == HUGGINGFACE else name
    destination = finished.folder / name if path is None else Path(path)
    check_not_of(finished, destination)
    if options.rounding is not None:
        return export_rounded(finished, destination, rounding=options.rounding, settings=options.onnx)
    if options.sparse_weights:
        return _sparsely_stored(finished, destination, options.onnx)
    if options.with_past:
        return export_run_with_past(finished, destination, settings=options.onnx)
    small, masked = captured_pt2(finished.small), captured_pt2(finished.masked)
    if format == HUGGINGFACE:
        return export_run_folder(finished, destination, inputs=_of_the_run(finished, small))
    if format == "bundle":
        sizes = BATCH_SIZES if options.batch_sizes is None else options.batch_sizes
        return export_bundle(small, destination, reference=masked, batch_sizes=sizes, settings=options.bundle)
    inputs = _of_the_run(finished, small)
    if format == "onnx":
        return export_onnx(small, destination, reference=masked, inputs=inputs, settings=options.onnx)
    return export_pt2(small, destination, reference=masked, inputs=inputs)


def _of_the_run(run: FinishedRun, small: CapturedGraph) -> tuple[Call, ...]:
    """A batch of the sizes that the run trained on: this machine has had the memory for it."""
    asked: Any = read_config(run.folder / CONFIG).get("batch_size")
    samples = read_manifest(run.folder).about["data"]["train"]["samples"]
    return sized_example(small, FinetuneSettings(batch_size=asked).batch_size_for(samples))


def _check(format: str, options: ExportOptions) -> None:
    rounding, sparse_weights = options.rounding, options.sparse_weights
    if format not in SUFFIXES:
        raise InputError(
            f"Unknown format {format!r}: expected one of {', '.join(SUFFIXES)}.", fix="", assurance=NOTHING_WRITTEN
        )
    of_onnx = rounding is not None or sparse_weights or options.with_past or options.onnx is not None
    if format != "onnx" and of_onnx:
        raise InputError(
            f"Only ONNX files are {_what_is_done(options)}, but the format is {format!r}.",
            fix="Choose --format onnx, or leave the option out.",
            assurance=NOTHING_WRITTEN,
        )
    bundle = options.bundle
    if format != "bundle" and bundle is not None and bundle != BundleSettings(threads=bundle.threads):
        raise InputError(
            f"Storage and engines apply to bundles, but the format is {format!r}.",
            fix="Pass --format bundle, or omit --dtype and --engines.",
            assurance=NOTHING_WRITTEN,
        )
    if format != "bundle" and (bundle is not None or options.batch_sizes is not None):
        raise InputError(
            f"Layers are timed only for bundles, but the format is {format!r}.",
            fix="Pass --format bundle, or omit --batch and --threads.",
            assurance=NOTHING_WRITTEN,
        )
    if options.with_past and (rounding is not None or sparse_weights):
        raise InputError(
            f"A file with past key values is not {_what_is_done(options)}.",
            fix="Leave out one of the two.",
            assurance=NOTHING_WRITTEN,
        )
    if rounding is not None and sparse_weights:
        raise InputError(
            "A file is either quantized or stored sparsely.", fix="Leave out one of the two.", assurance=NOTHING_WRITTEN
        )


def _what_is_done(options: ExportOptions) -> str:
    if isinstance(options.rounding, Int8):
        return "quantized"
    if options.rounding is not None:
        return f"computed in {options.rounding.dtype}"
    if options.sparse_weights:
        return "stored sparsely"
    return "given past key values" if options.with_past else "written for an opset"


def _sparsely_stored(run: FinishedRun, path: Path, settings: OnnxSettings | None) -> SparselyStored:
    small, masked = captured_pt2(run.small), captured_pt2(run.masked)
    with staged(path) as staging:
        export_onnx(small, staging, reference=masked, inputs=_of_the_run(run, small), settings=settings)
        weights = store_sparsely_(staging)
        equality = verify(OnnxSession(staging), masked)
        size_bytes = size_on_disk(staging)
    return SparselyStored(path, size_bytes, equality, weights)
