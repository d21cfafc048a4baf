"""The small model of a run, rounded: proven in float first, then int8 or 16 bits, then scored beside the float one."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from l0compress.data import AnySplit, Data
from l0compress.errors import DataError
from l0compress.export.files import Exported, size_on_disk, staged
from l0compress.export.half import Half, halve_onnx
from l0compress.export.onnx import export_onnx
from l0compress.export.onnx_settings import OnnxSettings
from l0compress.export.pt2 import captured_pt2, program_pt2
from l0compress.export.quantize import Int8, annotate_, quantize_onnx
from l0compress.export.session import QUANTIZATION_KEY, TOLERANCE_KEY, OnnxSession
from l0compress.graph.capture import CapturedGraph, capture
from l0compress.loading import fit_data, load_data
from l0compress.measure.bench import open_candidate
from l0compress.pipeline.config import complete, read_config
from l0compress.pipeline.requests import data_source, request_of
from l0compress.pipeline.run_manifest import read_manifest
from l0compress.pipeline.runs import CONFIG, GIVEN, FinishedRun, reading_of
from l0compress.progress import Stages, tell
from l0compress.training.evaluation import Evaluation, evaluate
from l0compress.training.losses import Objective
from l0compress.training.outputs import logits_of, others_of, outputs_of
from l0compress.training.problem import first_batch, objective_on
from l0compress.training.reading import Reading
from l0compress.verification.calls import Call, named_leaves
from l0compress.verification.equality import difference, verify

_BATCH = 32
_SLACK = 2.0


@dataclass(frozen=True, eq=False)
class Origin:
    """What a run was made from, read again.

    Attributes:
        dense: the model as it was given.
        data: the data that it was trained on.
        objective: what its models are judged by, on the scale that the run kept.
    """

    dense: CapturedGraph
    data: Data
    objective: Objective

    @property
    def scored_part(self) -> str:
        """The part of the data that forms of the run are scored on: ``test``, or ``val`` where there is none."""
        return "val" if self.data.test is None else "test"


def origin_of(run: FinishedRun) -> Origin:
    """Read what a run was made from.

    Raises:
        DataError: the data cannot be read any more, or were given in Python.
        InputError: the loss cannot be imported any more.

    A run of an older version kept no scale; it is measured again as the run would measure it today.
    """
    config = read_config(run.folder / CONFIG)
    missing = not_named(run)
    if missing:
        raise DataError(
            f"Run {str(run.folder)!r} was given its {' and '.join(missing)} in Python, which no file names.",
            fix="Name the data when you compress (data='data.npz'), or call l0compress.quantize_onnx with samples.",
        )
    request, program = request_of(config), program_pt2(run.dense)
    dense, settings = capture(program), replace(request.finetune_settings(), device="cpu")
    data = fit_data(load_data(data_source(complete(config))).called_like(dense.form), program)
    first = first_batch(data, settings)
    objective = objective_on(dense.module(), data, settings, first=first, reading=reading_of(run.folder))
    return Origin(dense, data, objective)


def not_named(run: FinishedRun) -> tuple[str, ...]:
    """What it takes to score something, and was given in Python: the run's ``data``, its ``loss``, both or neither."""
    given = read_manifest(run.folder).about.get(GIVEN, {})
    return tuple(name for name in ("data", "loss") if name in given)


