"""One cell, from the dense model to the number on the test part."""

from __future__ import annotations

import copy
import time
from dataclasses import replace

import torch
from plain_training import train_
from rivals import made_by
from torch import nn

from l0compress.data import Data, Split
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.groups.cost import Cost, cost
from l0compress.graph.groups.weights import nonzero_cost
from l0compress.training.finetune import finetune
from l0compress.training.settings import FinetuneSettings
from quality.cells import DENSE, RIVALS, Cell
from quality.problem import Problem, Score
from quality.records import Row


def run_cell(cell: Cell, problem: Problem, score: Score, *, fingerprint: str, jobs: int = 1) -> Row:
    """Make one model and measure it; the test part is read here, once."""
    started, worked = time.perf_counter(), time.process_time()
    make = _dense if cell.method == DENSE else made_by(cell.method) if cell.method in RIVALS else _compressed
    last, best, found = make(cell, problem)
    val, test = score(last, problem.data.val), score(last, _test_part(problem.data))
    return Row(
        cell=cell,
        fingerprint=fingerprint,
        params=found.params,
        macs=found.macs,
        reached=found.get(cell.unit) / cost(problem.graph).get(cell.unit),
        val=val,
        test=test,
        best_val=val if best is last else score(best, problem.data.val),
        seconds=time.perf_counter() - started,
        cpu_seconds=time.process_time() - worked,
        threads=torch.get_num_threads(),
        jobs=jobs,
    )


def _compressed(cell: Cell, problem: Problem) -> tuple[nn.Module, nn.Module, Cost]:
    data = problem.data if cell.epochs else problem.calibration(cell.seed)
    settings = FinetuneSettings(method=cell.method, epochs=cell.epochs, seed=cell.seed, granularity=cell.granularity)
    result = finetune(problem.graph, data, problem.target(cell.unit, cell.budget), settings=settings)
    counted = cost if cell.granularity == "structured" else nonzero_cost
    last = result.last.module()
    return last, last if result.last is result.small else result.small.module(), counted(result.last)


def _dense(cell: Cell, problem: Problem) -> tuple[nn.Module, nn.Module, Cost]:
    module = problem.graph.module()
    if cell.epochs:
        module = trained_on(problem.graph, problem.data, epochs=cell.epochs, seed=cell.seed)
    return module, module, cost(problem.graph)


def trained_on(graph: CapturedGraph, data: Data, *, epochs: int, seed: int) -> nn.Module:
    """The dense model after plain training: data, batch size, optimizer, schedule and rate as ``finetune`` has them."""
    settings = FinetuneSettings(epochs=epochs, seed=seed)
    steps = epochs * (len(data.train) // settings.batch_size_for(len(data.train)))
    module = copy.deepcopy(graph.module())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        train_(module, data, replace(settings, learning_rate=settings.settled(graph, steps).rate))
    return module


def _test_part(data: Data) -> Split:
    if not isinstance(data.test, Split):
        raise TypeError("a task has a test part in memory")
    return data.test
