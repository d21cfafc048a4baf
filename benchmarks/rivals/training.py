"""Training what another project has cut, exactly as ``--method magnitude`` trains what it cuts itself."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from quality.cells import Cell
from quality.problem import Problem

from l0compress.graph.capture import CapturedGraph
from l0compress.graph.groups.cost import cost
from l0compress.training.final_phase import FinalPhase
from l0compress.training.problem import problem_of
from l0compress.training.randomness import seeded
from l0compress.training.recalibrate import recalibrate
from l0compress.training.reporting import Reporter
from l0compress.training.settings import FinetuneSettings
from l0compress.training.state import TrainingState, train_
from rivals.made import Made

# As many as ``finetune`` takes.
_RECALIBRATION_BATCHES = 100


def trained(candidates: Sequence[CapturedGraph], cell: Cell, problem: Problem) -> Made:
    """The best of several cut networks by the loss in validation, trained for the cell's epochs.

    All of them get batch norm statistics measured anew first. Teacher, distillation, batches, optimizer, rate, schedule
    and seed are those of a method that decides before training.
    """
    settings = FinetuneSettings(method="magnitude", epochs=cell.epochs, seed=cell.seed)
    graph = problem.graph
    with seeded(settings.seed, settings.device):
        run = problem_of(graph, problem.data.called_like(graph.form), settings)
        state = TrainingState.begin(run, Reporter())
        measured = [recalibrate(each, islice(run.batches(run.epoch(0)), _RECALIBRATION_BATCHES)) for each in candidates]
        small = min(measured, key=lambda each: run.evaluate(each.module()).loss)
        densities = {cell.unit: cost(small).get(cell.unit) / cost(graph).get(cell.unit)}
        phase = FinalPhase(run, small, teacher=state.dense, densities=densities)
        train_(state, phase)
    return Made(phase.last_graph.module(), phase.best_graph.module(), cost(small))
