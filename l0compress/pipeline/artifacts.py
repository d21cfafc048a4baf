"""What is done with artifacts: load them, and check them against a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l0compress.errors import RunError, did_you_mean_path
from l0compress.export.bundle_session import SUFFIX, Session, is_bundle
from l0compress.export.huggingface.session import is_model_folder
from l0compress.export.past import TokenByToken, logits_alone, takes_past
from l0compress.export.providers import CPU, on_provider
from l0compress.export.pt2 import captured_pt2
from l0compress.export.session import OnnxSession
from l0compress.graph.capture import CapturedGraph
from l0compress.measure.bench import open_candidate
from l0compress.pipeline.runs import FinishedRun, is_run, made_from, open_run
from l0compress.progress import Stages
from l0compress.verification.calls import example_calls
from l0compress.verification.equality import Equality, verify

SUFFIXES = (".onnx", ".pt2", SUFFIX)


def load(path: Path | str, *, threads: int | None = None, provider: str = CPU) -> Callable[..., Any]:
    """Load an exported artifact, or the small model of a run, as something that is called like the model.

    Args:
        path: an ``.onnx``, a ``.pt2`` or an ``.l0c`` file, the folder of a bundle or of transformers, or a run.
        threads: threads that ONNX Runtime and sparse layers use; None leaves the choice to them.
        provider: what runs an ``.onnx`` file: ``cpu``, or what else ONNX Runtime has here, such as ``cuda``, or
            ``openvino``.

    Raises:
        InputError: the provider does not run files here.
        RunError: the file is missing, unreadable or of another kind, or the run is not finished.
    """
    path = open_run(Path(path)).small if is_run(Path(path)) else existing_artifact(path)
    opened = open_candidate(on_provider(path, provider), threads)
    return opened.module() if isinstance(opened, CapturedGraph) else opened


def existing_artifact(path: Path | str) -> Path:
    """The path of an artifact, if there is one by its name.

    Raises:
        RunError: the file is missing, or of another kind.
    """
    path = Path(path)
    if is_model_folder(path) or (is_bundle(path) and path.exists()):
        return path
    if not path.exists():
        way_on = did_you_mean_path(path) or "Make one with l0compress export."
        raise RunError(f"Cannot read artifact {str(path)!r}: no such file. {way_on}")
    if path.suffix not in SUFFIXES:
        raise RunError(
            f"Cannot read artifact {str(path)!r}: an artifact is an {' or a '.join(SUFFIXES)} file.",
            fix="Make one with l0compress export.",
        )
    if not path.is_file():
        raise RunError(f"Cannot read artifact {str(path)!r}: it is not a file. Make one with l0compress export.")
    return path


@dataclass(frozen=True)
class Verification:
    """An artifact equals the masked dense model of a run, a quantized one as closely as its file says it should."""

    artifact: Path
    run: Path
    equality: Equality
    quantization: str = ""

    def to_json(self) -> dict[str, Any]:
        """As plain values for JSON."""
        about = {"artifact": str(self.artifact), "against": str(self.run), "quantization": self.quantization or None}
        return {**about, **self.equality.to_json()}


def verify_artifact(artifact: Path, *, run: Path, provider: str = CPU) -> Verification:
    """Check that an artifact computes what the masked dense model of a run computes.

    Of a family that is the run of the member whose folder the artifact is in.

    Raises:
        InputError: the provider does not run files here.
        RunError: the artifact or the run cannot be read.
        NotEqualError: they differ; the message says where.
    """
    return verify_against(artifact, made_from(Path(run), Path(artifact)), provider=provider)


def verify_against(artifact: Path, run: FinishedRun, *, provider: str = CPU) -> Verification:
    """As :func:`verify_artifact`, for a run that is open already."""
    stages = Stages([1, 1])
    with stages.stage("opening both"):
        loaded, masked = load(artifact, provider=provider), captured_pt2(run.masked)
    quantization = loaded.quantization if isinstance(loaded, OnnxSession) else ""
    tolerance = loaded.tolerance if isinstance(loaded, Session) else None
    with stages.stage("verifying"):
        if isinstance(loaded, OnnxSession) and takes_past(loaded.inputs):
            equality = verify(TokenByToken(loaded), logits_alone(masked.module()), inputs=example_calls(masked))
        else:
            equality = verify(loaded, masked, tolerance=tolerance, rounded=tolerance is not None)
    return Verification(Path(artifact), run.folder, equality, quantization)
