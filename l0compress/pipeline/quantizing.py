"""The small model of a run as int8: proven in float first, then quantized, then scored beside the float one."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from l0compress.calls import Call
from l0compress.data import AnySplit, Data
from l0compress.export.files import Exported, size_on_disk, staged
from l0compress.export.onnx import export_onnx
from l0compress.export.pt2 import captured_pt2, program_pt2
from l0compress.export.quantize import Int8, annotate_, quantize_onnx
from l0compress.export.session import QUANTIZATION_KEY, TOLERANCE_KEY, OnnxSession
from l0compress.graph.capture import CapturedGraph, capture
from l0compress.loading import fit_data, load_data
from l0compress.pipeline.config import read_config
from l0compress.pipeline.requests import request_of
from l0compress.pipeline.runs import CONFIG, Run
from l0compress.training.course import Evaluation, evaluate
from l0compress.training.losses import TaskLoss, objective_for
from l0compress.verify import difference, verify

_BATCH = 32
_SLACK = 2.0


@dataclass(frozen=True, eq=False)
class Origin:
    """What a run was made from, read again.

    Attributes:
        dense: the model as it was given.
        data: the data that it was trained on.
        loss: what was minimised.
    """

    dense: CapturedGraph
    data: Data
    loss: str | TaskLoss

    @property
    def scored_part(self) -> str:
        """The part of the data that forms of the run are scored on: ``test``, or ``val`` where there is none."""
        return "val" if self.data.test is None else "test"


def origin_of(run: Run) -> Origin:
    """Read what a run was made from.

    Raises:
        DataError: the data cannot be read any more.
        InputError: the loss cannot be imported any more.
    """
    request, program = request_of(read_config(run.folder / CONFIG)), program_pt2(run.dense)
    dense = capture(program)
    data = fit_data(load_data(request.data).placed(dense.batch_dims), program)
    return Origin(dense, data, request.finetune_settings().loss)


@dataclass(frozen=True)
class Quantized(Exported):
    """An int8 artifact.

    Attributes:
        quantization: how it was made, such as ``int8 dynamic``.
        part: the part of the data that both were scored on, ``test`` or ``val``.
        float_score: the float form's result on it.
        int8_score: the int8 form's result on the same samples.
    """

    quantization: str
    part: str
    float_score: Evaluation
    int8_score: Evaluation

    def lines(self) -> tuple[str, ...]:
        """What was measured, in words."""
        before, after = self.float_score, self.int8_score
        return (
            f"the float form equals the masked dense model; {self.quantization} differs from it by at most "
            f"{self.equality.max_relative:.1%} of the largest output",
            f"{self.part} {before.metric_name} on {before.num_samples:,} samples: {before.metric:.4f} in float, "
            f"{after.metric:.4f} in int8",
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``json.dumps``."""
        scores = {"part": self.part, "float": asdict(self.float_score), "int8": asdict(self.int8_score)}
        return {**super().to_json(), "quantization": self.quantization, "scores": scores}


def export_int8(run: Run, path: Path, *, int8: Int8) -> Quantized:
    """Write the small model of a run as an int8 ``.onnx`` file, and score it beside the float form.

    The float form has to equal the run's masked dense model before it is quantized. Rounding to int8 is no equality:
    the largest difference is measured and written into the file, with twice of it as what ``verify`` allows.

    Raises:
        NotEqualError: the float form does not compute what the masked model computes.
        SurgeryError: the model cannot be exported or quantized.
        DataError: the run's data cannot be read.
    """
    small, masked, origin = captured_pt2(run.small), captured_pt2(run.masked), origin_of(run)
    with tempfile.TemporaryDirectory() as folder, staged(path) as staging:
        exact = export_onnx(small, Path(folder, "float.onnx"), reference=masked).path
        quantization = quantized_file(exact, staging, origin.data.train, int8)
        closeness = difference(OnnxSession(staging), masked)
        annotate_(staging, {QUANTIZATION_KEY: quantization, TOLERANCE_KEY: f"{_SLACK * closeness.max_relative:.3g}"})
        written = OnnxSession(staging)
        equality = verify(written, masked, tolerance=written.tolerance)
        scores = score_files(origin, {"float": exact, "int8": staging})
        size_bytes = size_on_disk(staging)
    return Quantized(path, size_bytes, equality, quantization, origin.scored_part, scores["float"], scores["int8"])


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
    """An ONNX session where a module is expected."""

    def __init__(self, session: OnnxSession) -> None:
        super().__init__()
        self.session = session

    def forward(self, *args: Tensor, **kwargs: Tensor) -> dict[str, Tensor]:
        return self.session(*args, **kwargs)


def score_files(origin: Origin, files: Mapping[str, Path]) -> dict[str, Evaluation]:
    """ONNX files on the part of a run's data that forms are scored on, by the run's loss.

    Where there are no labels, they are compared with the dense model.
    """
    teacher, split = origin.dense.module(), origin.data.parts()[origin.scored_part]
    first = next(iter(split.batches(_BATCH)))
    objective = objective_for(origin.loss, first.targets, teacher(*first.args, **first.kwargs))
    return {
        name: evaluate(_Answers(OnnxSession(path)), split, objective, teacher=teacher) for name, path in files.items()
    }


def _calls(split: AnySplit, num_samples: int) -> Iterator[Call]:
    batches = islice(split.batches(_BATCH, seed=0), math.ceil(num_samples / _BATCH))
    for batch in batches:
        yield Call(*batch.call(), batch.batch_dims)