@dataclass(frozen=True)
class Rounded(Exported):
    """An artifact in int8 or in 16 bits.

    Attributes:
        form: ``int8``, ``float16`` or ``bfloat16``.
        quantization: how it was made, such as ``int8 dynamic``.
        part: the part of the data that both were scored on, ``test`` or ``val``.
        float_score: the float form's result on it.
        rounded_score: the rounded form's result on the same samples.
        reading: what the scores mean.
    """

    form: str
    quantization: str
    part: str
    float_score: Evaluation
    rounded_score: Evaluation
    reading: Reading

    def lines(self) -> tuple[str, ...]:
        """What was measured, in words."""
        before, after, meaning = self.float_score, self.rounded_score, self.reading.meaning
        return (
            f"the float form equals the masked dense model; {self.quantization} differs from it by at most "
            f"{self.equality.max_relative:.2%} of the largest output",
            f"{self.part} {self.reading.score_name} on {before.num_samples:,} samples: {before.metric:.4f} in float, "
            f"{after.metric:.4f} in "
            f"{self.form}",
            *([] if meaning is None else [meaning]),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``json.dumps``."""
        scores = {
            "part": self.part,
            "score": self.reading.score_name,
            "float": asdict(self.float_score),
            self.form: asdict(self.rounded_score),
        }
        return {**super().to_json(), "quantization": self.quantization, "scores": scores}


def export_rounded(
    run: FinishedRun, path: Path, *, rounding: Int8 | Half, settings: OnnxSettings | None = None
) -> Rounded:
    """Write the small model of a run as a rounded ``.onnx`` file, and score it beside the float form.

    The float form has to equal the run's masked dense model before it is rounded. Rounding is no equality: the largest
    difference is measured and written into the file, with twice of it as what ``verify`` allows.

    Raises:
        NotEqualError: the float form does not compute what the masked model computes.
        SurgeryError: the model cannot be exported or rounded.
        DataError: the run's data cannot be read.
    """
    tell("reading the run")
    small, masked, origin = captured_pt2(run.small), captured_pt2(run.masked), origin_of(run)
    form = "int8" if isinstance(rounding, Int8) else rounding.dtype
    stages = Stages([2, 3, 1])
    with tempfile.TemporaryDirectory() as folder, staged(path) as staging:
        with stages.stage("exporting in float"):
            exact = export_onnx(small, Path(folder, "float.onnx"), reference=masked, settings=settings).path
        with stages.stage(f"rounding to {form}"):
            quantization = rounded_file(exact, staging, origin.data.train, rounding)
        closeness = difference(OnnxSession(staging), masked, rounded=True)
        annotate_(staging, {QUANTIZATION_KEY: quantization, TOLERANCE_KEY: f"{_SLACK * closeness.max_relative:.3g}"})
        written = OnnxSession(staging)
        equality = verify(written, masked, tolerance=written.tolerance, rounded=True)
        with stages.stage("scoring"):
            scores = score_files(origin, {"float": exact, form: staging})
        size_bytes = size_on_disk(staging)
    return Rounded(
        path,
        size_bytes,
        equality,
        form=form,
        quantization=quantization,
        part=origin.scored_part,
        float_score=scores["float"],
        rounded_score=scores[form],
        reading=origin.objective.reading,
    )


def rounded_file(source: Path, path: Path, train: AnySplit, rounding: Int8 | Half) -> str:
    """Round one ``.onnx`` file, compared on training samples; returns how it was done.

    Raises:
        SurgeryError: the model cannot be rounded, or ONNX Runtime cannot run what came out.
        NotEqualError: what came out computes something else on training samples.
    """
    if isinstance(rounding, Int8):
        return quantized_file(source, path, train, rounding)
    halve_onnx(source, path, rounding, sample=next(_calls(train, _BATCH)))
    return rounding.dtype


def quantized_file(source: Path, path: Path, train: AnySplit, int8: Int8) -> str:
    """Quantize one ``.onnx`` file, calibrated on training samples where that is wanted; returns how it was done.

    Raises:
        SurgeryError: ONNX Runtime cannot quantize the model, or cannot run what came out.
        NotEqualError: what came out computes something else on training samples.
    """
    method = int8.method_for(source)
    calibration = _calls(train, int8.num_samples) if method == "static" else None
    quantize_onnx(source, path, calibration=calibration, sample=next(_calls(train, _BATCH)))
    return f"int8 {method}"


class _Answers(nn.Module):
    """An artifact where a module is expected: its outputs by name become those that the dense model's scores are of.

    An artifact returns flat names, in which the dense model's nesting is lost, and with it which tensor labels mean.
    """

    def __init__(self, artifact: Callable[..., Any], outputs: Any) -> None:
        super().__init__()
        self._artifact = artifact
        main, others = logits_of(outputs), others_of(outputs)
        leaves = named_leaves(outputs)
        self._main = _name_of(leaves, main)
        self._others = tuple(_name_of(leaves, other) for other in others)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> tuple[Tensor, ...]:
        answers = named_leaves(self._artifact(*args, **kwargs))
        return tuple(answers[name] for name in (self._main, *self._others))


def _name_of(leaves: Mapping[str, Any], wanted: Tensor) -> str:
    return next(name for name, leaf in leaves.items() if leaf is wanted)


def _opened(path: Path) -> Callable[..., Any]:
    candidate = open_candidate(path, None)
    return candidate.module() if isinstance(candidate, CapturedGraph) else candidate


def score_files(origin: Origin, files: Mapping[str, Path]) -> dict[str, Evaluation]:
    """Artifacts on the part of a run's data that forms are scored on: each is run, and judged as the run's models were.

    Where there are no labels, they are compared with the dense model.
    """
    teacher, split = origin.dense.module(), origin.data.parts()[origin.scored_part]
    outputs = outputs_of(teacher, next(iter(split.batches(_BATCH))))

    answers = {name: _Answers(_opened(path), outputs) for name, path in files.items()}
    stages, scores = Stages([1] * len(answers)), {}
    for name, answer in answers.items():
        with stages.stage(name):
            scores[name] = evaluate(answer, split, origin.objective, teacher=teacher)
    return scores


def _calls(split: AnySplit, num_samples: int) -> Iterator[Call]:
    batches = islice(split.batches(_BATCH, seed=0), math.ceil(num_samples / _BATCH))
    for batch in batches:
        yield Call(*batch.call(), batch.batch_dims)
