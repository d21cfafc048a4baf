"""What a run is given and never changes: graph, data, teacher, settings, and the loss that is minimised."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import islice, repeat
from typing import Any

import torch
from torch import Tensor, nn

from l0compress.data import Batch, Data
from l0compress.devices import widest_float
from l0compress.errors import DataError, InputError
from l0compress.gates.network import GatedNetwork
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.nodes.checksum import weights_checksum
from l0compress.graph.nodes.network import GraphNetwork
from l0compress.loading.classes import class_warnings
from l0compress.training.epoch import Epoch
from l0compress.training.evaluation import Evaluation, On, evaluate
from l0compress.training.held import Held
from l0compress.training.input_dropout import drop_inputs
from l0compress.training.losses import WHOLE, Objective, Share, check_loss, objective_of
from l0compress.training.outputs import outputs_of
from l0compress.training.parts import Division, PartNoise, check_adds_up, rows_of
from l0compress.training.processes import ALONE, Processes, processes_for
from l0compress.training.randomness import loader_states
from l0compress.training.reading import Reading
from l0compress.training.settings import FinetuneSettings
from l0compress.training.single import check_batches, takes_one_sample
from l0compress.training.survey import reading_of
from l0compress.training.teacher import TeacherCache

_EPOCH_STRIDE = 1_000_003


@dataclass(frozen=True, eq=False)
class Problem:
    """Attributes:
    graph: the dense model.
    teacher: the dense model in eval mode, or None.
    steps_per_epoch: batches an epoch, a last small one left out.
    smallest_batch: a data loader's batches of fewer samples are passed over.
    teacher_cache: the teacher's outputs where they are the same in every epoch.
    processes: those that train together; each computes a part of every batch.
    """

    graph: CapturedGraph
    data: Data
    objective: Objective
    teacher: nn.Module | None
    settings: FinetuneSettings
    steps_per_epoch: int
    smallest_batch: int = 1
    teacher_cache: TeacherCache | None = None
    processes: Processes = ALONE

    @property
    def device(self) -> str:
        return self.settings.device

    @property
    def batch_size(self) -> int:
        return self.settings.batch_size_for(len(self.data.train))

    @property
    def gated_steps(self) -> int:
        """Steps in which gates are learned."""
        return self.settings.gated_steps(self.steps_per_epoch)

    @property
    def shards(self) -> bool:
        """Whether networks are divided over processes."""
        return shards(self.settings, self.processes)

    def held(self, network: GraphNetwork | GatedNetwork) -> Held:
        """A network on the problem's device as it is trained: whole, or divided over the processes."""
        return self.processes.divided(network) if self.shards else Held(network)

    def epoch(self, number: int) -> Epoch:
        """An epoch from its beginning."""
        return Epoch(number, torch.Generator().manual_seed(self._seed(number)), loader_states(self.data.train))

    def batches(self, epoch: Epoch, *, stop: int | None = None) -> Iterator[Batch]:
        """The training batches of an epoch, or what is left of it, shuffled and augmented by seed and epoch.

        Those behind step ``stop`` are not drawn; without it all are, however many the source has.
        """
        drawn = self.data.train.batches(self.batch_size, seed=self._seed(epoch.number), drop_last=True)
        stream = (batch for batch in drawn if len(batch) >= self.smallest_batch)
        # Only the source knows its order, so what was done is drawn again and dropped.
        for _ in islice(stream, epoch.step):
            pass
        if epoch.resume is not None:
            epoch.resume()
        augment = self.data.augment
        for batch in islice(stream, None if stop is None else max(0, stop - epoch.step)):
            if augment is not None:
                batch = augment(batch, epoch.augmentation)
            yield batch.pinned(self.device).to(self.device)

    def teacher_outputs(self, epoch: Epoch) -> Iterator[Any]:
        """What the teacher returns for each of :meth:`batches`; None each time where it has to be run."""
        if self.teacher is None or self.teacher_cache is None or self.teacher_cache.outputs is None:
            return repeat(None)
        cached = self.teacher_cache.batches(self.batch_size, seed=self._seed(epoch.number))
        return islice(cached, epoch.step, None)

    def losses(self, network: nn.Module, batch: Batch, teacher_outputs: Any = None) -> Iterator[tuple[Tensor, float]]:
        """The training loss of one batch, as :meth:`loss` has it, and the share of the samples that it is of.

        Where batches are divided, these are the losses of the parts that this process computes. Those of all processes
        add up to the batch's, and each is to be differentiated before the next is asked for.

        Raises:
            DataError: the batch is too small for the processes.
        """
        division = self.division
        if division.is_whole:
            yield self.loss(network, batch, teacher_outputs), WHOLE.samples
            return
        dropped = self.with_dropout(batch)
        noise = PartNoise(self.device)
        for part in division.parts(self.objective, batch.targets, len(batch)):
            taught = rows_of(teacher_outputs, part.rows, len(batch))
            with noise.of(network, part.number), self.processes.statistics():
                own = batch.rows(part.rows)
                loss = self.loss(network, own, taught, dropped=dropped.rows(part.rows), share=part.share)
                yield loss, part.share.samples
        noise.end_()

    def loss(
        self,
        network: nn.Module,
        batch: Batch,
        teacher_outputs: Any = None,
        *,
        dropped: Batch | None = None,
        share: Share = WHOLE,
    ) -> Tensor:
        """The training loss of one batch; without ``teacher_outputs`` the teacher, if there is one, is run.

        Args:
            dropped: the same batch with dropout on it; drawn here where it is None.
            share: what the batch makes of the one that it is a part of.
        """
        with self.autocast():
            if teacher_outputs is None and self.teacher is not None:
                teacher_outputs = outputs_of(self.teacher, batch)
            outputs = (self.with_dropout(batch) if dropped is None else dropped).run(network)
        return self.objective.loss(outputs, batch.targets, teacher_outputs, share)

    @property
    def division(self) -> Division:
        """How batches are divided."""
        return Division(self.processes, self.settings.accumulate, self.smallest_batch)

    def with_dropout(self, batch: Batch) -> Batch:
        """What the network is trained on."""
        return drop_inputs(batch, self.settings.input_dropout)

    def evaluate(self, network: nn.Module) -> Evaluation:
        """The validation result that choices are made by."""
        return evaluate(
            network,
            self.data.val,
            self.objective,
            teacher=self.teacher,
            on=On(self.device, self.processes, in_step=self.shards),
        )

    def warnings(self) -> tuple[str, ...]:
        """What is odd about the data, where their labels are classes.

        Raises:
            DataError: the training part has samples of one class only.
        """
        return class_warnings(self.data) if self.objective.reading.counts_hits else ()

    def autocast(self) -> AbstractContextManager[Any]:
        device_type = torch.device(self.device).type
        computed_in = self.settings.computed_in
        # Off, it still has a dtype, which has to be one that the device takes.
        dtype = torch.float16 if computed_in == "float16" else torch.bfloat16
        return torch.autocast(device_type, dtype=dtype, enabled=computed_in != "float32")

    def scaler(self) -> torch.amp.GradScaler:
        """What scales the loss where gradients in float16 would vanish; switched off otherwise."""
        device_type = torch.device(self.device).type
        return torch.amp.GradScaler(device_type, enabled=self.settings.computed_in == "float16")

    def _seed(self, epoch: int) -> int:
        return self.settings.seed * _EPOCH_STRIDE + epoch


