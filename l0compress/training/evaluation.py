"""Evaluation: the loss and the metric of a model on one part of the data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from l0compress.data import AnySplit
from l0compress.training.losses import Objective
from l0compress.training.outputs import outputs_of
from l0compress.training.processes import ALONE, Processes


@dataclass(frozen=True)
class On:
    """Where something is computed: on which device, and together with which processes.

    Attributes:
        in_step: all processes have to run the network equally often, since each has a part of it.
    """

    device: str = "cpu"
    processes: Processes = ALONE
    in_step: bool = False


_HERE = On()


@dataclass(frozen=True)
class Evaluation:
    """Loss and metric of a model on one part of the data. ``metric`` is what choices are made by."""

    loss: float
    metric: float
    metric_name: str
    num_samples: int

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON; a number that is not finite becomes text.

        >>> Evaluation.from_json(Evaluation(float("inf"), 0.5, "accuracy", 10).to_json())
        Evaluation(loss=inf, metric=0.5, metric_name='accuracy', num_samples=10)
        """
        numbers = {"loss": self.loss, "metric": self.metric}
        return {**asdict(self), **{k: v if math.isfinite(v) else str(v) for k, v in numbers.items()}}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Evaluation:
        """What :meth:`to_json` returned."""
        return cls(float(values["loss"]), float(values["metric"]), values["metric_name"], values["num_samples"])


def evaluate(
    network: nn.Module,
    split: AnySplit,
    objective: Objective,
    *,
    teacher: nn.Module | None = None,
    batch_size: int = 256,
    on: On = _HERE,
) -> Evaluation:
    """Loss and metric of ``network`` in eval mode on a part of the data; the mode is restored afterwards.

    Without labels, outputs are compared with the teacher's. The result is the same in every command and phase: nothing
    that only training uses is in it. Several processes divide every batch, and all of them get the whole result.
    """
    was_training = network.training
    network.eval()
    loss, hits, counted, num_samples = 0.0, 0, 0, 0
    with torch.no_grad():
        for whole in split.batches(batch_size):
            num_samples += len(whole)
            rows = on.processes.rows(len(whole))
            if rows.start == rows.stop:
                if on.in_step:
                    first = whole.rows(slice(0, 1)).to(on.device)
                    first.run(network)
                    if teacher is not None and whole.targets is None:
                        first.run(teacher)
                continue
            share = objective.share_of(whole.targets, rows, len(whole))
            batch = (whole if on.processes.is_alone else whole.rows(rows)).to(on.device)
            outputs = batch.run(network)
            teacher_outputs = outputs_of(teacher, batch) if teacher is not None and batch.targets is None else None
            loss += float(objective.score(outputs, batch.targets, teacher_outputs, share)) * len(whole)
            if objective.reading.counts_hits:
                right, seen = objective.hits(outputs, batch.targets, teacher_outputs)
                hits, counted = hits + right, counted + seen
    network.train(was_training)
    if not on.processes.is_alone:
        loss, hits, counted = on.processes.sums((loss, hits, counted))
    mean_loss = loss / num_samples
    metric = hits / max(counted, 1) if objective.reading.counts_hits else mean_loss
    return Evaluation(mean_loss, metric, objective.metric_name, num_samples)
