"""A family in one call: one small model for each of several budgets, from one run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from l0compress.graph.capture.dynamic import Dynamic
from l0compress.loading import Model
from l0compress.pipeline.compress_result import CompressResult, FamilyResult
from l0compress.pipeline.compressing import members_of, settings_for
from l0compress.pipeline.given import Given
from l0compress.pipeline.kept import Keeping, kept_family
from l0compress.pipeline.sources import prepare
from l0compress.pipeline.tracking import trackers_of, tracking_call
from l0compress.pipeline.training_run import result_of
from l0compress.pipeline.watching import watched
from l0compress.training.events import OnEvent, ignore
from l0compress.training.family_targets import family_of
from l0compress.training.randomness import in_turn
from l0compress.training.settings import FinetuneSettings
from l0compress.training.targets import Target


def compress_family(
    model: Model,
    data: Any,
    *,
    target: str | Iterable[Target | Mapping[str, float] | str],
    epochs: int | None = None,
    settings: FinetuneSettings | None = None,
    dynamic: Dynamic = "auto",
    on_event: OnEvent = ignore,
    output: str | Path | None = None,
    resume: bool = False,
    progress: bool = False,
    track: str | Sequence[str] = (),
) -> FamilyResult:
    """Compress a trained model to several budgets in one run. The model that is given stays as it is.

    The run goes down from budget to budget: each member is cut from the one before, trained, verified and kept. Four
    members take 1.4 times the epochs of one run; n take ``(13 + 2 n) / 15`` times. Each keeps to its target and equals
    a masked dense model, as the result of :func:`~l0compress.compress` does.

    Args:
        model, data, dynamic, on_event, output, resume, progress, track: as for :func:`~l0compress.compress`.
        target: one unit and several numbers, ``"macs=0.8,0.6,0.4"``; or a list of targets in one unit, such as
            ``[{"macs": 0.8}, {"macs": 0.4}]``. Their order does not matter.
        epochs: those of one run; 0 decides and repairs without training. None leaves it to ``settings``.
        settings: as for :func:`~l0compress.compress`.

    Raises:
        InputError, NotEqualError, TargetMissedError: as :func:`~l0compress.compress`; InputError also for too few
            epochs.

    Example:
        >>> import torch, l0compress as l0
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> x = torch.randn(64, 4)
        >>> part = l0.Split((x,), (x[:, 0] > 0).long())
        >>> family = l0.compress_family(net, l0.Data(train=part, val=part), target="params=0.6,0.3", epochs=4)
        >>> [(str(one.target), one.limit, one.reached <= one.limit) for one in family.members]
        [('params=0.6', 68, True), ('params=0.3', 34, True)]
    """
    targets, trackers = family_of(target), trackers_of(track)
    settings = settings_for(model, settings, epochs)
    with in_turn(), watched(on_event, progress=progress) as listener:
        keeping = Keeping.of(output, resume=resume)
        prepared = prepare(model, data, loss=settings.loss, dynamic=dynamic)
        if keeping is None:
            members: list[CompressResult] = []
            with tracking_call(trackers, target, settings, listener) as tracked:
                for member in members_of(prepared, targets, settings, on_event=tracked.hear):
                    members.append(member)
                    tracked.conclude(result_of(member), member=str(member.target))
            return FamilyResult(tuple(members))
        given = Given(prepared, settings, model, data, dynamic, trackers)
        return kept_family(given, tuple(targets), keeping, on_event=listener)
