"""Export to ONNX with past key values: what a runtime needs to generate token by token.

The class of ``transformers`` that a folder of the small model is loaded by is captured with its cache, so that masks,
positions and grouped heads are the architecture's own.

requires: a small graph, the plan that made it, and the folder of ``transformers`` that was captured.
ensures:  a file that appears only if its logits, token by token with the cache, are those of the masked dense model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from l0compress.errors import NOTHING_WRITTEN, InputError
from l0compress.export.files import Exported, size_on_disk, staged
from l0compress.export.huggingface.decoder import capture_decoder, check_decoder
from l0compress.export.huggingface.export import Cut, export_folder
from l0compress.export.onnx import checked_session, write_onnx
from l0compress.export.onnx_settings import OnnxSettings
from l0compress.export.past import IDS, LOGITS, MASK, POSITIONS, TokenByToken, logits_alone
from l0compress.graph.capture import CapturedGraph
from l0compress.loading.huggingface import load_folder
from l0compress.progress import Stages
from l0compress.verification.calls import Call, example_calls, named_leaves
from l0compress.verification.equality import Equality, verify


@dataclass(frozen=True)
class ExportedWithPast(Exported):
    """An ONNX file with past key values of ``num_layers`` layers."""

    num_layers: int

    def lines(self) -> tuple[str, ...]:
        """What was checked, in words."""
        how = f"logits were compared token by token, with the past key values of {self.num_layers} layers"
        return (*super().lines(), how)


def export_with_past(
    small: Cut,
    source: Path,
    destination: Path,
    *,
    inputs: Sequence[Call] = (),
    settings: OnnxSettings | None = None,
) -> ExportedWithPast:
    """Write a cut causal language model as an ONNX file with past key values, if it equals the masked dense model.

    Args:
        small: a small graph and the plan that made it.
        source: the folder that was captured.
        destination: the file to write.
        inputs: more calls to check it on.
        settings: how the file is written.

    Raises:
        InputError: the folder holds no causal language model, or the graph is not that of its tokens and logits.
        NotEqualError: the file does not compute what the masked dense model computes.
        SurgeryError: the model cannot be converted to ONNX.
        RunError: the destination cannot be written.
    """
    check_decoder(load_folder(source), repr(str(source)))
    _check_tokens(small.graph)
    stages = Stages([2, 3, 2])
    with staged(destination) as staging, tempfile.TemporaryDirectory(dir=destination.parent, prefix=".") as home:
        with stages.stage("building the model"):
            model = load_folder(export_folder(small, source, Path(home, "model"), inputs=inputs).path)
        with stages.stage("converting"):
            num_layers = write_decoder(model, staging, settings=settings)
        with stages.stage("checking token by token"):
            equality = check_tokens(staging, small.reference(), (*example_calls(small.graph), *inputs))
        return ExportedWithPast(destination, size_on_disk(staging), equality, num_layers)


def write_decoder(model: nn.Module, path: Path, *, settings: OnnxSettings | None = None) -> int:
    """Write a causal language model with past key values, unchecked; returns how many layers its cache has.

    Raises:
        InputError: it is none.
        CaptureError, SurgeryError: it cannot be captured, or converted to ONNX.
    """
    decoder = capture_decoder(model)
    write_onnx(decoder.graph, path, settings=settings, names=decoder.names)
    return decoder.num_layers


def check_tokens(path: Path, reference: Callable[..., Any], calls: Sequence[Call]) -> Equality:
    """Compare a file with past key values, token by token, with a model that reads whole sequences.

    Raises:
        NotEqualError: the logits differ.
        SurgeryError: ONNX Runtime cannot run the file.
    """
    return verify(TokenByToken(checked_session(path)), logits_alone(reference), inputs=calls)


def _check_tokens(graph: CapturedGraph) -> None:
    """Refuse a graph that cannot be compared with the file."""
    inputs = [str(node.target) for node in graph.nodes() if node.op == "placeholder"]
    foreign = next((name for name in inputs if name not in (IDS, MASK, POSITIONS)), None)
    outputs = named_leaves(graph.module()(*graph.example_args, **graph.example_kwargs))
    if foreign is not None or IDS not in inputs or LOGITS not in outputs:
        takes = f"{', '.join(inputs)} and returns {', '.join(outputs)}"
        raise InputError(
            f"the model was captured with other inputs or outputs than tokens and logits: it takes {takes}.",
            fix=f"Capture it with {IDS} and, if you like, {MASK} alone.",
            assurance=NOTHING_WRITTEN,
        )