def problem_of(
    graph: CapturedGraph, data: Data, settings: FinetuneSettings, *, reading: Reading | None = None
) -> Problem:
    """The problem that a run on ``graph`` and ``data`` solves.

    ``reading`` is what was found when the run began; it is taken from the training part where it is None.

    Raises:
        DataError: there are neither labels nor a teacher, or a target is not finite.
        InputError: the weights are float16 or bfloat16, or float64 where the device has none; or it cannot be told
            what the model returns.
    """
    check_precision(graph, settings.device)
    processes = processes_for(settings.device)
    module = graph.module().to(settings.device)
    dense = processes.divided(module).network if shards(settings, processes) else module
    # Drawn once: a data loader's random state moves whenever it is asked.
    first = first_batch(data, settings)
    objective = objective_on(dense, data, settings, first=first, reading=reading)
    smallest_batch = 1 if takes_one_sample(graph) else 2
    if smallest_batch > 1:
        check_batches(data.train, settings)
    steps_per_epoch = max(1, len(data.train) // len(first))
    settled = settings.settled(graph, settings.epochs * steps_per_epoch)
    teacher = dense if settings.distill else None
    problem = Problem(graph, data, objective, teacher, settled, steps_per_epoch, smallest_batch, processes=processes)
    _check_division(problem, dense, first)
    if teacher is None or data.augment is not None:
        return problem
    return replace(problem, teacher_cache=TeacherCache(teacher, data.train, settings.device, problem.autocast))


def shards(settings: FinetuneSettings, processes: Processes) -> bool:
    """Whether networks are divided: one process by itself has all of them."""
    return settings.shard and not processes.is_alone


def _check_division(problem: Problem, dense: nn.Module, first: Batch) -> None:
    """Raises:
    DataError: batches are too small for the processes.
    InputError: the loss cannot be divided.
    ProcessesError: the processes have different data.
    """
    division, reading = problem.division, problem.objective.reading
    if not division.processes.is_alone:
        division.check(len(first))
        named = {**first.inputs(), "the targets": first.targets}
        tensors = {name: leaf for name, leaf in named.items() if isinstance(leaf, Tensor)}
        division.processes.check_same(weights_checksum(tensors), "The first training batch")
    if not division.is_whole and reading.custom and first.targets is not None:
        batch = first.to(problem.device)
        check_adds_up(problem.objective, outputs_of(dense, batch), first.targets.to(problem.device))


def first_batch(data: Data, settings: FinetuneSettings) -> Batch:
    """A batch of the training part."""
    return next(iter(data.train.batches(settings.batch_size_for(len(data.train)))))


def objective_on(
    dense: nn.Module, data: Data, settings: FinetuneSettings, *, first: Batch, reading: Reading | None
) -> Objective:
    """What a run on ``data`` minimises and is measured by; ``first`` is a batch of it. Errors as :func:`problem_of`."""
    check_loss(settings.loss)
    if not settings.distill and first.targets is None:
        raise DataError(
            "Distillation is off and the data has no labels: there is nothing to learn from.",
            fix="Give data with labels, or leave distillation on.",
        )
    if reading is None:
        reading = reading_of(
            settings.loss,
            data.train,
            lambda batch: outputs_of(dense, batch.to(settings.device)),
            first=first,
            batch_size=settings.batch_size_for(len(data.train)),
        )
    return objective_of(
        reading, settings.loss, temperature=settings.distill_temperature, task_share=settings.task_share
    )


def check_precision(graph: CapturedGraph, device: str = "cpu") -> None:
    """Refuse weights that are too coarse to be trained, or finer than the device can hold.

    Raises:
        InputError: a weight is float16 or bfloat16, or float64 where the device has no such numbers.
    """
    for name, weight in graph.state().items():
        if weight.dtype == torch.float64 and widest_float(device) != torch.float64:
            raise InputError(
                f"the model's {name!r} is float64, which device {device!r} does not support.",
                fix="Convert the model first, model.float(), or train it on the CPU.",
            )
        if weight.dtype in (torch.float16, torch.bfloat16):
            raise InputError(
                f"the model's {name!r} is {str(weight.dtype).removeprefix('torch.')}, but training requires float32.",
                fix="Convert the model first: model.float().",
            )
