"""Compress in Python, and keep a run folder as the command line does: begin one, go on with one, read what came out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from l0compress.errors import InputError
from l0compress.export.pt2 import captured_pt2
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.cut.plan import KeepPlan
from l0compress.graph.groups import find_groups
from l0compress.graph.groups.cost import Cost
from l0compress.graph.nodes.checksum import weights_checksum
from l0compress.pipeline import runs
from l0compress.pipeline.compress_result import CompressResult, FamilyResult, Penalized, Reached, Scores
from l0compress.pipeline.family_run import finetune_family_run, resume_family_run
from l0compress.pipeline.given import Given
from l0compress.pipeline.holding import check_new
from l0compress.pipeline.run_result import targets_in
from l0compress.pipeline.training_run import finetune_run, resume_run
from l0compress.training.evaluation import Evaluation
from l0compress.training.events import OnEvent, ProgressEvent
from l0compress.training.finetune import protected
from l0compress.training.goals import Criterion
from l0compress.training.processes import joined
from l0compress.training.reading import Reading, kind_of
from l0compress.training.targets import Target
from l0compress.verification.comparison import OutputEquality
from l0compress.verification.equality import Equality

_EVENT_FIELDS = frozenset(field.name for field in fields(ProgressEvent))


@dataclass(frozen=True)
class Keeping:
    """Where a call keeps its run.

    Attributes:
        folder: new or empty, or that of a run to go on with.
        resume: whether a run that is there is gone on with.
    """

    folder: Path
    resume: bool = False

    @classmethod
    def of(cls, output: str | Path | None, *, resume: bool) -> Keeping | None:
        """What the arguments of a call say; None where it keeps nothing.

        Raises:
            InputError: there is nothing to resume.
            RunError: the folder has something in it, which is not to be gone on with.
        """
        if output is None:
            if resume:
                raise InputError("resume=True, but no output names the run.", fix="Pass output='FOLDER' as well.")
            return None
        folder = Path(output)
        processes = joined()
        begun = processes.from_first(lambda: resume and runs.is_run(folder))
        if processes.is_first and not begun:
            check_new(folder)
        return cls(folder, begun)


def kept(
    given: Given, wanted: tuple[Target, ...] | Criterion, keeping: Keeping, *, on_event: OnEvent
) -> CompressResult:
    """Compress in a run folder; the result is read from it.

    Raises what ``finetune_run`` and ``resume_run`` raise.
    """
    request = given.request(wanted, keeping.folder)
    with _in_its_folder():
        if keeping.resume:
            resume_run(keeping.folder, given=request, on_event=on_event)
        else:
            finetune_run(request, on_event=on_event)
    return restored(keeping.folder, given, () if isinstance(wanted, Criterion) else wanted)


def kept_family(given: Given, targets: tuple[Target, ...], keeping: Keeping, *, on_event: OnEvent) -> FamilyResult:
    """As :func:`kept`, for a family."""
    request = given.request((targets[-1],), keeping.folder, family=targets)
    with _in_its_folder():
        if keeping.resume:
            resume_family_run(keeping.folder, given=request, on_event=on_event)
        else:
            finetune_family_run(request, on_event=on_event)
    by_name = {str(target): target for target in targets}
    members = runs.open_family(keeping.folder).members
    return FamilyResult(
        tuple(restored(one.folder, given, (by_name[one.folder.name],)) for one in members), keeping.folder
    )


@contextmanager
def _in_its_folder() -> Iterator[None]:
    """A run that is whole at the end, for every process, and leaves the threads of the caller as they were."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
    joined().await_first()


def restored(folder: Path, given: Given, targets: tuple[Target, ...]) -> CompressResult:
    """What a finished run came to, from its folder and from what it was given."""
    run = runs.open_run(folder)
    found, dense = run.result, protected(given.prepared.graph, given.settings)
    masked, small = captured_pt2(run.masked), captured_pt2(run.small)
    return CompressResult(
        dense=dense,
        masked=masked,
        small=small,
        plan=_plan(folder, dense, masked, sparse=found["nonzero"] is not None),
        budgets=tuple(
            Reached(target, entry["limit"], entry["reached"])
            for target, entry in zip(targets, targets_in(found), strict=True)
        ),
        dense_cost=Cost(**found["dense"]),
        small_cost=Cost(**found["small"]),
        nonzero_cost=None if found["nonzero"] is None else Cost(**found["nonzero"]),
        val=_scores(found["val"]),
        test=None if found["test"] is None else _scores(found["test"]),
        equality=_equality(found["equality"]),
        history=_history(folder, found["epochs"]),
        reading=runs.reading_of(folder) or _reading(given, dense),
        penalty=Penalized(**found["penalty"]) if "penalty" in found else None,
        folder=folder,
    )


def _plan(folder: Path, dense: CapturedGraph, masked: CapturedGraph, *, sparse: bool) -> KeepPlan:
    kept = json.loads((folder / runs.PLAN).read_text())["kept"]
    plan = KeepPlan.from_kept(find_groups(dense), kept)
    if sparse:
        state, shapes = masked.state(), plan.groups.labelled.parameters
        zeros = {name: state[name] != 0 for name in shapes if name in state and state[name].is_floating_point()}
        plan = plan.with_masks({name: mask for name, mask in zeros.items() if mask.dim() > 1})
    return replace(plan, unfit={weights_checksum(dense.state()): "the weights from before it"})


def _scores(values: dict[str, Any]) -> Scores:
    return Scores(Evaluation(**values["dense"]), Evaluation(**values["small"]))


def _equality(values: dict[str, Any]) -> Equality:
    outputs = tuple(OutputEquality(**output) for output in values["outputs"])
    return Equality(outputs, tuple(values["batch_sizes"]))


def _history(folder: Path, epochs: int) -> tuple[ProgressEvent, ...]:
    """The epochs as they were written down, without the dense model's line before them."""
    lines = (folder / runs.METRICS).read_text().splitlines()
    return tuple(_event(json.loads(line)) for line in lines[len(lines) - epochs :])


def _event(row: dict[str, Any]) -> ProgressEvent:
    """The close of an epoch as it was written down; what was no number then is none now."""
    known = {name: value for name, value in row.items() if name in _EVENT_FIELDS}
    for name in ("density", "violation", "multiplier", "learning_rate"):
        if known.get(name, 0.0) is None:
            known[name] = math.nan
    return ProgressEvent(**known)


def _reading(given: Given, dense: CapturedGraph) -> Reading:
    """How outputs are read, where nothing had to be measured for it: one batch says it."""
    batch = next(iter(given.prepared.data.val.batches(2)))
    return kind_of(given.settings.loss, batch.targets, batch.run(dense.module()))
