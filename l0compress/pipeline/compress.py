"""The whole line in one call: capture, fine-tune under a budget, harden, shrink, verify."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from l0compress.errors import TargetError
from l0compress.graph.capture.dynamic import Dynamic
from l0compress.loading import Model
from l0compress.pipeline.compress_result import CompressResult
from l0compress.pipeline.compressing import compress_prepared, settings_for
from l0compress.pipeline.given import Given
from l0compress.pipeline.kept import Keeping, kept
from l0compress.pipeline.sources import prepare
from l0compress.pipeline.tracking import trackers_of, tracking_call
from l0compress.pipeline.training_run import result_of
from l0compress.pipeline.watching import watched
from l0compress.training.events import OnEvent, ignore
from l0compress.training.goals import AnyGoal, wanted_of
from l0compress.training.randomness import in_turn
from l0compress.training.settings import FinetuneSettings


def compress(
    model: Model,
    data: Any,
    *,
    target: AnyGoal,
    epochs: int | None = None,
    settings: FinetuneSettings | None = None,
    dynamic: Dynamic = "auto",
    on_event: OnEvent = ignore,
    output: str | Path | None = None,
    resume: bool = False,
    progress: bool = False,
    track: str | Sequence[str] = (),
) -> CompressResult:
    """Compress a trained model to a budget. The model that is given stays as it is.

    Calls from several threads take turns, so that each gives the same bits as by itself.

    Args:
        model: an ``nn.Module`` or an ``ExportedProgram``.
        data: ``(x, y)`` of arrays or tensors, a ``Dataset`` or a ``DataLoader``; a dict of these such as ``{"train":
            (x, y), "val": (x, y)}``; :class:`~l0compress.data.Data`; or a name. See
            :func:`~l0compress.loading.as_data` and :func:`~l0compress.loading.load_data`.
        target: a unit and its number, ``"macs=0.5"`` or ``{"macs": 0.5}`` (a fraction of dense), ``"params=26500"``
            or ``{"params": 26500}`` (a count). Several hold together: ``{"macs": 0.5, "bytes": 4_000_000}``, or a list
            of texts. Or a fixed penalty in place of a budget, ``"bic=1"``, ``{"aic": 1}`` or ``{"penalty": 1e-6}``
            (loss for each parameter), under which how much is left is an outcome.
        epochs: how long to train; 0 decides and repairs without training or labels. None leaves it to ``settings``.
        settings: how to train; the defaults are those of the command line, on the device that the model is on.
        dynamic: which sizes of the inputs are free, and where the batch is, as for
            :func:`~l0compress.graph.capture.capture`.
        on_event: called with a :class:`~l0compress.training.events.ProgressEvent` while the run is under way; first
            with those of the stage "warning", which say what is odd about the data.
        output: a folder that is new or empty, to keep the run in as ``l0compress finetune`` does: it can be gone on
            with from any moment, and ``l0compress export``, ``verify`` and ``bench`` take it. Ctrl-C then stops the
            run after a step and raises StoppedError. Of an epoch that came from the folder, the events in ``history``
            have no times: ``log.jsonl`` has them.
        resume: go on with the run in ``output`` where it was stopped, or begin it where there is none. It ends in the
            same bits as a run that was never stopped. A finished one gives its result without training.
        progress: show on standard error what the command line shows.
        track: log loss, score, density and rates to "tensorboard", "mlflow" or "wandb", or to what a function
            "package.module:function" of (name of the run, folder) returns; or several of these. What a tracker writes
            is in ``output``, or where there is none in a new folder under ``runs``.

    Warns:
        DataWarning, LostInCaptureWarning: the same, where there is neither ``on_event`` nor ``progress``.

    Raises:
        InputError: model, data, target and settings do not fit together; nothing was computed.
        NotEqualError: the small model does not compute what the masked dense model computes.
        TargetMissedError: the small model is over its budget.
        RunError: ``output`` has something in it, or began with another model, other data or settings.
        StoppedError: Ctrl-C or SIGTERM came while the run was being kept.

    Example:
        >>> import torch, l0compress as l0
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> x = torch.randn(64, 4)
        >>> part = l0.Split((x,), (x[:, 0] > 0).long())
        >>> result = l0.compress(net, l0.Data(train=part, val=part), target={"params": 0.5}, epochs=3)
        >>> result.dense_cost.params, result.small_cost.params <= 57
        (114, True)
    """
    if isinstance(target, str) and "," in target:
        raise TargetError(
            f"Target {target!r} names several members of a family, and compress returns one model.",
            fix="Call compress_family with the same arguments.",
        )
    wanted, trackers = wanted_of(target), trackers_of(track)
    settings = settings_for(model, settings, epochs)
    with in_turn(), watched(on_event, progress=progress) as listener:
        keeping = Keeping.of(output, resume=resume)
        prepared = prepare(model, data, loss=settings.loss, dynamic=dynamic)
        if keeping is None:
            with tracking_call(trackers, target, settings, listener) as tracked:
                result = compress_prepared(prepared, wanted, settings, on_event=tracked.hear)
                tracked.conclude(result_of(result))
            return result
        given = Given(prepared, settings, model, data, dynamic, trackers)
        return kept(given, wanted, keeping, on_event=listener)
